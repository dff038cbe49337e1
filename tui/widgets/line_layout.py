"""Line positions of the blocks of a transcript. Pure, no widget; UI thread.

A block's height is a guess until it is rendered, so that opening a chat or changing the width costs the visible part
only. For the same reason a whole reply is one block until it is scrolled into view, and is split into its parts then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from textual.strip import Strip

from mlxkv.tui.markdown.block_renderer import guess_height
from mlxkv.tui.markdown.stream_splitter import split
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.state.transcript.forgetting import Rule

Render = Callable[[Block, int], Sequence[Strip]]


@dataclass(slots=True, eq=False)
class Cell:
    block: Block
    height: int
    strips: Sequence[Strip] | None = None  # None: `height` is a guess


class LineLayout:
    """An ordered list of blocks and their lines at one width. The last `num_tail` blocks may still change."""

    def __init__(self, render: Render, width: int = 80) -> None:
        self._render, self.width = render, width
        self._cells: list[Cell] = []
        self._starts = [0]  # first lines of the first blocks; the rest are not added up yet
        self._num_tail = 0

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def blocks(self) -> list[Block]:
        return [cell.block for cell in self._cells]

    def cell(self, index: int) -> Cell:
        return self._cells[index]

    def find(self, cell: Cell) -> int | None:
        """The index of `cell`; None if it was removed."""
        return next((i for i, other in enumerate(self._cells) if other is cell), None)

    def clear(self) -> None:
        self._cells, self._starts, self._num_tail = [], [0], 0

    def update(self, settled: Sequence[Block], tail: Sequence[Block]) -> None:
        """Replace the tail by final blocks and a new tail; lines of equal blocks are reused.

        A block that grew keeps its cell, so that a match or a position remembered by cell stays valid.
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
        """Replace block `index`."""
        self._cells[index] = Cell(block, guess_height(block, self.width))
        self._forget(index)

    def mark(self, rule: Rule | None) -> bool:
        """Draw the rule at its place, and what is above it muted; whether that place is there yet.

        Only blocks that this changes are rendered again.
        """
        at, chars = self._place_of(rule) if rule is not None else (0, 0)
        settled = len(self._cells) - self._num_tail
        for index, cell in enumerate(self._cells[:settled]):
            block, is_here = cell.block, rule is not None and index == at
            is_muted = rule is not None and index < at and block.message >= rule.first
            here, place = (rule, chars) if is_here else (None, 0)
            if (is_muted, here, place) == (block.is_muted, block.rule, block.rule_at):
                continue
            cell.block = replace(block, is_muted=is_muted, rule=here, rule_at=place)
            cell.strips = None
            if is_here or block.rule is not None:
                cell.height = guess_height(cell.block, self.width)
                self._forget(index)
        return rule is None or at < settled

    def _place_of(self, rule: Rule) -> tuple[int, int]:
        """The settled block that a rule stands above, or in after so many characters of its source."""
        settled = len(self._cells) - self._num_tail
        first = next((i for i in range(settled) if self._cells[i].block.message >= rule.message), settled)
        index, left, place = first, rule.chars or 0, (first, 0)
        while left and index < len(self._cells) - self._num_tail and self._cells[index].block.message == rule.message:
            self.expand(index)
            block = self._cells[index].block
            if block.kind in (Kind.USER, Kind.MARKDOWN, Kind.CODE):
                size = len(block.source or block.text)
                if left <= size:
                    return index, left
                left, place = left - size, (index, size)
            index += 1
        return place

    def remove(self, message: int) -> None:
        """Remove all blocks of a message."""
        tail = self._cells[len(self._cells) - self._num_tail :]
        self._num_tail -= sum(cell.block.message == message for cell in tail)
        self._cells = [cell for cell in self._cells if cell.block.message != message]
        self._forget(0)

    def reset(self, width: int, render: Render | None = None) -> None:
        """Change the width or the renderer: every height is a guess again."""
        self._render = render or self._render
        self.width = width
        for cell in self._cells:
            cell.strips, cell.height = None, guess_height(cell.block, width)
        self._forget(0)

    # -- lines -------------------------------------------------------------------------------------------

    def start(self, index: int) -> int:
        """The first line of block `index`; one past the last block, the total height."""
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
        """Whether every block is rendered."""
        return all(cell.strips is not None for cell in self._cells)

    def index_at(self, y: int) -> int:
        """The index of the block with line `y`, clamped."""
        _ = self.height
        return max(0, min(bisect_right(self._starts, y) - 1, len(self._cells) - 1))

    def line(self, y: int) -> Strip:
        """Line `y`, exact if its block is rendered; blank outside."""
        if not 0 <= y < self.height:
            return Strip.blank(0)
        index = self.index_at(y)
        cell = self._cells[index]
        strips = cell.strips if cell.strips is not None else self._render(cell.block, self.width)
        row = y - self._starts[index]
        return strips[row] if row < len(strips) else Strip.blank(0)

    # -- rendering ----------------------------------------------------------------------------

    def expand(self, index: int) -> int:
        """Split block `index` if it is a whole reply; returns the number of blocks."""
        block = self._cells[index].block
        if block.kind is not Kind.REPLY:
            return 1
        parts = split(block.text) or [Block(Kind.MARKDOWN, "", tight=True, source=block.text)]
        parts = [replace(part, message=block.message, is_muted=block.is_muted) for part in parts]
        parts[0] = replace(parts[0], rule=block.rule)
        self._cells[index : index + 1] = [Cell(part, guess_height(part, self.width)) for part in parts]
        self._forget(index)
        return len(parts)

    def render_block(self, index: int) -> int:
        """Render block `index`, or its first part, if it is not rendered; returns the change of its height in lines."""
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

    def render_end(self, lines: int) -> None:
        """Render the last `lines` lines."""
        index = len(self._cells) - 1
        while index >= 0 and lines > 0:
            index += self.expand(index) - 1
            self.render_block(index)
            lines -= self._cells[index].height
            index -= 1

    def render_view(self, top: int, lines: int) -> None:
        """Render `lines` lines from `top` on; `top` itself does not move."""
        if not self._cells:
            return
        while self.expand(self.index_at(top)) > 1:
            pass
        index = self.index_at(top)
        while index < len(self._cells) and self.start(index) < top + lines:
            self.render_block(index)
            index += 1

    def unrendered(self, top: int, bottom: int) -> int | None:
        """The last block with lines between `top` and `bottom` whose height is a guess."""
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
        """Drop the positions after block `index`."""
        del self._starts[index + 1 :]
