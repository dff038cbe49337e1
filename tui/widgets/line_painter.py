"""Lines as drawn: in the width and colours of the screen, with selection, matches and message cursor. UI thread.

Owns a cache of drawn lines, so that a line that only moved costs nothing. `line_layout.py` has the
lines, `line_view.py` decides which are visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, split_graphemes
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region
from textual.selection import Selection
from textual.strip import Strip

from mlxkv.tui.widgets.line_layout import LineLayout
from mlxkv.tui.widgets.search import Finder

MAX_CACHED = 4000  # lines
MATCH, CURRENT = Style(reverse=True), Style(color="black", bgcolor="bright_yellow", bold=True)
CURSOR = "▌"


class LinePainter:
    """`accent` is the colour of the cursor at the left of one message, `marked`."""

    def __init__(self, lines: LineLayout, finder: Finder, accent: str) -> None:
        self.lines, self.finder, self.accent = lines, finder, accent
        self.marked: int | None = None
        self._base, self._width = Style(), 0
        self._drawn: dict[int, tuple[Strip, Strip]] = {}  # by line: the strip it was made from, the drawn one

    def forget(self) -> None:
        """Drop the cache, because the mark, the matches or the lines have changed."""
        self._drawn.clear()

    def mark(self, message: int | None) -> None:
        self.marked = message
        self.forget()

    def begin(self, base: Style, width: int) -> None:
        """Begin a frame; `base` is the style of the background."""
        if (base, width) != (self._base, self._width) or len(self._drawn) > MAX_CACHED:
            self._base, self._width = base, width
            self.forget()

    def line(self, y: int, selection: Selection | None, selected: Style) -> Strip:
        """Draw line `y`, its selected part in the style `selected`."""
        strip = self.lines.line(y)
        span = selection.get_span(y) if selection is not None else None
        known = self._drawn.get(y)
        if known is not None and known[0] is strip and span is None:
            return known[1]
        out = self._draw(strip, y)
        if span is not None:
            return paint(out, strip.text, *span, selected)
        self._drawn[y] = strip, out
        return out

    def _draw(self, strip: Strip, y: int) -> Strip:
        out = self._fit(strip, y)
        if self.marked is None and self.finder.wanted is None:
            return out
        plain = strip.text
        index = self.lines.index_at(y)
        cell = self.lines.cell(index) if 0 <= y < self.lines.height else None
        if cell and self.finder.wanted is not None:
            for first, last, is_current in self.finder.spans(cell, y - self.lines.start(index)):
                out = paint(out, plain, first, last, CURRENT if is_current else MATCH)
        if cell and cell.block.message == self.marked and (plain.strip() or y > self.lines.start(index)):
            mark = Segment(CURSOR, self._base + Style.parse(self.accent))
            out = Strip.join([Strip([mark]), out.crop(1)])
        return out

    def _fit(self, strip: Strip, y: int) -> Strip:
        """Give a line the width of the view, and each segment its offset for the mouse. In one go: strips are slow."""
        base, width, x = self._base, self._width, 0
        if strip.cell_length > width:
            strip = strip.crop(0, width)
        segments: list[Segment] = []
        for text, style in _split_at_joined_emoji(strip):
            offset = Style.from_meta({"offset": (x, y)})
            segments.append(Segment(text, (base + style if style else base) + offset))
            x += len(text)
        if strip.cell_length < width:
            segments.append(Segment(" " * (width - strip.cell_length), base + Style.from_meta({"offset": (x, y)})))
        return Strip(segments, width)


def _split_at_joined_emoji(strip: Strip) -> Iterator[tuple[str, Style | None]]:
    """The segments of a line, split after joined emoji: Textual counts the offset in a segment by characters."""
    for text, style, _ in strip:
        start = 0
        if "\u200d" in text:
            for first, last, _ in split_graphemes(text)[0]:
                if "\u200d" in text[first:last]:
                    yield text[start:last], style
                    start = last
        if start < len(text):
            yield text[start:], style


def cropped(
    strips: list[Strip], crop: Region, width: int, filters: Sequence[LineFilter], background: Color
) -> list[Strip]:
    """Apply filters (theme, NO_COLOR) and the columns of `crop`, as Textual does with the lines of a widget."""
    for line_filter in filters:
        strips = [strip.apply_filter(line_filter, background) for strip in strips]
    left, right = crop.column_span
    return strips if (left, right) == (0, width) else [strip.crop(left, right) for strip in strips]


def paint(strip: Strip, plain: str, start: int, end: int, style: Style) -> Strip:
    """Style characters `start` to `end` (-1: the end of the line); `strip` counts cells, and may be shorter."""
    left = cell_len(plain[:start])
    right = min(strip.cell_length, cell_len(plain) if end == -1 else cell_len(plain[:end]))
    if left >= right:
        return strip
    before, middle, after = strip.divide([left, right, strip.cell_length])
    return Strip.join([before, Strip(Segment.apply_style(middle, post_style=style), middle.cell_length), after])
