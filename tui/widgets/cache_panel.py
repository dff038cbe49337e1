"""The cache panel (F2): ring, speed, memory and disk in a few lines above the prompt. UI thread."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widget import Widget

from mlxkv.tui.state.gauges import EVICTED, FREE, LIVE, PINNED

_STYLES = {PINNED: "bold", LIVE: "", EVICTED: "dim", FREE: "dim"}


class Panel(Widget, can_focus=False):
    """Shows lines of figures."""

    DEFAULT_CSS = """
    Panel { height: auto; border-top: solid $panel; background: $background; color: $text; padding: 0 1; }
    """
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: tuple[str, ...] = ()

    def show(self, lines: Sequence[str]) -> None:
        """Repaint only if something changed."""
        new = tuple(lines)
        if new != self._lines:
            grown = len(new) != len(self._lines)
            self._lines = new
            self.refresh(layout=grown)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        return len(self._lines)

    def render(self) -> Text:
        text = Text("\n".join(self._lines), no_wrap=True, overflow="ellipsis")
        for sign, style in _STYLES.items():
            if style:
                text.highlight_regex(f"{sign}+", style)
        return text
