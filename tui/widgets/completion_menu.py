"""The completion menu above the prompt: commands, their arguments, files, earlier prompts. UI thread."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual.events import Click
from textual.widgets import Static

from mlxkv.text.clean import clean
from mlxkv.tui.state.lists.choices import cut
from mlxkv.tui.state.prompt.completion import Menu

ROWS = 8


class MenuList(Static):
    """Draws a menu, or a note instead. A click calls `picked` with the entry's index."""

    DEFAULT_CSS = """
    MenuList {
        height: auto; max-height: 9; display: none; padding: 0 1; background: $background; color: $text;
        &.-note { padding: 0 1 0 2; color: $text-muted; }  /* every line of it, below the entries of a menu */
    }
    """

    def __init__(self, picked: Callable[[int], None]) -> None:
        super().__init__("", markup=False)
        self._picked = picked
        self._menu: Menu | None = None

    def show(self, menu: Menu | None, note: str = "") -> None:
        self._menu = menu
        self.display = bool(menu or note)
        self.set_class(menu is None, "-note")
        if menu is not None:
            self.update(self._drawn(menu))
        elif note:
            is_error = note.startswith("✗")  # it says what to do at its end
            self.update(Text(clean(note), no_wrap=not is_error, overflow="fold" if is_error else "ellipsis"))

    def _drawn(self, menu: Menu) -> Text:
        width = max(20, self.app.size.width - 4)
        first = _first_row(menu)
        shown = menu.entries[first : first + ROWS]
        column = min(width // 2, max((cell_len(_line(entry.label)) for entry in shown), default=0) + 2)
        text = Text(no_wrap=True, overflow="ellipsis")
        if menu.title:
            text.append(f" {menu.title}", "dim")
        for i, entry in enumerate(shown, first):
            label = _line(entry.label)
            if entry.note:
                label = set_cell_size(cut(label, column - 1), column)
            if text:
                text.append("\n")
            text.append("▌" if i == menu.at else " ").append(label, "bold" if i == menu.at else "")
            text.append(_line(entry.note), "dim")
        if not shown:
            text.append("  nothing found", "dim")
        return text

    def on_click(self, event: Click) -> None:
        if self._menu is not None:
            row = event.y - bool(self._menu.title)
            if 0 <= row < min(ROWS, len(self._menu.entries)):
                self._picked(_first_row(self._menu) + row)


def _first_row(menu: Menu) -> int:
    """The first visible entry."""
    return max(0, min(menu.at - ROWS // 2, len(menu.entries) - ROWS))


def _line(text: str) -> str:
    return " ".join(clean(text[:500]).split())
