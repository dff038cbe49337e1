"""Checkpoints: earlier states of recurrent caches, to rewind to.

Decides which ones to keep; `state.py` takes and restores snapshots. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.cache.recurrent.state import Snapshot, arrays_of, capture, restore_snapshot

CHECKPOINT_INTERVAL = 1024  # tokens
MAX_CHECKPOINTS = 8
_MAX_BETWEEN_TURNS = 4  # so that one long reply or document does not drop the checkpoints of turns


@dataclass(frozen=True)
class Checkpoint:
    """The recurrent caches after `position` tokens; `is_turn`: a turn began or ended there."""

    position: int
    is_turn: bool
    snapshots: tuple[Snapshot, ...]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for snapshot in self.snapshots for x in arrays_of(snapshot).values())


class Checkpoints:
    """The newest checkpoints of `caches`, ascending by position."""

    def __init__(self, caches: Sequence[Any], kept: Sequence[Checkpoint] = ()) -> None:
        self.caches = tuple(caches)
        self._kept = list(kept)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._kept)

    @property
    def is_needed(self) -> bool:
        """Whether there are recurrent caches."""
        return bool(self.caches)

    def nbytes(self, offset: int) -> int:
        """Bytes beyond those of the caches, which are at `offset`: a state is shared until it changes."""
        return sum(c.nbytes for c in self._kept if c.position != offset)

    def take(self, position: int, *, is_turn: bool) -> None:
        """Save the state at `position`, the current one of the caches."""
        if not self.caches or not position:
            return
        same = next((c for c in self._kept if c.position == position), None)
        if same is not None:
            is_turn = is_turn or same.is_turn
            self._kept.remove(same)
        self._kept.append(Checkpoint(position, is_turn, tuple(capture(cache) for cache in self.caches)))
        if len(self._kept) > MAX_CHECKPOINTS:
            between = [c for c in self._kept if not c.is_turn]
            self._kept.remove(between[0] if len(between) > _MAX_BETWEEN_TURNS else self._kept[0])

    def newest(self, most: int, least: int = 1) -> Checkpoint | None:
        """The last checkpoint at a position from `least` to `most`."""
        return next((c for c in reversed(self._kept) if least <= c.position <= most), None)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the caches from it and drop later checkpoints."""
        for cache, snapshot in zip(self.caches, checkpoint.snapshots, strict=True):
            restore_snapshot(cache, snapshot)
        self._kept = [c for c in self._kept if c.position <= checkpoint.position]

    def clear(self) -> None:
        self._kept = []
