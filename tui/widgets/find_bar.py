"""The input for searching in the chat; the screen handles its text and its keys. UI thread."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import Key
from textual.widgets import Input, Static

from mlxkv.text.clean import clean
from mlxkv.tui.widgets.own_keys import own_action


class FindInput(Input):
    """Deletes and moves in the order of keys. Textual sends those actions to the app, and letters overtake them."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+f", "select_all", "Search anew", id="find.new")]

    async def _on_key(self, event: Key) -> None:
        action = None if event.is_printable else own_action(self, event.key)
        if action is not None and action.startswith(("delete_", "cursor_")):
            event.stop()
            event.prevent_default()
            await self.run_action(action)
        else:
            await super()._on_key(event)


class FindBar(Horizontal):
    """Mounted while searching; the screen searches at each letter, and shows `KEYS`."""

    KEYS: ClassVar = "⏎ next · shift+⏎ previous · esc close"

    DEFAULT_CSS = """
    FindBar {
        height: 1;
        background: $panel;
        & .find-sign { width: 3; color: $text-primary; }
        & Input, & Input:focus { width: 1fr; height: 1; border: none; padding: 0; background: $panel; }
        & .find-count { width: auto; padding: 0 1; color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "screen.close_find_bar", "Close", id="find.close"),
        Binding("enter,down,ctrl+n", "screen.match(1)", "Next match", id="find.next"),
        Binding("shift+enter,up,ctrl+p", "screen.match(-1)", "Previous match", id="find.previous"),
    ]

    def __init__(self, words: str = "") -> None:
        super().__init__()
        self.input = FindInput(clean(words), placeholder="Search in this chat")
        self.is_opening = True  # until it has the focus
        self._count = Static("", classes="find-count", markup=False)

    def compose(self) -> ComposeResult:
        yield Static(" / ", classes="find-sign", markup=False)
        yield self.input
        yield self._count

    def on_mount(self) -> None:
        self.input.focus()

    def on_descendant_focus(self) -> None:
        self.is_opening, self.input.select_on_focus = False, True

    def type(self, text: str) -> None:
        """Take what was typed while it opens."""
        self.input.select_on_focus = False  # the next letter would replace these
        self.input.value += text
        self.input.cursor_position = len(self.input.value)

    def show(self, at: int, total: int) -> None:
        """Show `3/17`, or "no match"."""
        self._count.update(f"{at:,}/{total:,}" if total else "no match" if self.input.value.strip() else "")
