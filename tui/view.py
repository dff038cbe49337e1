"""Everything on the main screen, from top to bottom, and which of it is shown when. No decisions, no engine. UI thread.

The widgets are kept, not queried: a query looks at the screen in front, which may be help or the palette.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from mlxkv.events import ChatSummary, FirstScreen
from mlxkv.text import clean
from mlxkv.tui.bars import Bar, Queued
from mlxkv.tui.prompt import Prompt
from mlxkv.tui.state import ChatState
from mlxkv.tui.transcript import Transcript
from mlxkv.tui.welcome import Welcome
from mlxkv.tui.wording import footer_text, gauge_text, short_name

if TYPE_CHECKING:
    from mlxkv.tui.picker import ChatPicker

LEVELS = {"": "", "warning": "yellow", "error": "red"}


class ChatView(Vertical):
    """Header, transcript (or welcome, or the list of chats), queue, activity, prompt, footer."""

    DEFAULT_CSS = """
    ChatView {
        height: 1fr;
        & #input { height: auto; border-top: solid $panel; background: $background; }
        & #sign { width: 3; color: $text-primary; }
    }
    """

    def __init__(self, first: FirstScreen) -> None:
        super().__init__()
        self.header, self.activity, self.footer = Bar(id="header"), Bar(id="activity"), Bar(id="footer")
        self.welcome, self.transcript, self.queued = Welcome(first), Transcript(), Queued(id="queued")
        self.prompt = Prompt(id="prompt")
        self.picker: ChatPicker | None = None
        self._tail: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.header
        yield self.welcome
        yield self.transcript
        yield self.queued
        yield self.activity
        with Horizontal(id="input"):
            yield Static(" ❯ ", id="sign", markup=False)
            yield self.prompt
        yield self.footer

    def sync(self, state: ChatState) -> None:
        """Take what changed in the transcript."""
        change = state.take()
        if change.cleared:
            self.transcript.clear()
            self.close_picker()
        if change.cleared or change.settled or change.tail != self._tail:
            self.transcript.update_blocks(change.settled, change.tail)
            self._tail = list(change.tail)
        if state.picker is not None:
            self.open_picker(state.picker)
            state.picker = None

    def show(self, state: ChatState, hint: str) -> None:
        """Word everything around the transcript; `hint` is what a key or command has just said."""
        width = self.app.size.width
        empty, picking = len(self.transcript.lines) == 0, self.picker is not None
        self.welcome.display, self.transcript.display = empty and not picking, not empty and not picking
        self.welcome.show(state.model, state.is_ready, state.is_loading)
        self._show_header(state, width)
        self._show_activity(state, hint, width)
        why = "waiting for the current reply · ↑ to edit" if state.turn else "sent when the model is ready · ↑ to edit"
        self.queued.show([clean(text) for text in state.queue], why)
        keys = "^J newline  ^P menu " if width < 100 else "⏎ send  ^J newline  ? help  ^P menu "
        narrow = width < 60
        footer = footer_text(state.status, width - (2 if narrow else len(keys) + 3), narrow)
        self.footer.show(f" {footer}", "" if narrow else keys)

    def _show_header(self, state: ChatState, width: int) -> None:
        wide = width >= 100
        gauge, level = gauge_text(state.status, width)
        is_repo = state.model.count("/") == 1 and state.model[0] not in "./~"
        name = state.model if wide and is_repo else short_name(state.model)  # of a folder, its name says enough
        left = Text(" ").append("mlxkv", "bold").append(f"  {name}" if name else "")
        if state.title and not wide:
            left.append(f" · {state.title}")
        self.header.show(left, Text().append(f"{gauge} ", LEVELS[level]), state.title if wide else "")

    def _show_activity(self, state: ChatState, hint: str, width: int) -> None:
        left, right = state.activity(width)
        if hint:
            left, right = (left, hint) if left else (hint, "")
        elif not self.transcript.follow:
            right = "End ↓ to follow" if state.turn else "End ↓"
        self.activity.show(f" {left}" if left else "", f"{right} ")

    def open_picker(self, chats: tuple[ChatSummary, ...]) -> None:
        from mlxkv.tui.picker import ChatPicker

        self.close_picker()
        self.picker = ChatPicker(chats, time.time())
        self.mount(self.picker, before=self.queued)
        self.picker.focus()

    def close_picker(self) -> None:
        if self.picker is not None:
            self.picker.remove()
            self.picker = None
            self.prompt.focus()
