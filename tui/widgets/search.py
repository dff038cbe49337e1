"""Search inside a chat: its matches, the current one, and their lines. Pure; UI thread.

Rendered blocks are searched as shown, so a match may span lines; the rest of a long chat is searched in its source, and
rendered when a match there becomes the current one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxkv.text.folding import Wanted
from mlxkv.tui.markdown.wrap import Row
from mlxkv.tui.state.transcript.blocks import Block
from mlxkv.tui.widgets.line_layout import Cell, LineLayout

Span = tuple[int, int, int]  # row of the block, first character, end
Match = list[Span]  # one span per row that it touches


def shown_matches(rows: list[Row], wanted: Wanted) -> list[Match]:
    """Matches of `wanted` in rendered lines."""
    text, starts = "", []
    for row in rows:
        text += row.gap if starts else ""
        starts.append(len(text))
        text += row.text[row.margin :] if row.margin <= row.cell_length else ""
    out: list[Match] = []
    for begin, stop in wanted.places(text):
        spans = []
        for y, start in enumerate(starts):
            end = starts[y + 1] if y + 1 < len(starts) else len(text)
            first, last = max(begin, start), min(stop, end)
            if first < last:
                spans.append((y, first - start + rows[y].margin, last - start + rows[y].margin))
        out.append(spans)
    return out


@dataclass
class Finder:
    """Finds `wanted` in `lines`. The current match is the `which`-th in `cell`."""

    lines: LineLayout
    wanted: Wanted | None = None
    cell: Cell | None = None
    which: int = 0
    _cache: dict[int, tuple[object, list[Match] | int]] = field(default_factory=dict)

    def search(self, words: str, top: int) -> bool:
        """Search for `words` from line `top` on, else upwards; returns whether there is a match."""
        self.wanted, self.cell, self._cache = Wanted.of(words), None, {}
        if self.wanted is None or not len(self.lines):
            return False
        index = self.lines.index_at(top)
        return self._from(index, len(self.lines), 1) or self._from(index - 1, -1, -1)

    def move(self, step: int) -> bool:
        """Go to the next match (1) or the previous one (-1), wrapping around at the ends."""
        index = self.lines.find(self.cell) if self.cell else None
        if index is None or self.cell is None:
            return self.wanted is not None and self._from(0, len(self.lines), 1)
        if 0 <= self.which + step < self._count(self.cell):
            self.which += step
            return True
        if step > 0:
            return self._from(index + 1, len(self.lines), 1) or self._from(0, len(self.lines), 1)
        return self._from(index - 1, -1, -1) or self._from(len(self.lines) - 1, -1, -1)

    def _from(self, index: int, end: int, step: int) -> bool:
        """Go to the first match from block `index` on; skip those that are in the source only."""
        while index < end if step > 0 else index > end:
            if self._count(self.lines.cell(index)):
                before = len(self.lines)
                parts = self.lines.expand(index)
                if parts > 1:
                    end += len(self.lines) - before if step > 0 else 0
                    index += parts - 1 if step < 0 else 0
                self.lines.render_block(index)
                cell = self.lines.cell(index)
                if count := self._count(cell):
                    self.cell, self.which = cell, 0 if step > 0 else count - 1
                    return True
            index += step
        return False

    def _count(self, cell: Cell) -> int:
        found = self.matches(cell)
        return found if isinstance(found, int) else len(found)

    def matches(self, cell: Cell) -> list[Match] | int:
        """The matches in a rendered block; for others, their number."""
        if self.wanted is None:
            return 0
        stamp: object = cell.strips if cell.strips is not None else cell.block
        known = self._cache.get(id(cell))
        if known is None or known[0] is not stamp:
            found = self._search(cell.block, cell.strips)
            known = self._cache[id(cell)] = (stamp, found)
        return known[1]

    def _search(self, block: Block, strips: object) -> list[Match] | int:
        assert self.wanted is not None
        if isinstance(strips, list):
            return shown_matches([row for row in strips if isinstance(row, Row)], self.wanted)
        return sum(1 for _ in self.wanted.places(block.text))

    def numbers(self) -> tuple[int, int]:
        """The number of the current match, from 1, and the number of matches."""
        at = total = 0
        for index in range(len(self.lines)):
            cell = self.lines.cell(index)
            if cell is self.cell:
                at = total + self.which + 1
            total += self._count(cell)
        return at, total

    def spans(self, cell: Cell, row: int) -> list[tuple[int, int, bool]]:
        """Spans to highlight in row `row` of `cell`: first character, end, whether it is the current match."""
        found = self.matches(cell)
        if isinstance(found, int):
            return []
        return [
            (first, last, cell is self.cell and i == self.which)
            for i, spans in enumerate(found)
            for y, first, last in spans
            if y == row
        ]

    def line(self) -> int | None:
        """The line of the current match."""
        index = self.lines.find(self.cell) if self.cell else None
        if index is None or self.cell is None:
            return None
        found = self.matches(self.cell)
        row = found[self.which][0][0] if isinstance(found, list) and self.which < len(found) else 0
        return self.lines.start(index) + row
