"""Where every line of the transcript is. Pure bookkeeping, no widget; UI thread.

Heights are exact for what was on the screen and guesses for the rest until somebody asks (`settle`), so that opening a
chat or changing the width costs the visible part only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.strip import Strip

from mlxkv.tui.blocks import Block
from mlxkv.tui.render import guess_height

Render = Callable[[Block, int], list[Strip]]


@dataclass(slots=True)
class _Cell:
    block: Block
    height: int
    strips: list[Strip] | None = None  # None: `height` is a guess


class Layout:
    """An ordered list of blocks and their lines at one width. The last `num_tail` blocks may still change."""

    def __init__(self, render: Render, width: int = 80) -> None:
        self._render, self.width = render, width
        self._cells: list[_Cell] = []
        self._starts = [0]  # of the first blocks; those after it are not added up yet
        self._num_tail = 0
        self._todo = 0  # cells at this index and above are settled

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def blocks(self) -> list[Block]:
        return [cell.block for cell in self._cells]

    def clear(self) -> None:
        self._cells, self._starts, self._num_tail, self._todo = [], [0], 0, 0

    def update(self, settled: Sequence[Block], tail: Sequence[Block]) -> None:
        """Replace the tail by blocks that are final and a new tail. Lines of equal blocks are kept."""
        first = len(self._cells) - self._num_tail
        old = {cell.block: cell for cell in self._cells[first:]}
        del self._cells[first:]
        for block in (*settled, *tail):
            self._cells.append(old.pop(block, None) or _Cell(block, guess_height(block, self.width)))
        self._num_tail = len(tail)
        self._forget(first)
        self._todo = max(self._todo, len(self._cells))

    def reset(self, width: int, render: Render | None = None) -> None:
        """Another width or look: every height is a guess again."""
        self._render = render or self._render
        self.width = width
        for cell in self._cells:
            cell.strips, cell.height = None, guess_height(cell.block, width)
        self._forget(0)
        self._todo = len(self._cells)

    # -- lines -------------------------------------------------------------------------------------------

    def start(self, index: int) -> int:
        """The first line of block `index`; of one past the last, the height of everything."""
        for i in range(len(self._starts) - 1, index):
            self._starts.append(self._starts[i] + self._cells[i].height)
        return self._starts[index]

    @property
    def height(self) -> int:
        return self.start(len(self._cells))

    @property
    def is_exact(self) -> bool:
        """No height is a guess any more."""
        return all(cell.strips is not None for cell in self._cells)

    def index_at(self, y: int) -> int:
        """The block that line `y` is in, clamped."""
        _ = self.height
        return max(0, min(bisect_right(self._starts, y) - 1, len(self._cells) - 1))

    def line(self, y: int) -> Strip:
        """Line `y`, which must have been settled to be exact; blank outside."""
        if not 0 <= y < self.height:
            return Strip.blank(0)
        index = self.index_at(y)
        cell = self._cells[index]
        strips = cell.strips if cell.strips is not None else self._render(cell.block, self.width)
        row = y - self._starts[index]
        return strips[row] if row < len(strips) else Strip.blank(0)

    # -- making guesses exact ----------------------------------------------------------------------------

    def settle(self, index: int) -> int:
        """Render block `index` if it is not; returns by how many lines its height changed."""
        cell = self._cells[index]
        if cell.strips is not None:
            return 0
        cell.strips = self._render(cell.block, self.width)
        change = len(cell.strips) - cell.height
        if change:
            cell.height = len(cell.strips)
            self._forget(index)
        return change

    def settle_end(self, lines: int) -> None:
        """Make the last `lines` lines exact."""
        for index in range(len(self._cells) - 1, -1, -1):
            self.settle(index)
            lines -= self._cells[index].height
            if lines <= 0:
                return

    def settle_view(self, top: int, lines: int) -> None:
        """Make the `lines` lines from `top` on exact; `top` itself stays where it is."""
        if not self._cells:
            return
        index = self.index_at(top)
        while index < len(self._cells) and self.start(index) < top + lines:
            self.settle(index)
            index += 1

    def settle_next(self) -> int | None:
        """The next block to settle, from the end up; None when all are."""
        while self._todo > 0:
            self._todo -= 1
            if self._todo < len(self._cells) and self._cells[self._todo].strips is None:
                return self._todo  # the caller settles it: it knows what is above the view
        return None

    def _forget(self, index: int) -> None:
        """Starts after block `index` are no longer true."""
        del self._starts[index + 1 :]
