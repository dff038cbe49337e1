"""One-line bars around the transcript, and the queue above the prompt. UI thread."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widget import Widget

from mlxkv.text.clean import clean
from mlxkv.tui.state.lists.choices import cut

MIN_MIDDLE = 8  # cells; less is not worth showing


class Bar(Widget, can_focus=False):
    """Text at the left, in the middle and at the right; where they do not fit, the middle is cut, then the left."""

    DEFAULT_CSS = """
    Bar { height: 1; background: $background; color: $text-muted; }
    Bar#header { height: 2; color: $text; border-bottom: solid $panel; }
    """
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._parts = (Text(), Text(), Text())

    def show(self, left: Text | str, right: Text | str = "", middle: Text | str = "") -> None:
        """Repaint only if something changed. A string may come from anywhere; a Text is the caller's own."""
        parts = tuple(Text(clean(p)) if isinstance(p, str) else p for p in (left, middle, right))
        if [(p.plain, p.spans) for p in parts] != [(p.plain, p.spans) for p in self._parts]:
            self._parts = (parts[0], parts[1], parts[2])
            self.refresh()

    def render(self) -> Text:
        left, middle, right = (part.copy() for part in self._parts)
        width = self.content_size.width
        limit = width - right.cell_len - 1
        if left.cell_len > limit:
            left.truncate(max(0, limit), overflow="ellipsis")
        line = left
        first, last = line.cell_len + 2, width - right.cell_len - 1  # the middle is between these
        if middle.plain and last - first >= min(MIN_MIDDLE, middle.cell_len):
            middle.truncate(last - first, overflow="ellipsis")
            start = min(max(first, (width - middle.cell_len) // 2), last - middle.cell_len)
            line.append(" " * (start - line.cell_len)).append_text(middle)
        line.append(" " * max(0, width - line.cell_len - right.cell_len)).append_text(right)
        line.no_wrap, line.overflow = True, "crop"
        return line


class Queued(Widget, can_focus=False):
    """Queued prompts, dim, one line each."""

    DEFAULT_CSS = """
    Queued { height: auto; max-height: 5; background: $background; color: $text; display: none; margin-top: 1; }
    """
    ALLOW_SELECT = False
    SHOWN = 3

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: tuple[str, ...] = ()

    def show(self, prompts: Sequence[str], why: str) -> None:
        """`why`, the line below the prompts, says what they wait for."""
        lines = tuple(f" ❯ {' '.join(prompt.split())}" for prompt in prompts[-self.SHOWN :])
        more = len(prompts) - len(lines)
        lines = (*lines, f"   {why}" + (f" · {more} more" if more > 0 else "")) if lines else ()
        if lines != self._lines:
            self._lines = lines
            self.display = bool(lines)
            self.refresh(layout=True)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        return len(self._lines)

    def render(self) -> Text:
        width = max(4, self.content_size.width)
        return Text("\n".join(cut(line, width) for line in self._lines), style="dim", no_wrap=True)
