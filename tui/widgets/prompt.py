"""The prompt: a text area in which Enter sends. It posts requests, the screen and the app act on them. UI thread.

`completer.py` completes, `attached_files.py` reads the files that a prompt names.
"""

from __future__ import annotations

import time
import unicodedata
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Key, Paste
from textual.message import Message
from textual.widgets import TextArea

from mlxkv.text.clean import clean
from mlxkv.tui.state.commands.slash import as_typed
from mlxkv.tui.state.prompt import attachments, completion
from mlxkv.tui.state.prompt.attachments import Pastes
from mlxkv.tui.state.prompt.completion import Source
from mlxkv.tui.widgets.attached_files import AttachedFiles
from mlxkv.tui.widgets.completer import Completer

UNBOUND = (
    "ctrl+k",
    "ctrl+y",
    "ctrl+z",
    "f6",
    "f7",
)  # Textual's text area binds them; the window or the user does so here
_NUM_SENT = 4  # prompts that may still be returned
_LIST_SECONDS = 1.0  # after a command or a key of the window: what is typed until its list opens may be for that


def _is_text(typed: str) -> bool:
    """Invisible characters that Textual does not take for text: joiners (emoji, Persian) and wide spaces."""
    return typed in "\u200c\u200d" or unicodedata.category(typed) == "Zs"


HINTS = "Ask anything · / commands · @ files · ↑ history"


