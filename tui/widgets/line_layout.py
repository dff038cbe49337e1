"""Where every line of the transcript is. Pure bookkeeping, no widget; UI thread.

Heights are exact for what was on the screen and guesses for the rest until somebody asks (`settle`), so that opening a
chat or changing the width costs the visible part only. For the same reason a whole reply is one block until it comes
into view, and is cut into its parts then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from textual.strip import Strip

from mlxkv.tui.markdown.block_renderer import guess_height
from mlxkv.tui.markdown.stream_splitter import split
from mlxkv.tui.state.blocks import Block, Kind

Render = Callable[[Block, int], Sequence[Strip]]


@dataclass(slots=True, eq=False)
class Cell:
    block: Block
    height: int
    strips: Sequence[Strip] | None = None  # None: `height` is a guess


class Layout:
    """An ordered list of blocks and their lines at one width. The last `num_tail` blocks may still change."""

    def __init__(self, render: Render, width: int = 80) -> None:
        self._render, self.width = render, width
        self._cells: list[Cell] = []
        self._starts = [0]  # of the first blocks; those after it are not added up yet
        self._num_tail = 0

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def blocks(self) -> list[Block]:
        return [cell.block for cell in self._cells]

    def cell(self, index: int) -> Cell:
        return self._cells[index]

    def find(self, cell: Cell) -> int | None:
        """Where `cell` is now; None if it is gone."""
        return next((i for i, other in enumerate(self._cells) if other is cell), None)

    def clear(self) -> None:
        self._cells, self._starts, self._num_tail = [], [0], 0

    def update(self, settled: Sequence[Block], tail: Sequence[Block]) -> None:
        """Replace the tail by blocks that are final and a new tail. Lines of equal blocks are kept.

        A block that grew keeps its cell, so that what is remembered by cell (a match, a place) goes on with it.
        """
        first = len(self._cells) - self._num_tail
        before = self._cells[first:]
        old = {cell.block: cell for cell in before}
        del self._cells[first:]
        for i, block in enumerate((*settled, *tail)):
            cell = old.pop(block, None)
            if cell is None and i < len(before) and before[i].block.kind is block.kind:
                cell = old.pop(before[i].block, None)
                if cell is not None:
                    cell.strips, cell.height = None, guess_height(block, self.width)
            cell = cell or Cell(block, guess_height(block, self.width))
            cell.block = block  # where it is equal, its source may be longer
            self._cells.append(cell)
        self._num_tail = len(tail)
        self._forget(first)

    def change(self, index: int, block: Block) -> None:
        """Another block in the place of block `index`."""
        self._cells[index] = Cell(block, guess_height(block, self.width))
        self._forget(index)

    def remove(self, message: int) -> None:
        """All blocks of a message."""
        tail = self._cells[len(self._cells) - self._num_tail :]
        self._num_tail -= sum(cell.block.message == message for cell in tail)
        self._cells = [cell for cell in self._cells if cell.block.message != message]
        self._forget(0)

    def reset(self, width: int, render: Render | None = None) -> None:
        """Another width or look: every height is a guess again."""
        self._render = render or self._render
        self.width = width
        for cell in self._cells:
            cell.strips, cell.height = None, guess_height(cell.block, width)
        self._forget(0)

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
    def tail_start(self) -> int:
        """The first line that may still change."""
        return self.start(len(self._cells) - self._num_tail)

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

    def expand(self, index: int) -> int:
        """Cut block `index` into its parts if it is a whole reply; returns how many blocks it is now."""
        block = self._cells[index].block
        if block.kind is not Kind.REPLY:
            return 1
        parts = [replace(part, message=block.message) for part in split(block.text)]
        parts = parts or [Block(Kind.MARKDOWN, "", tight=True, message=block.message, source=block.text)]
        self._cells[index : index + 1] = [Cell(part, guess_height(part, self.width)) for part in parts]
        self._forget(index)
        return len(parts)

    def settle(self, index: int) -> int:
        """Render block `index`, or its first part, if it is not; returns by how many lines its height changed."""
        cell = self._cells[index]
        if cell.strips is not None:
            return 0
        before, parts = cell.height, self.expand(index)
        cell = self._cells[index]
        cell.strips = self._render(cell.block, self.width)
        cell.height = len(cell.strips)
        change = sum(part.height for part in self._cells[index : index + parts]) - before
        self._forget(index)
        return change

    def settle_end(self, lines: int) -> None:
        """Make the last `lines` lines exact."""
        index = len(self._cells) - 1
        while index >= 0 and lines > 0:
            index += self.expand(index) - 1
            self.settle(index)
            lines -= self._cells[index].height
            index -= 1

    def settle_view(self, top: int, lines: int) -> None:
        """Make the `lines` lines from `top` on exact; `top` itself stays where it is."""
        if not self._cells:
            return
        while self.expand(self.index_at(top)) > 1:
            pass
        index = self.index_at(top)
        while index < len(self._cells) and self.start(index) < top + lines:
            self.settle(index)
            index += 1

    def unsettled(self, top: int, bottom: int) -> int | None:
        """A block with lines between `top` and `bottom` whose height is a guess; the last one."""
        if not self._cells or bottom <= top:
            return None
        for index in range(self.index_at(bottom - 1), self.index_at(top) - 1, -1):
            if self._cells[index].strips is None:
                return index
        return None

    def of_message(self, message: int) -> Iterator[int]:
        """The indexes of a message's blocks."""
        return (i for i, cell in enumerate(self._cells) if cell.block.message == message)

    def _forget(self, index: int) -> None:
        """Starts after block `index` are no longer true."""
        del self._starts[index + 1 :]
