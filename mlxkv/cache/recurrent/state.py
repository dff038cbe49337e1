"""Rewinding of the model's own caches, and snapshots of those that cannot be rewound.

Recurrent state (Mamba, linear attention, short convolutions) is overwritten by each token, so rewinding needs an
earlier copy: references to immutable arrays, almost free until the state changes. `checkpoints.py` decides when to take
one, `cache/groups/state_group.py` saves and restores them. On the MLX thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from mlxkv.cache.planning.plan import LayerPlan
from mlxkv.cache.rings.ring import RingKVCache

Snapshot = Mapping[str, Any]
"""One cache's attributes, arrays included."""

_ROWS = ("KVCache", "ConcatenateKVCache", "ChunkedKVCache")  # a KV row per position, in order


def keeps_state(plan: LayerPlan) -> bool:
    """Whether the planned cache is a recurrent one of the model's own."""
    return plan.geometry is None and not plan.children and plan.native_class not in _ROWS


def is_recurrent(cache: Any) -> bool:
    """Whether rewinding needs a snapshot; also true of unknown classes, whose `trim` may not be exact."""
    return not isinstance(cache, RingKVCache) and type(cache).__name__ not in _ROWS


def tokens_fed(cache: Any) -> int | None:
    """Tokens fed to a cache of rows; None for others, whose `offset` may count something else."""
    counts = isinstance(cache, RingKVCache) or type(cache).__name__ in (*_ROWS, "RotatingKVCache", "QuantizedKVCache")
    return cache.offset if counts else None


def unseen_positions(cache: Any, position: int) -> tuple[int, int]:
    """Positions [start, end) that the query at `position` no longer sees in this cache of rows."""
    match cache:
        case RingKVCache(geometry=geometry, native_window=None):
            return geometry.sinks, geometry.sinks + geometry.blocks_evicted(position) * geometry.block
        case RingKVCache(geometry=geometry, native_window=int(window)):
            return geometry.sinks, position + 1 - window
    match type(cache).__name__:
        case "RotatingKVCache":
            return cache.keep, cache.keep + position + 1 - cache.max_size
        case "ChunkedKVCache":
            return 0, position - position % cache.chunk_size
    return 0, 0


def rewind_floor(cache: Any, offset: int) -> int:
    """The smallest offset that `rewind_rows` reaches exactly from `offset`; for a cache that is not recurrent."""
    if isinstance(cache, RingKVCache):
        return offset - cache.rewindable
    start = getattr(cache, "start_position", 0)
    # A token of a chunked layer attends to its own chunk, whose older rows may be evicted.
    return min(-(-start // cache.chunk_size) * cache.chunk_size, offset) if start else 0


def tokens_within_block(cache: Any, offset: int, *, keeps: bool) -> int | None:
    """Tokens that one call may feed at `offset` so that `rewind_rows` returns to each position after the first one
    exactly, without moving a block; None: any number. `keeps`: to `offset` itself, too."""
    if isinstance(cache, RingKVCache):
        geometry = cache.geometry
        evicts = geometry.blocks_evicted(offset) > geometry.flushes(offset)
        return 0 if keeps and evicts else geometry.tokens_to_boundary(offset)
    chunk = getattr(cache, "chunk_size", None)
    return None if chunk is None else chunk - offset % chunk


def rewind_rows(cache: Any, num_tokens: int) -> None:
    """Rewind by `num_tokens`, within `rewind_floor`."""
    cache.trim(num_tokens)
    if type(cache).__name__ == "ConcatenateKVCache" and cache.keys is not None:  # its `trim` keeps the rows
        cache.keys, cache.values = cache.keys[..., : cache.offset, :], cache.values[..., : cache.offset, :]


def capture(cache: Any) -> Snapshot:
    """A snapshot of the cache. It shares arrays, except views, which would keep a larger buffer alive."""
    snapshot = {name: _frozen(value) for name, value in vars(cache).items()}
    mx.async_eval(list(arrays_of(snapshot).values()))
    return snapshot


def restore_snapshot(cache: Any, snapshot: Snapshot) -> None:
    """Restore the cache; the snapshot can be used again."""
    vars(cache).clear()
    vars(cache).update(copy.deepcopy(dict(snapshot)))  # new array objects: `a[...] = x` changes them in place


def arrays_of(snapshot: Snapshot) -> dict[str, mx.array]:
    """The arrays of a snapshot by path, e.g. `cache.0`, in a fixed order."""
    return {path: value for path, value in _flat("", snapshot) if isinstance(value, mx.array)}


def scalars_of(snapshot: Snapshot) -> dict[str, Any]:
    """The other values of a snapshot by path, in a fixed order."""
    return {path: value for path, value in _flat("", snapshot) if not isinstance(value, mx.array)}


def with_arrays(snapshot: Snapshot, arrays: Mapping[str, mx.array | None]) -> Snapshot:
    """A copy of the snapshot with other arrays at the same paths."""
    return {name: _replaced(name, value, arrays) for name, value in snapshot.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, mx.array):
        return mx.contiguous(value)
    if type(value) in (list, tuple):
        return type(value)(_frozen(item) for item in value)
    if type(value) is dict:
        return {key: _frozen(item) for key, item in value.items()}
    return copy.deepcopy(value)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    items: Any = ()
    if isinstance(value, Mapping):
        items = sorted(value.items())
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
    for key, item in items:
        yield from _flat(f"{path}.{key}" if path else str(key), item)


def _replaced(path: str, value: Any, arrays: Mapping[str, mx.array | None]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(f"{path}.{key}", item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(f"{path}.{i}", item, arrays) for i, item in enumerate(value))
    return arrays.get(path, value)
