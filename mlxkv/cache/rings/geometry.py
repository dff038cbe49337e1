"""Geometry: the arithmetic of the block ring, from positions to rows, and what each query sees.

Pure integers; no MLX. `ring.py` moves the rows, `groups/` saves and restores them.

    rows   [ sinks K | ring of W/R - 1 block slots | current block R | undo U*R ]

Block n holds positions K + n*R .. K + (n+1)*R - 1. With f blocks evicted, block n is in slot n % slots, the
current block is number f + slots, and each of the last U evicted blocks is in undo slot n % U.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Segment:
    """Positions a..b-1, in rows row..row+(b-a)-1."""

    a: int
    b: int
    row: int


@dataclass(frozen=True)
class Geometry:
    """A ring. At most `window` tokens are attended beyond the `sinks`, at least `window - block + 1` once full."""

    sinks: int
    window: int
    block: int
    undo: int  # blocks

    def __post_init__(self) -> None:
        if self.window % self.block or self.window < 2 * self.block or min(self.sinks, self.undo) < 0:
            raise ValueError(f"not a ring: {self}")

    @cached_property
    def rows(self) -> int:
        return self.sinks + self.window + self.undo * self.block

    @cached_property
    def capacity(self) -> int:
        """The most rows attended at once, sinks included."""
        return self.sinks + self.window

    @cached_property
    def slots(self) -> int:
        return self.window // self.block - 1

    @cached_property
    def current(self) -> int:
        """First row of the current block."""
        return self.capacity - self.block

    def blocks_evicted(self, position: int) -> int:
        """Blocks that the query at `position` no longer sees."""
        over = position - self.capacity
        return 0 if over < 0 else over // self.block + 1

    def flushes(self, offset: int) -> int:
        """Blocks evicted once `offset` tokens are written."""
        return self.blocks_evicted(offset - 1)

    def next_row(self, offset: int) -> tuple[int, int]:
        """The row that the token at `offset` is written to, and how many rows from there end at the block boundary."""
        if offset < self.capacity:
            return offset, self.capacity - offset
        inside = (offset - self.sinks) % self.block
        return self.current + inside, self.block - inside

    def live(self, offset: int) -> int:
        """Number of rows attended after `offset` tokens: always a prefix of the buffer."""
        if offset <= self.capacity:
            return offset
        return self.current + (offset - self.sinks - 1) % self.block + 1

    def tokens_to_boundary(self, offset: int) -> int:
        """Tokens that can be written at `offset` before the next block boundary; never 0."""
        return self.next_row(offset)[1]

    def first_kept(self, offset: int, undo: int) -> int:
        """The oldest position beyond the sinks that is still in the buffer, with `undo` valid undo blocks."""
        return self.sinks + (self.flushes(offset) - undo) * self.block

    def rewind_floor(self, offset: int, undo: int) -> int:
        """The smallest offset to rewind to with `undo` valid undo blocks."""
        flushes = self.flushes(offset) - undo
        return 0 if flushes <= 0 else self.capacity + (flushes - 1) * self.block + 1

    def slot_row(self, block: int) -> int:
        return self.sinks + (block % self.slots) * self.block

    def undo_row(self, block: int) -> int:
        return self.capacity + (block % self.undo) * self.block

    def segments(self, a: int, b: int, offset: int) -> Iterator[Segment]:
        """Rows of positions [a, b) after `offset` tokens; all of them must be sinks, live, or in the undo area."""
        flushes = self.flushes(offset)
        if flushes == 0:
            yield Segment(a, b, a)
            return
        if a < self.sinks:
            yield Segment(a, min(b, self.sinks), a)
            a = self.sinks
        while a < b:
            block, inside = divmod(a - self.sinks, self.block)
            end = min(b, self.sinks + (block + 1) * self.block)
            if block < flushes:
                row = self.undo_row(block)
            elif block == flushes + self.slots:
                row = self.current
            else:
                row = self.slot_row(block)
            yield Segment(a, end, row + inside)
            a = end
