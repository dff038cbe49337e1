"""Checkpoints: earlier states of the caches that cannot be rewound, to go on from instead.

Decides which are kept; what a snapshot is stands in `state.py`. Used on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.cache.recurrent.state import Snapshot, capture, nbytes_of, put_back

EVERY = 1024  # tokens
KEPT = 8
_KEPT_BETWEEN_TURNS = 4  # one long reply or document must not push out the beginnings of turns


@dataclass(frozen=True)
class Checkpoint:
    """The recurrent caches as they were when `position` tokens had been fed; `is_turn`: a turn began or ended there."""

    position: int
    is_turn: bool
    snapshots: tuple[Snapshot, ...]

    @property
    def nbytes(self) -> int:
        return sum(nbytes_of(snapshot) for snapshot in self.snapshots)


class Checkpoints:
    """The newest checkpoints of `caches`, ascending by position."""

    def __init__(self, caches: Sequence[Any], kept: Sequence[Checkpoint] = ()) -> None:
        self.caches = tuple(caches)
        self._kept = list(kept)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._kept)

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to take checkpoints of."""
        return bool(self.caches)

    def nbytes(self, offset: int) -> int:
        """Bytes beyond those of the caches themselves, which have seen `offset` tokens: a state is shared until it
        moves on."""
        return sum(c.nbytes for c in self._kept if c.position != offset)

    def take(self, position: int, *, is_turn: bool) -> None:
        """Remember the state at `position`, where the caches are now."""
        if not self.caches or not position:
            return
        same = next((c for c in self._kept if c.position == position), None)
        if same is not None:
            is_turn = is_turn or same.is_turn
            self._kept.remove(same)
        self._kept.append(Checkpoint(position, is_turn, tuple(capture(cache) for cache in self.caches)))
        if len(self._kept) > KEPT:
            between = [c for c in self._kept if not c.is_turn]
            self._kept.remove(between[0] if len(between) > _KEPT_BETWEEN_TURNS else self._kept[0])

    def newest(self, most: int, least: int = 1) -> Checkpoint | None:
        """The last one from `least` to `most`."""
        return next((c for c in reversed(self._kept) if least <= c.position <= most), None)

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Put the caches back to it and forget what came after."""
        for cache, snapshot in zip(self.caches, checkpoint.snapshots, strict=True):
            put_back(cache, snapshot)
        self._kept = [c for c in self._kept if c.position <= checkpoint.position]

    def clear(self) -> None:
        self._kept = []
