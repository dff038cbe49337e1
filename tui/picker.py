"""A list of chats to resume, in place of the transcript. Typing searches; Enter opens; Esc is the app's. UI thread."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.events import Key
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from mlxkv.events import ChatSummary
from mlxkv.tui.chats import chat_line, matching


class ChatPicker(OptionList):
    """Mounted when it is needed, removed when a chat is chosen."""

    DEFAULT_CSS = """
    ChatPicker, ChatPicker:focus {
        height: 1fr;
        max-height: 100%;
        border: none;
        border-top: solid $panel;
        border-title-color: $text;
        border-title-style: bold;
        padding: 0 1;
        background: $background;
        background-tint: $background 0%;
    }
    """

    class Picked(Message):
        def __init__(self, session_id: str) -> None:
            super().__init__()
            self.session_id = session_id

    def __init__(self, chats: Sequence[ChatSummary], now: float, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._chats, self._now, self._words = chats, now, ""

    def on_mount(self) -> None:
        self._fill()

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        found = matching(self._chats, self._words)
        width = max(20, self.content_size.width - 2)
        self.clear_options()
        self.add_options([Option(Text(chat_line(chat, width, self._now), no_wrap=True), id=chat.id) for chat in found])
        self.highlighted = 0 if found else None
        self.border_title = Text(f"Chats · {self._words}▏" if self._words else "Chats · type to search")
        self.border_subtitle = "⏎ resume · esc close"

    def on_key(self, event: Key) -> None:
        if event.key == "backspace":
            self._words = self._words[:-1]
        elif event.is_printable and event.character:
            self._words += event.character
        else:
            return
        event.stop()
        event.prevent_default()
        self._fill()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_id is not None:
            self.post_message(self.Picked(event.option_id))