class Prompt(TextArea):
    """Grows with its text. A paste, which the app has cleaned, never sends, however many lines it has."""

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
        & .text-area--placeholder { color: $text-muted; }
        &:nocolor .text-area--placeholder, &:ansi .text-area--placeholder { text-style: dim; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "Newline", id="prompt.newline"),
        Binding("ctrl+c", "app.interrupt", "Copy, clear, stop, quit", id="prompt.interrupt", show=False),
        Binding("ctrl+d", "end", "Quit", id="prompt.end", show=False),
        Binding("alt+up", "screen.message_cursor(-1)", "Message above", id="prompt.message_above", show=False),
        Binding("alt+down", "screen.message_cursor(1)", "Message below", id="prompt.message_below", show=False),
        Binding("ctrl+o", "screen.fold_all", "Fold reasoning", id="prompt.fold", show=False),
        Binding("ctrl+r", "search_history", "Search earlier prompts", id="prompt.history", show=False),
        Binding("ctrl+g", "edit_outside", "Edit in $EDITOR", id="prompt.editor", show=False),
        Binding("ctrl+f", "app.slash('find')", "Search in this chat", id="prompt.find", show=False),
    ]

    class Submitted(Message):
        """Enter was pressed and the prompt is empty again; an app that refuses `text` calls `put_back`.

        `text` includes pastes and files, `typed` only names the files.
        """

        def __init__(self, text: str, typed: str | None = None) -> None:
            super().__init__()
            self.text, self.typed = text, text if typed is None else typed

    class EditorRequested(Message):
        """Ctrl+G: edit `text` in the user's editor."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class HistoryRequested(Message):
        """Up on the first line (-1), or Down on the last (1)."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class ScrollRequested(Message):
        """Scroll the transcript by `pages`, or follow its end again (None)."""

        def __init__(self, pages: float | None) -> None:
            super().__init__()
            self.pages = pages

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            tab_behavior="focus",
            placeholder=HINTS,
        )
        self.cursor_blink = False
        for key in UNBOUND:
            self._bindings.key_to_bindings.pop(key, None)
        self.goes_elsewhere: Callable[[str], bool] = lambda typed: False  # to an input that opens and has no focus yet
        self.files = AttachedFiles()
        self.completer = Completer(self, self.files, self.put)
        self._pastes = Pastes()
        self._sent: deque[tuple[str, str, dict[str, str]]] = deque(maxlen=_NUM_SENT)  # as sent, as typed, its pastes
        self.clock = time.monotonic
        self._asked = ("", float("-inf"))  # the text when a command or a key of the window was given, and when
        self._returned = ("", "")  # the text put back last: as sent, as shown here

    def put(self, text: str) -> None:
        """Replace the text; the cursor goes to its end. Attached files become names again."""
        typed = clean(self.files.recall(text), joined=True)
        if not completion.is_command(typed):
            self.completer.dismissed = typed  # it is complete: Enter sends it, Up recalls the prompt before it
        self.load_text(typed)
        self.move_cursor(self.document.end)

    def put_back(self, text: str, *, apart: bool = False) -> None:
        """Undo the send of `text`, as `Submitted`: pastes and files are placeholders and names again.

        Text typed since then comes after it, in a paragraph of its own with `apart`.
        """
        typed, sent = self.text, next((sent for sent in reversed(self._sent) if sent[0] == text), None)
        if not typed:
            self._pastes.clear()
        # A long text that was not typed here is a paste.
        before = self._pastes.restore(*sent[1:]) if sent else self._pastes.fold(attachments.split_attachments(text)[0])
        self._returned = (text, before)
        self.put(f"{before}\n\n{typed}" if apart and typed.strip() else before + typed)

    def withdraw(self, text: str) -> None:
        """Remove `text`, which was put back last and is now sent after all; text typed since then stays."""
        returned, before = self._returned
        if returned in (text, as_typed(text)) and self.text.startswith(before):
            self.put(self.text[len(before) :].lstrip("\n"))

    def take_word(self) -> str:
        """Remove and return the word typed since a command or a key of the window a moment ago, "" if there is none."""
        before, at = self._asked
        word = self.text.removeprefix(before)
        if not (self.text.startswith(before) and word.isalnum() and self.clock() - at < _LIST_SECONDS):
            return ""
        self.put(before)
        return word

    # -- sending -----------------------------------------------------------------------------------------

    def action_send(self) -> None:
        completer = self.completer
        completer.update()  # letters may have been typed since it was drawn
        menu, (row, column) = completer.menu, self.cursor_location
        if column and self.document[row][column - 1] == "\\":  # `\` + Enter, for terminals without Shift+Enter
            self.replace("\n", (row, column - 1), (row, column))
        elif menu is not None and menu.source is Source.HISTORY and menu.chosen is None:
            completer.close()
        elif menu is None or completion.runs_as_typed(self.text, menu):
            self._send(self.text)
        elif (chosen := menu.chosen) is not None:
            if menu.source is Source.COMMAND and completion.runs_at_once(chosen):
                self._send(chosen.insert.strip())
            elif menu.source is Source.FILE and completer.typed == chosen.insert:
                self._send(self.text)
            else:
                completer.insert(chosen)

    def _send(self, text: str) -> None:
        typed = self._pastes.expand(text)
        if not text.lstrip().startswith("/"):
            typed = as_typed(typed)  # a paste that looks like a command is not one
        sent = typed
        if not completion.is_command(text):
            try:
                sent = self.files.expand(typed)
            except attachments.AttachError as error:
                self.completer.dismissed = text  # no menu in place of the error
                self.completer.show(None, f"{error.sign} {error}")
                return
        self.post_message(self.Submitted(sent, typed))
        self._sent.append((sent, text, self._pastes.clear()))
        self.completer.reset()
        self.put("")  # here, not in the app: the next key may be in the queue already
        self._asked = ("", self.clock() if completion.is_command(text) else float("-inf"))

    # -- actions -----------------------------------------------------------------------------------------

    def action_search_history(self) -> None:
        self.completer.search_history()

    def action_edit_outside(self) -> None:
        self.post_message(self.EditorRequested(self._pastes.expand(self.text)))

    def action_newline(self) -> None:
        self.replace("\n", *self.selection)

    async def action_end(self) -> None:
        if self.text:
            self.action_delete_right()
        else:
            await self.run_action("app.quit_chat")

    def action_cursor_up(self, select: bool = False) -> None:
        if not self.navigator.is_first_wrapped_line(self.cursor_location):
            super().action_cursor_up(select)
        else:
            self.post_message(self.ScrollRequested(-0.1) if select else self.HistoryRequested(-1))

    def action_cursor_down(self, select: bool = False) -> None:
        if not self.navigator.is_last_wrapped_line(self.cursor_location):
            super().action_cursor_down(select)
        else:
            self.post_message(self.ScrollRequested(0.1) if select else self.HistoryRequested(1))

    def action_cursor_page_up(self) -> None:
        self.post_message(self.ScrollRequested(-1))

    def action_cursor_page_down(self) -> None:
        self.post_message(self.ScrollRequested(1))

    def action_cursor_line_end(self, select: bool = False) -> None:
        if self.cursor_at_end_of_text:
            self.post_message(self.ScrollRequested(None))
        super().action_cursor_line_end(select)

    # -- events ------------------------------------------------------------------------------------------

    def _on_text_area_changed(self) -> None:
        self.completer.update()

    def _on_text_area_selection_changed(self) -> None:
        self.completer.cursor_moved()

    async def _on_key(self, event: Key) -> None:
        if await self._handle_key(event):
            event.stop()
            event.prevent_default()

    async def _handle_key(self, event: Key) -> bool:
        """Handle a key that Textual's text area does not have, or has for something else; returns whether it was one.

        A priority binding would run on the app's queue, ahead of letters still in this widget's: "hello", Enter would
        send "hel".
        """
        typed = event.character
        if event.is_printable and typed and self.goes_elsewhere(typed):
            return True
        if self.completer.handle_key(event.key):
            return True
        if not event.is_printable and (bound := self.screen.active_bindings.get(event.key)):
            if bound.node is self and (bound.binding.id or "").startswith("prompt."):
                await self.run_action(bound.binding.action)
                return True
            if bound.node is not self:  # of the window: it may open a list
                self._asked = (self.text, self.clock())
        elif typed and not event.is_printable and _is_text(typed):
            self._replace_via_keyboard(typed, *self.selection)
            return True
        elif typed == "?" and not self.text:
            await self.run_action("app.slash('help')")
            return True
        return False

    async def _on_paste(self, event: Paste) -> None:
        event.stop()
        event.prevent_default()
        if result := self._replace_via_keyboard(self._pastes.fold(event.text), *self.selection):
            self.move_cursor(result.end_location)
