"""Flushes: eviction of a block and its reversal, in one ring or in the rings of all layers together.

`ring.py` owns the rows and calls this for one layer in mlx-lm's own loops. Where mlxkv drives the model,
`PromptCache.make_room` evicts for all layers before the call: one evaluation reads a block of every ring and one
writes them all, twice, so that a flush waits 4 times however many layers there are. Meanwhile it takes the memory of
one more block in every ring: 38 MB for 36 layers of 8 KV heads of 128 numbers in 16 bits and blocks of 256 tokens.
On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlxkv.cache.rings.rows import Move, move
from mlxkv.errors import RewindError

if TYPE_CHECKING:
    from mlxkv.cache.rings.ring import RingKVCache


def is_due(ring: RingKVCache, num_tokens: int) -> bool:
    """Whether the next call, of `num_tokens`, evicts a block before it writes; a call across a boundary does not."""
    geometry, offset = ring.geometry, ring.offset
    return (
        geometry.blocks_evicted(offset) > geometry.flushes(offset)
        and not ring.is_evicted_ahead
        and num_tokens <= geometry.tokens_to_boundary(offset)
    )


def flush(rings: Sequence[RingKVCache]) -> None:
    """Evict a block in each ring: oldest block to the undo area, the complete current block to its slot, sinks forward.

    The offsets stay: the next write finds the block evicted ahead.
    """
    for ring in rings:
        ring.make_room(1)
    sinks = [part for ring in rings if not ring.evicted for part in ring.keep_pristine()]
    to_undo, to_slot = list[Move](), list[Move]()
    for ring in rings:
        geometry = ring.geometry
        n = geometry.flushes(ring.offset)  # the block to evict
        old, R = geometry.slot_row(n), geometry.block
        for rows in ring.buffers:
            if geometry.undo:
                to_undo.append(Move(rows, old, geometry.undo_row(n), R))
            to_slot.append(Move(rows, geometry.current, old, R))
    with _moving(rings):
        move(to_undo, sinks)
        move(to_slot)
        for ring in rings:
            ring.undo_blocks = min(ring.undo_blocks + 1, ring.geometry.undo)
            ring.place_sinks(ring.evicted + ring.geometry.block)
            ring.is_evicted_ahead = True


def undo(rings: Sequence[RingKVCache]) -> None:
    """Reverse the last flush of each ring: last ring block to the current area, undo block to its slot.

    Raises:
        RewindError: a ring has no valid block in its undo area; nothing was changed.
    """
    if not all(ring.undo_blocks for ring in rings):
        raise RewindError("The block that was evicted last cannot be restored; prefill again.")
    for ring in rings:
        ring.make_room(0)
    to_current, to_slot = list[Move](), list[Move]()
    blocks = [ring.geometry.flushes(ring.offset) - (not ring.is_evicted_ahead) for ring in rings]  # to restore
    for ring, n in zip(rings, blocks, strict=True):
        geometry = ring.geometry
        old, R = geometry.slot_row(n), geometry.block
        for rows in ring.buffers:
            to_current.append(Move(rows, old, geometry.current, R))
            to_slot.append(Move(rows, geometry.undo_row(n), old, R))
    with _moving(rings):
        move(to_current)
        move(to_slot)
        for ring, n in zip(rings, blocks, strict=True):
            ring.undo_blocks -= 1
            ring.offset, ring.is_evicted_ahead = ring.geometry.capacity + n * ring.geometry.block, False
            ring.place_sinks(n * ring.geometry.block)


def rewind(rings: Sequence[RingKVCache], num_tokens: int) -> None:
    """Rewind each ring by `num_tokens`, which it must be able to (`RingKVCache.rewindable`)."""
    if ahead := [ring for ring in rings if ring.is_evicted_ahead]:
        undo(ahead)
    targets = [max(ring.offset - num_tokens, 0) for ring in rings]
    while due := [
        ring
        for ring, target in zip(rings, targets, strict=True)
        if ring.geometry.flushes(ring.offset) > ring.geometry.flushes(target)
    ]:
        undo(due)
    for ring, target in zip(rings, targets, strict=True):
        ring.offset = target


@contextmanager
def _moving(rings: Sequence[RingKVCache]) -> Iterator[None]:
    """Mark the rings while blocks move: after an interruption in between, their rows are unusable."""
    for ring in rings:
        ring.is_intact = False
    yield
    for ring in rings:
        ring.is_intact = True
