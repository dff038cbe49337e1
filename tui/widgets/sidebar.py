"""The sidebar (Ctrl+B): chats by date with their forks, and below them speed, memory and disk. UI thread.

It posts requests, the screen acts on them. While it has the focus, the letters in `KEYS` are commands, and any other is
typed into the prompt; after `/` they search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from mlxkv.protocol.status import ChatSummary
from mlxkv.tui.state.lists.chat_list import Entry, listed_as, sidebar_entries
from mlxkv.tui.widgets.own_keys import own_action

WIDTH = 31  # with its rule at the right
KEYS = "⏎ open · r rename · d delete · x export · / search · esc"
SEARCH_KEYS = "⏎ open · esc all chats"
Action = Literal["open", "rename", "delete", "export", "leave"]


class Sidebar(Vertical):
    """`show` may be called with every frame: it repaints changes only."""

    DEFAULT_CSS = """
    Sidebar {
        dock: left;
        width: 31;
        display: none;
        border-right: solid $panel;
        background: $background;
        padding: 0 0 0 1;
        & #sidebar-title { height: 1; text-style: bold; color: $text; }
        & OptionList, & OptionList:focus {
            height: 1fr;
            border: none;
            padding: 0;
            background: $background;
            background-tint: $background 0%;
            scrollbar-size-vertical: 1;
            & > .option-list--option-disabled { color: $text-muted; }
        }
        & OptionList:nocolor > .option-list--option-highlighted,
        & OptionList:nocolor:focus > .option-list--option-highlighted { text-style: bold underline; }
        & #sidebar-legend { height: 1; color: $text-muted; }
        & #sidebar-figures { height: auto; border-top: solid $panel; color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "request('rename')", "Rename", id="chats.rename"),
        Binding("d,delete", "request('delete')", "Delete", id="chats.delete"),
        Binding("x", "request('export')", "Export", id="chats.export"),
        Binding("slash", "search", "Search", id="chats.search"),
        Binding("escape,q", "leave", "Back to the prompt", id="chats.leave"),
    ]

    class ActionRequested(Message):
        def __init__(self, action: Action, session_id: str = "") -> None:
            super().__init__()
            self.action, self.session_id = action, session_id

    def __init__(self, type_into_prompt: Callable[[str], None]) -> None:
        super().__init__()
        self._type = type_into_prompt
        self._title = Static("Chats", id="sidebar-title", markup=False)
        self._list = OptionList()
        self._legend = Static("● instant resume ○ prefills", id="sidebar-legend", markup=False)
        self._figures = Static("", id="sidebar-figures", markup=False)
        self._shown: tuple[object, ...] = ()
        self._entries: list[Entry] = []
        self._chats: tuple[ChatSummary, ...] = ()
        self._words: str | None = None  # None: not searching
        self._open: str | None = None
        self._current: str | None = None  # the chat in the list that the open session belongs to
        self._moved_to = ""  # the open chat when the cursor was last moved to it
        self._now = float("-inf")
        self._figures_shown = "?"

    def compose(self) -> ComposeResult:
        yield self._title
        yield self._list
        yield self._legend
        yield self._figures

    def show(self, chats: tuple[ChatSummary, ...], current: str | None, now: float) -> None:
        if chats is self._chats and current == self._open and now - self._now < 60:
            return  # called with every frame: a thousand chats are too many to format each time
        self._chats, self._open, self._now = chats, current, now
        self._current = listed_as(chats, current)
        self._fill()

    def show_figures(self, lines: Sequence[str]) -> None:
        text = "\n".join(lines)
        if text != self._figures_shown:  # an update lays the screen out
            self._figures_shown = text
            self._figures.display = bool(lines)
            self._figures.update(Text(text, no_wrap=True))

    def focus_list(self) -> None:
        self._list.focus()

    @property
    def keys(self) -> str:
        """What its keys do now; "" without the focus."""
        return "" if not self.has_focus_within else KEYS if self._words is None else SEARCH_KEYS

    def _fill(self) -> None:
        width = WIDTH - 4
        entries = sidebar_entries(self._chats, self._words or "", self._current, self._now, width)
        state = (tuple(entries), self._words)
        if state == self._shown:
            return
        chosen = self._chosen()
        self._shown, self._entries = state, entries
        self._list.clear_options()
        self._list.add_options(Option(Text(e.text, no_wrap=True), disabled=not e.session_id) for e in entries)
        if self._current != self._moved_to and any(e.session_id == self._current for e in entries if self._current):
            chosen = self._moved_to = self._current or ""
        chats = [i for i, entry in enumerate(entries) if entry.session_id]
        self._list.highlighted = next(
            (i for i in chats if entries[i].session_id == chosen), chats[0] if chats else None
        )
        title = "Chats" if self._words is None else f"Chats · {self._words}▏"
        self._title.update(Text(title if self._words is not None else f"{title}{'/ to search':>{WIDTH - 8}}"))

    def _chosen(self) -> str:
        at = self._list.highlighted
        return self._entries[at].session_id if at is not None and at < len(self._entries) else ""

    def action_request(self, action: Action) -> None:
        if chosen := self._chosen():
            self.post_message(self.ActionRequested(action, chosen))

    def action_search(self) -> None:
        self._words = ""
        self._fill()

    def action_leave(self) -> None:
        if self._words is not None:
            self._words = None
            self._fill()
        else:
            self.post_message(self.ActionRequested("leave"))

    def on_key(self, event: Key) -> None:
        if self._words is None:
            bound = own_action(self, event.key)
            if bound == "search":  # here: the letters that follow may arrive before a binding's action has run
                self.action_search()
            elif event.is_printable and event.character and bound is None:
                self._type(event.character)
            else:
                return
            event.stop()
            event.prevent_default()
            return
        if event.key == "backspace":
            self._words = self._words[:-1]
        elif event.key == "ctrl+u":
            self._words = ""
        elif event.is_printable and event.character:
            self._words += event.character
        else:
            return
        event.stop()
        event.prevent_default()
        self._fill()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable the commands while words are typed."""
        return self.has_focus_within and (action == "leave" or self._words is None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if chosen := self._chosen():
            self._words = None
            self.post_message(self.ActionRequested("open", chosen))
