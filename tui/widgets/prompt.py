"""The prompt: a text area in which Enter sends. It says what the user wants, the app decides. UI thread.

What it offers while one types is `completing_text_area.py`'s.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Key, Paste
from textual.message import Message

from mlxkv.tui.state import attachments as attach
from mlxkv.tui.state import completion as offers
from mlxkv.tui.state.attachments import Pastes
from mlxkv.tui.state.slash import as_typed
from mlxkv.tui.widgets.completing_text_area import OfferingArea
from mlxkv.tui.widgets.completion_menu import Source

FREED = ("ctrl+k", "ctrl+z", "f6", "f7")  # a text area would take them: they are the window's, or the user's to bind


_REMEMBERED = 4  # messages that may still come back


def _is_text(typed: str) -> bool:
    """Of what Textual takes for no text, being invisible: the joiners of emoji and of Persian, and wide spaces."""
    return typed in "\u200c\u200d" or unicodedata.category(typed) == "Zs"


class Prompt(OfferingArea):
    """Grows with its text. Pasted text, which the app has cleaned, never sends, however many lines it has."""

    DEFAULT_CSS = """
    Prompt, Prompt:focus {
        width: 1fr;
        height: auto;
        min-height: 2;
        max-height: 33vh;
        border: none;
        padding: 0;
        background: $background;
        scrollbar-size-vertical: 1;
        & .text-area--cursor-line { background: $background; }
        & .text-area--placeholder { color: $text-muted; text-style: dim; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "Newline", id="prompt.newline"),
        Binding("ctrl+c", "app.interrupt", "Copy, clear, stop, quit", id="prompt.interrupt", show=False),
        Binding("ctrl+d", "end", "Quit", id="prompt.end", show=False),
        Binding("alt+up", "cursor_wanted(-1)", "Message above", id="prompt.message_above", show=False),
        Binding("alt+down", "cursor_wanted(1)", "Message below", id="prompt.message_below", show=False),
        Binding("ctrl+o", "app.fold_all", "Fold reasoning", id="prompt.fold", show=False),
        Binding("ctrl+r", "search_history", "Search earlier prompts", id="prompt.history", show=False),
        Binding("ctrl+g", "edit_outside", "Edit in $EDITOR", id="prompt.editor", show=False),
        Binding("ctrl+f", "app.find", "Search in this chat", id="prompt.find", show=False),
    ]

    class Submitted(Message):
        """Enter was pressed and the prompt is empty again; an app that refuses gives `text` back (`put_back`).

        `text` is what is meant: pastes and files are in it. `typed` names the files only.
        """

        def __init__(self, text: str, typed: str | None = None) -> None:
            super().__init__()
            self.text, self.typed = text, text if typed is None else typed

    class EditorWanted(Message):
        """Ctrl+G: `text` is to be edited in the user's editor."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Recall(Message):
        """Up on the first line (-1), or down on the last (1)."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class Scroll(Message):
        """Move the transcript by `pages`, or go back to following it (None)."""

        def __init__(self, pages: float | None) -> None:
            super().__init__()
            self.pages = pages

    class CursorWanted(Message):
        """Move the message cursor up (-1) or down (1)."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class Ended(Message):
        """Ctrl+D on an empty prompt."""

    class HelpWanted(Message):
        """`?` on an empty prompt."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            tab_behavior="focus",
            placeholder="Ask anything · / commands · @ files · ↑ history",
        )
        self.cursor_blink = False
        for key in FREED:
            self._bindings.key_to_bindings.pop(key, None)
        self._pastes = Pastes()
        # What was sent last: as it was meant, as it was typed, and its pastes.
        self._sent: deque[tuple[str, str, dict[str, str]]] = deque(maxlen=_REMEMBERED)
        self._returned = ("", "")  # what was put back last, as it was meant and as it stands here

    def put_back(self, text: str, *, apart: bool = False) -> None:
        """Undo the send of `text`, as it was `Submitted`: pastes and files are placeholders and names again.

        What was typed since comes after it, `apart` from it or as a part of it.
        """
        typed, sent = self.text, next((sent for sent in reversed(self._sent) if sent[0] == text), None)
        if not typed:
            self._pastes.clear()
        # A long text that was not typed here is a paste.
        before = self._pastes.restore(*sent[1:]) if sent else self._pastes.fold(attach.split_attachments(text)[0])
        self._returned = (text, before)
        self.put(f"{before}\n\n{typed}" if apart and typed.strip() else before + typed)

    def withdraw(self, text: str) -> None:
        """`text`, which was put back last, is sent after all; what was typed besides stays."""
        said, before = self._returned
        if said in (text, as_typed(text)) and self.text.startswith(before):
            self.put(self.text[len(before) :].lstrip("\n"))

    # -- sending -----------------------------------------------------------------------------------------

    def action_send(self) -> None:
        self._offer()  # letters may have come since it was drawn
        row, column = self.cursor_location
        if column and self.document[row][column - 1] == "\\":  # `\` + Enter, for terminals without Shift+Enter
            self.replace("\n", (row, column - 1), (row, column))
        elif self.menu is not None and self.menu.source is Source.HISTORY and self.menu.chosen is None:
            self._close_menu()
        elif self.menu is None or offers.runs_as_typed(self.text, self.menu):
            self._send(self.text)
        elif (chosen := self.menu.chosen) is not None:
            if self.menu.source is Source.COMMAND and offers.runs_at_once(chosen):
                self._send(chosen.insert.strip())
            elif self.menu.source is Source.FILE and self._typed() == chosen.insert:
                self._send(self.text)
            else:
                self._take(chosen)

    def _send(self, text: str) -> None:
        typed = self._pastes.expand(text)
        if not text.startswith("/"):
            typed = as_typed(typed)  # a paste that looks like a command is not one
        said = typed
        if not offers.is_command(text):
            try:
                said = attach.attach(typed, self.base, self._recalled)
            except attach.AttachError as error:
                self._refused = text  # no list in the place of the reason
                self._show_menu(None, f"✗ {error}")
                return
        self.post_message(self.Submitted(said, typed))
        self._sent.append((said, text, self._pastes.clear()))
        self._draft = None
        self._show_menu(None)
        self.put("")  # here, not in the app: the next key may be in the queue already

    def action_edit_outside(self) -> None:
        self.post_message(self.EditorWanted(self._pastes.expand(self.text)))

    def action_newline(self) -> None:
        self.replace("\n", *self.selection)

    def action_cursor_wanted(self, step: int) -> None:
        self.post_message(self.CursorWanted(step))

    def action_end(self) -> None:
        if self.text:
            self.action_delete_right()
        else:
            self.post_message(self.Ended())

    def action_cursor_up(self, select: bool = False) -> None:
        if not self.navigator.is_first_wrapped_line(self.cursor_location):
            super().action_cursor_up(select)
        elif select:
            self.post_message(self.Scroll(-0.1))
        else:
            self.post_message(self.Recall(-1))

    def action_cursor_down(self, select: bool = False) -> None:
        if not self.navigator.is_last_wrapped_line(self.cursor_location):
            super().action_cursor_down(select)
        elif select:
            self.post_message(self.Scroll(0.1))
        else:
            self.post_message(self.Recall(1))

    def action_cursor_page_up(self) -> None:
        self.post_message(self.Scroll(-1))

    def action_cursor_page_down(self) -> None:
        self.post_message(self.Scroll(1))

    def action_cursor_line_end(self, select: bool = False) -> None:
        if self.cursor_at_end_of_text:
            self.post_message(self.Scroll(None))
        super().action_cursor_line_end(select)

    async def _on_key(self, event: Key) -> None:
        if self._menu_key(event):
            event.stop()
            event.prevent_default()
            return
        # Keys of ours that the text area would take for itself. A priority binding would run on the app's queue, ahead
        # of letters that are still in this widget's: "hello", Enter would send "hel".
        if not event.is_printable and (bound := self.screen.active_bindings.get(event.key)):
            if bound.node is self and (bound.binding.id or "").startswith("prompt."):
                event.stop()
                event.prevent_default()
                await self.run_action(bound.binding.action)
        elif (typed := event.character) and not event.is_printable and _is_text(typed):
            event.stop()
            event.prevent_default()
            self._replace_via_keyboard(typed, *self.selection)
        elif event.character == "?" and not self.text:
            event.stop()
            event.prevent_default()
            self.post_message(self.HelpWanted())

    async def _on_paste(self, event: Paste) -> None:
        event.stop()
        event.prevent_default()
        if result := self._replace_via_keyboard(self._pastes.fold(event.text), *self.selection):
            self.move_cursor(result.end_location)
