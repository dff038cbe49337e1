"""Checkpoints: earlier states of recurrent caches, to rewind to.

Decides which ones to keep within the budget; `state.py` takes and restores snapshots. On the MLX thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.cache.recurrent.spacing import superfluous
from mlxkv.cache.recurrent.state import Snapshot, arrays_of, capture, restore_snapshot

CHECKPOINT_INTERVAL = 1024  # tokens of a long prefill or reply
MIN_CHECKPOINTS = 6  # by default, however large a state: what the rule of `spacing` needs for the last five turns
MAX_CHECKPOINTS = 64  # more would be too close to each other
_SHARE = 4  # by default checkpoints may take a quarter of the memory of the rings


def max_checkpoints(ring_bytes: int, state_bytes: int, budget: int | None) -> int:
    """How many states of `state_bytes` may be kept within `budget` bytes; None: the larger of a quarter of
    `ring_bytes` and six states. At least one."""
    if budget is None:
        budget = max(ring_bytes // _SHARE, MIN_CHECKPOINTS * state_bytes)
    return min(max(budget // max(state_bytes, 1), 1), MAX_CHECKPOINTS)


@dataclass(frozen=True)
class Checkpoint:
    """The recurrent caches after `position` tokens.

    `is_prefix`: a part ends there that other chats begin with too, such as the system prompt; never dropped for others.
    """

    position: int
    is_prefix: bool
    snapshots: tuple[Snapshot, ...]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for snapshot in self.snapshots for x in arrays_of(snapshot).values())


class Checkpoints:
    """The checkpoints of `caches`, ascending by position.

    Args:
        ring_bytes, budget: how many are kept, see `max_checkpoints`.
    """

    def __init__(self, caches: Sequence[Any], ring_bytes: int = 0, budget: int | None = None) -> None:
        self.caches, self._ring_bytes, self._budget = tuple(caches), ring_bytes, budget
        self._kept: list[Checkpoint] = []
        self._turns: list[int] = []  # where turns began, ascending
        self._most = MAX_CHECKPOINTS
        self._is_thin = True  # no checkpoint was taken, or shared the caches' state, since the last `thin`

    def fork(self, caches: Sequence[Any]) -> Checkpoints:
        """The same checkpoints for copies of the caches; the states are shared."""
        twin = copy.copy(self)
        twin.caches, twin._kept, twin._turns = tuple(caches), list(self._kept), list(self._turns)
        return twin

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._kept)

    @property
    def is_needed(self) -> bool:
        """Whether there are recurrent caches."""
        return bool(self.caches)

    @property
    def prefixes(self) -> list[int]:
        """The positions of the checkpoints at the ends of prefixes."""
        return [c.position for c in self._kept if c.is_prefix]

    def nbytes(self, offset: int) -> int:
        """Bytes beyond those of the caches, which are at `offset`: a state is shared until it changes."""
        return sum(c.nbytes for c in self._kept if c.position != offset)

    @property
    def state_nbytes(self) -> int:
        """Bytes of the state of the caches."""
        return sum(cache.nbytes for cache in self.caches if not cache.empty())

    @property
    def max_nbytes(self) -> int:
        """Bytes that the checkpoints may take; 0 before the first one."""
        return self._most * self._kept[-1].nbytes if self._kept else 0

    def is_far_back(self, offset: int) -> bool:
        """Whether the newest checkpoint is far before `offset`."""
        return offset - (self._kept[-1].position if self._kept else 0) >= CHECKPOINT_INTERVAL

    @property
    def is_over_budget(self) -> bool:
        """Whether `thin` is due: the newest checkpoint no longer shares the state of the caches."""
        return not self._is_thin and len(self._kept) > self._most

    def begin_turn(self, position: int) -> None:
        """Note that a turn begins at `position`, to which users may go back."""
        self._turns = [*(t for t in self._turns if t < position), position]

    def take(self, position: int, *, is_prefix: bool = False) -> None:
        """Save the state at `position`, the current one of the caches."""
        if not self.caches or not position:
            return
        is_prefix = is_prefix or position in self.prefixes
        taken = Checkpoint(position, is_prefix, tuple(capture(cache) for cache in self.caches))
        self._kept = [*(c for c in self._kept if c.position != position), taken]
        self._most = max_checkpoints(self._ring_bytes, taken.nbytes, self._budget)
        self._is_thin = False

    def thin(self, offset: int, floor: int) -> None:
        """Drop checkpoints before `floor`, to which the rings cannot rewind, and those beyond the budget; one at
        `offset`, the position of the caches, takes no memory of its own."""
        kept = [c for c in self._kept if c.is_prefix or c.position >= floor]
        shared = kept[-1:] if kept and kept[-1].position == offset else []
        positions = [c.position for c in kept]
        dropped = superfluous(positions, offset, self._most + len(shared), self.prefixes, self._turns)
        self._kept = [c for c in kept if c.position not in dropped]
        self._is_thin = not shared

    def newest(self, most: int, least: int = 1) -> Checkpoint | None:
        """The last checkpoint at a position from `least` to `most`."""
        return next((c for c in reversed(self._kept) if least <= c.position <= most), None)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the caches from it and drop later checkpoints."""
        for cache, snapshot in zip(self.caches, checkpoint.snapshots, strict=True):
            restore_snapshot(cache, snapshot)
        self._kept = [c for c in self._kept if c.position <= checkpoint.position]
        self._turns = [t for t in self._turns if t <= checkpoint.position]

    def cut(self, position: int) -> None:
        """Drop the checkpoints after `position`, to which the caches were returned."""
        if self._kept and self._kept[-1].position > position:
            self._kept = [c for c in self._kept if c.position <= position]

    def clear(self) -> None:
        self._kept, self._turns = [], []
