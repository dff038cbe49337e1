"""Everything on the main screen, from top to bottom, and which of it is shown when. No decisions, no engine. UI thread.

The widgets are kept, not queried: a query looks at the screen in front, which may be help or the palette.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static

from mlxkv.protocol.events import FirstScreen
from mlxkv.text.clean import clean
from mlxkv.tui.state.chat_list import latest_first
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.choices import Listing
from mlxkv.tui.state.gauges import narrow_lines, wide_lines
from mlxkv.tui.state.labels import footer_text, gauge_text, short_name
from mlxkv.tui.widgets.bars import Bar, Queued
from mlxkv.tui.widgets.cache_panel import Panel
from mlxkv.tui.widgets.prompt import Prompt
from mlxkv.tui.widgets.transcript import Transcript
from mlxkv.tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from mlxkv.tui.widgets.picker import Picker
    from mlxkv.tui.widgets.sidebar import Sidebar

KEYS = ("⏎ send  ^J newline  ^B chats  F2 cache  ^P menu ", "^J newline  ^B chats  ^P menu ", "^J newline  ^P menu ")
LEVELS = {"": "", "warning": "yellow", "error": "red"}
SIDEBAR_WIDTH = 31  # as in its CSS: it is imported when it is first opened
ROOM_FOR_SIDEBAR = 100  # columns
ROOM_FOR_FIGURES = 28  # rows


class ChatView(Vertical):
    """Header; sidebar beside transcript (or welcome, or a list), panel, queue, activity, prompt, footer."""

    DEFAULT_CSS = """
    ChatView {
        height: 1fr;
        & #body { height: 1fr; }
        & #main { width: 1fr; height: 1fr; }
        & #input { height: auto; border-top: solid $panel; background: $background; }
        & #sign { width: 3; color: $text-primary; }
    }
    """

    class Searched(Message):
        """What is searched is no longer the same text."""

    def __init__(self, first: FirstScreen) -> None:
        super().__init__()
        self.header, self.activity, self.footer = Bar(id="header"), Bar(id="activity"), Bar(id="footer")
        self.welcome, self.transcript, self.queued = Welcome(first), Transcript(), Queued(id="queued")
        self.panel = Panel(id="panel")
        self.prompt = Prompt(id="prompt")
        self.body, self.main = Horizontal(id="body"), Vertical(id="main")
        self.sidebar: Sidebar | None = None
        self.picker: Picker | None = None
        self.wants_panel = False
        self._tail: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.header
        with self.body, self.main:
            yield self.welcome
            yield self.transcript
            yield self.panel
            yield self.queued
            yield self.activity
            with Horizontal(id="input"):
                yield Static(" ❯ ", id="sign", markup=False)
                yield self.prompt
            yield self.footer

    def sync(self, state: ChatState) -> None:
        """Take what changed in the transcript, and the list or the text that the state has for us."""
        change = state.take()
        place = self.transcript.place() if change.stays else None
        if change.cleared:
            self.transcript.clear()
            self.close_picker()
        if change.dropped is not None:
            self.transcript.drop(change.dropped)
        if change.cleared or change.settled or change.tail != self._tail:
            self.transcript.update_blocks(change.settled, change.tail, change.answer)
            self._tail = list(change.tail)
            if place is not None:
                self.transcript.go_to(*place)
            if self.transcript.finder.wanted is not None:
                self.post_message(self.Searched())
        if state.listing is not None:
            self.open_picker(state.listing)
            state.listing = None
        if state.put is not None:
            self.prompt.put(state.put)
            state.put = None
        if state.returned is not None:
            self.prompt.put_back(state.returned, apart=True)
            state.returned = None

    def show(self, state: ChatState, hint: str) -> None:
        """Word everything around the transcript; `hint` is what a key or command has just said."""
        size = self.app.size
        sidebar = self.sidebar is not None and size.width >= ROOM_FOR_SIDEBAR
        if self.sidebar is not None:
            self.sidebar.display = sidebar
        width = size.width - (SIDEBAR_WIDTH if sidebar else 0)
        empty, picking = len(self.transcript.lines) == 0, self.picker is not None
        self.welcome.display, self.transcript.display = empty and not picking, not empty and not picking
        titles = tuple(chat.title for chat in latest_first(state.chats)[:3]) if self.welcome.display else ()
        self.welcome.show(state.model, state.is_ready, state.is_loading, titles)
        self._show_header(state, size.width)
        self._show_activity(state, hint, width)
        self._show_figures(state, sidebar, width)
        why = "waiting for the current reply" if state.turn else "sent when the model is ready"
        why = "sent after your next message" if state.is_held else why
        self.queued.show([clean(text[:1000]) for text in state.queue], f"{why} · ↑ to edit")
        self._show_footer(state, width)

    def _show_footer(self, state: ChatState, width: int) -> None:
        """What the session is comes before what keys there are."""
        if width < 60:
            self.footer.show(f" {footer_text(state.status, width - 2, narrow=True)}")
            return
        room = width - len(footer_text(state.status, 1000, saving=state.saving)) - 3
        keys = next((keys for keys in KEYS if len(keys) <= room), KEYS[-1])
        self.footer.show(f" {footer_text(state.status, width - len(keys) - 3, saving=state.saving)}", keys)

    def _show_header(self, state: ChatState, width: int) -> None:
        wide = width >= 100
        gauge, level = gauge_text(state.status, width)
        is_repo = state.model.count("/") == 1 and state.model[0] not in "./~"
        name = state.model if wide and is_repo else short_name(state.model)  # of a folder, its name says enough
        left = Text(" ").append("mlxkv", "bold").append(f"  {name}" if name else "")
        fork = f" ⑂{state.status.fork}" if state.status.fork else ""
        title = clean(state.title) + fork + (" · read-only" if state.read_only else "")
        if title and not wide:
            left.append(f" · {title}")
        self.header.show(left, Text().append(f"{gauge} ", LEVELS[level]), title if wide else "")

    def _show_activity(self, state: ChatState, hint: str, width: int) -> None:
        left, right = state.activity(width)
        if self.picker is not None and not hint:
            right = self.picker.listing.hint
        if hint:
            left, right = (left, hint) if left else (hint, "")
        elif self.picker is None and not self.transcript.follow:
            right = "End ↓ to follow" if state.turn else "End ↓"
        self.activity.show(f" {left}" if left else "", f"{right} ")

    def _show_figures(self, state: ChatState, sidebar: bool, width: int) -> None:
        """The panel, if it is wanted; the same figures under the chats, if there is room."""
        size, now = self.app.size, state.clock()
        self.panel.display = self.wants_panel and size.height >= 16 and size.width >= 60
        if self.panel.display:
            self.panel.show(wide_lines(state.status, state.meter.rates(now), state.meter.prefill_tps, width - 2))
        if self.sidebar is not None and sidebar:
            self.sidebar.show(state.chats, state.session_id, state.today())
            room = size.height >= ROOM_FOR_FIGURES and not self.panel.display
            lines = narrow_lines(state.status, state.meter.rates(now), state.meter.prefill_tps, 27) if room else []
            self.sidebar.show_figures(lines)

    # -- what comes and goes -----------------------------------------------------------------------------

    def open_sidebar(self) -> Sidebar:
        from mlxkv.tui.widgets.sidebar import Sidebar

        self.sidebar = Sidebar()
        self.body.mount(self.sidebar, before=self.main)
        return self.sidebar

    def close_sidebar(self) -> None:
        if self.sidebar is not None:
            self.sidebar.remove()
            self.sidebar = None
            self.prompt.focus()

    def open_picker(self, listing: Listing) -> None:
        from mlxkv.tui.widgets.picker import Picker

        self.close_picker()
        self.picker = Picker(listing)
        self.main.mount(self.picker, before=self.panel)

    def close_picker(self) -> None:
        if self.picker is not None:
            self.picker.remove()
            self.picker = None
            self.prompt.focus()
