"""Which rows each query of a call sees: the ring's part of mlx-lm's `make_mask`.

Rows lie in the order of their slots, not of their positions, so array masks compare positions. Reads the ring, never
changes it; what a call across a block boundary attends to is `block_crossing.py`. Used on the MLX thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import mlx.core as mx

from mlxkv.cache.geometry import Geometry

if TYPE_CHECKING:
    from mlxkv.cache.ring import RingKVCache


def mask_of(ring: RingKVCache, N: int, window_size: int | None, as_array: bool) -> mx.array | Literal["causal"] | None:
    """For the next N tokens, which fit before the next block boundary; see `RingKVCache.make_mask`."""
    geometry, offset = ring.geometry, ring.offset
    native = None if ring.native_window is None else ring.native_window + geometry.sinks
    window = min((w for w in (native, window_size) if w is not None), default=None)
    if window is not None and offset + N > window:
        queries = mx.arange(offset, offset + N)[:, None]
        return seen(ring, ring.positions(offset + N), queries, window_size)
    if N == 1:
        return None
    if not as_array:
        return "causal"
    return ring.positions(offset + N) <= mx.arange(offset, offset + N)[:, None]


def row_positions(geometry: Geometry, flushes: int) -> mx.array:
    """(sinks + window,) the position that each row of a full ring holds after this many flushes (int32)."""
    if flushes == 0:
        return mx.arange(geometry.capacity)
    slot = mx.arange(geometry.slots)
    blocks = flushes + (slot - flushes) % geometry.slots  # the block that lies in each slot
    starts = mx.concatenate([blocks, mx.array([flushes + geometry.slots])]) * geometry.block
    rows = (starts[:, None] + mx.arange(geometry.block)).reshape(-1) + geometry.sinks
    return mx.concatenate([mx.arange(geometry.sinks), rows])


def seen(ring: RingKVCache, rows: mx.array, queries: mx.array, window_size: int | None) -> mx.array:
    """Which positions of `rows` each of `queries` sees, by those windows that are not the ring's own.

    Causal; within the layer's native window, or pinned (mlx-lm's rotating caches may keep the first tokens); and
    within `window_size`, by which a model masks a cache that keeps more: pinned rows do not show through that.
    """
    mask = rows <= queries
    if ring.native_window is not None:
        near = rows > queries - ring.native_window
        mask = mask & (near | (rows < ring.geometry.sinks) if ring.geometry.sinks else near)
    return mask if window_size is None else mask & (rows > queries - window_size)
