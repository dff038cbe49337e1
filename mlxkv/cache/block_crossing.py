"""Calls that feed tokens across a block boundary: what they attend to, and the mask that makes it the same as if cut.

mlxkv's runner cuts its calls; mlx-lm's loop feeds 2,048 tokens at a time. Queries of one call then see different
evictions ("eras") and the sinks at different distances, so keys are concatenated for this layer and this call, with one
copy of the sinks per era. Reads the ring, never changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from mlxkv.cache.masks import row_positions, seen

if TYPE_CHECKING:
    from mlxkv.cache.ring import RingKVCache


def gather(ring: RingKVCache, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    """What S new tokens attend to: [sinks once per era | ring rows | the new tokens], before any of them is written.

    `keys` (B, n_kv_heads, S, head_dim), `values` likewise.
    """
    geometry = ring.geometry
    K, live = geometry.sinks, geometry.live(ring.offset)
    old = min(K, live)  # sinks that are already in the ring
    held_keys, held_values = ring.keys_and_values()

    def kept_keys(x: mx.array) -> mx.array:
        return ring.key_codec.decode(ring.key_codec.encode(x))

    # The new tokens as they will be kept: every query sees the same rows, however the call is cut.
    keys, values = kept_keys(keys), ring.value_codec.decode(ring.value_codec.encode(values))
    sink_keys, sink_values = keys[..., : K - old, :], values[..., : K - old, :]
    if old:
        moved = ring.pristine if ring.evicted else None
        pristine = held_keys if moved is None else ring.key_codec.decode(moved)
        sink_keys = mx.concatenate([pristine[..., :old, :], sink_keys], axis=2)
        sink_values = mx.concatenate([held_values[..., :old, :], sink_values], axis=2)
    all_keys, all_values = [], []
    for era in _sink_eras(ring, keys.shape[2]):
        # A copy for every era even where sinks do not move: layers share one mask, and not all of them rotate.
        moved_keys = kept_keys(ring.rotation(sink_keys, era)) if era and ring.rotation is not None else sink_keys
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
    pinned = seen(ring, sinks, queries, window_size)
    parts = [pinned & (evicted == era) for era in _sink_eras(ring, S)]
    old = row_positions(geometry, geometry.flushes(offset))[min(K, live) : live]
    rows = mx.concatenate([old, mx.arange(offset, offset + S)])[None]
    return mx.concatenate([*parts, (rows >= K + evicted) & seen(ring, rows, queries, window_size)], axis=1)


def _sink_eras(ring: RingKVCache, S: int) -> list[int]:
    """The numbers of evicted tokens that the next S queries see: one copy of the sinks each; none without sinks."""
    geometry = ring.geometry
    if not geometry.sinks:
        return []
    first = geometry.blocks_evicted(ring.offset)
    last = geometry.blocks_evicted(ring.offset + S - 1)
    return [n * geometry.block for n in range(first, last + 1)]
