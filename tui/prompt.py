"""The prompt: a text area in which Enter sends. It says what the user wants, the app decides. UI thread."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Key, Paste
from textual.message import Message
from textual.widgets import TextArea

from mlxkv.text import clean


class Prompt(TextArea):
    """Grows with its text. Pasted text is cleaned and never sends, however many lines it has."""

    DEFAULT_CSS = """
    Prompt, Prompt:focus {
        width: 1fr;
        height: auto;
        min-height: 2;
        max-height: 8;
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
        Binding("ctrl+f", "app.find", "Search in this chat", id="prompt.find", show=False),
    ]

    class Submitted(Message):
        """Enter was pressed and the prompt is empty again; an app that refuses `text` gives it back (`put_back`)."""

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
            placeholder="Ask anything · / commands · ↑ history",
        )
        self.cursor_blink = False

    def put(self, text: str) -> None:
        """Replace the text; the cursor goes to its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def put_back(self, text: str) -> None:
        """Undo a send; what was typed since comes after it."""
        self.put(text + self.text)

    def action_send(self) -> None:
        row, column = self.cursor_location
        if column and self.document[row][column - 1] == "\\":  # `\` + Enter, for terminals without Shift+Enter
            self.replace("\n", (row, column - 1), (row, column))
        else:
            self.post_message(self.Submitted(self.text))
            self.put("")  # here, not in the app: the next key may be in the queue already

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
        # Keys of ours that the text area would take for itself. A priority binding would run on the app's queue, ahead
        # of letters that are still in this widget's: "hello", Enter would send "hel".
        if not event.is_printable and (bound := self.screen.active_bindings.get(event.key)):
            if bound.node is self and (bound.binding.id or "").startswith("prompt."):
                event.stop()
                event.prevent_default()
                await self.run_action(bound.binding.action)
        elif event.character == "?" and not self.text:
            event.stop()
            event.prevent_default()
            self.post_message(self.HelpWanted())

    async def _on_paste(self, event: Paste) -> None:
        event.stop()
        event.prevent_default()
        text = clean(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)
