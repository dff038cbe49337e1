"""Masks: the rows that each query of a call sees, and the rows that a call across a block boundary attends to.

Rows are in the order of their slots, not of their positions, so array masks compare positions. The runner cuts its
calls at block boundaries; mlx-lm's loop feeds 2,048 tokens at a time (`gather`, `gather_mask`). Queries of such a
call see different evictions ("eras") and the sinks at different distances, so keys are concatenated for this layer
and this call, with one copy of the sinks per era. Reads the ring, never changes it. On the MLX thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import mlx.core as mx

from mlxkv.cache.rings.geometry import Geometry

if TYPE_CHECKING:
    from mlxkv.cache.rings.ring import RingKVCache


def mask_of(ring: RingKVCache, N: int, window_size: int | None, as_array: bool) -> mx.array | Literal["causal"] | None:
    """The mask for the next N tokens, which fit before the next block boundary; see `RingKVCache.make_mask`."""
    geometry, offset = ring.geometry, ring.offset
    native = None if ring.native_window is None else ring.native_window + geometry.sinks
    window = min((w for w in (native, window_size) if w is not None), default=None)
    if window is not None and offset + N > window:
        queries = mx.arange(offset, offset + N)[:, None]
        return visible(ring, ring.positions(offset + N), queries, window_size)
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
    blocks = flushes + (slot - flushes) % geometry.slots  # the block in each slot
    starts = mx.concatenate([blocks, mx.array([flushes + geometry.slots])]) * geometry.block
    rows = (starts[:, None] + mx.arange(geometry.block)).reshape(-1) + geometry.sinks
    return mx.concatenate([mx.arange(geometry.sinks), rows])


def visible(ring: RingKVCache, rows: mx.array, queries: mx.array, window_size: int | None) -> mx.array:
    """(queries, rows) True where the query sees the row, by the windows that are not the ring's own.

    Causal; within the layer's native window, or pinned (mlx-lm's rotating caches may keep the first tokens); and
    within `window_size`, by which a model masks a cache that keeps more: it hides pinned rows, too.
    """
    mask = rows <= queries
    if ring.native_window is not None:
        near = rows > queries - ring.native_window
        mask = mask & (near | (rows < ring.geometry.sinks) if ring.geometry.sinks else near)
    return mask if window_size is None else mask & (rows > queries - window_size)


def gather(ring: RingKVCache, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    """The rows that S new tokens attend to, before any is written: [sinks once per era | ring rows | new tokens].

    `keys` (B, n_kv_heads, S, head_dim), `values` likewise.
    """
    geometry = ring.geometry
    K, live = geometry.sinks, geometry.live(ring.offset)
    old = min(K, live)  # sinks that are already in the ring
    held_keys, held_values = ring.keys_and_values()

    def stored_keys(x: mx.array) -> mx.array:
        return ring.key_codec.decode(ring.key_codec.encode(x))

    # The new tokens as they will be stored: every query sees the same rows, however the call is cut.
    keys, values = stored_keys(keys), ring.value_codec.decode(ring.value_codec.encode(values))
    sink_keys, sink_values = keys[..., : K - old, :], values[..., : K - old, :]
    if old:
        moved = ring.pristine if ring.evicted else None
        pristine = held_keys if moved is None else ring.key_codec.decode(moved)
        sink_keys = mx.concatenate([pristine[..., :old, :], sink_keys], axis=2)
        sink_values = mx.concatenate([held_values[..., :old, :], sink_values], axis=2)
    all_keys, all_values = [], []
    for era in _sink_eras(ring, keys.shape[2]):
        # A copy for every era even where sinks do not move: layers share one mask, and not all of them rotate.
        moved_keys = stored_keys(ring.rotation(sink_keys, era)) if era and ring.rotation is not None else sink_keys
        all_keys.append(moved_keys)
        all_values.append(sink_values)
    all_keys += [held_keys[..., old:, :], keys]
    all_values += [held_values[..., old:, :], values]
    return mx.concatenate(all_keys, axis=2), mx.concatenate(all_values, axis=2)


def gather_mask(ring: RingKVCache, S: int, window_size: int | None) -> mx.array:
    """(S, rows of `gather`) True where the query sees the row; `window_size` limits it further."""
    geometry, offset = ring.geometry, ring.offset
    K, live = geometry.sinks, geometry.live(offset)
    queries = mx.arange(offset, offset + S)[:, None]
    over = queries - geometry.capacity
    evicted = mx.where(over < 0, 0, (over // geometry.block + 1) * geometry.block)
    sinks = mx.arange(min(K, offset + S))[None]
    pinned = visible(ring, sinks, queries, window_size)
    parts = [pinned & (evicted == era) for era in _sink_eras(ring, S)]
    old = row_positions(geometry, geometry.flushes(offset))[min(K, live) : live]
    rows = mx.concatenate([old, mx.arange(offset, offset + S)])[None]
    return mx.concatenate([*parts, (rows >= K + evicted) & visible(ring, rows, queries, window_size)], axis=1)


def _sink_eras(ring: RingKVCache, S: int) -> list[int]:
    """The numbers of evicted tokens that the next S queries see: one copy of the sinks each; none without sinks."""
    geometry = ring.geometry
    if not geometry.sinks:
        return []
    first = geometry.blocks_evicted(ring.offset)
    last = geometry.blocks_evicted(ring.offset + S - 1)
    return [n * geometry.block for n in range(first, last + 1)]
