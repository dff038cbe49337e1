"""Probe: run one token through a model and record what it stores in its caches and where its positions come from.

Nothing is computed unless `sink_rotations` is called, which needs the weights. `traits.py` remembers the results,
`plan.py` decides by them. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxkv.cache.rings.sink_rotation import TOLERANCE, UNUSABLE, SinkRotation, composition_error, ropes_of, rotations_of

_ROWS = ("KVCache", "ConcatenateKVCache", "RotatingKVCache", "ChunkedKVCache")
_TOKEN = 7  # any that has an embedding; 0 is often padding
_MOST_ROPES = 8  # of other layers, tried where a layer has none
_FAR = 977  # a distance that is no multiple of any period of a rope


@dataclass(frozen=True)
class RowShape:
    """Shape of one layer's KV rows, as the model makes them."""

    heads: int
    k_dim: int
    v_dim: int
    dtype: mx.Dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's key and value in this layer."""
        return self.heads * (self.k_dim + self.v_dim) * self.dtype.size


class Recorder:
    """A stand-in for a cache that is empty at `offset`: one token attends to itself only."""

    def __init__(self, native: Any, offset: int) -> None:
        self.native_class = type(native).__name__
        self.max_size = getattr(native, "max_size", None)
        self.offset = self.start_position = offset
        self.keys: Any = None  # (B, n_kv_heads, 1, head_dim)
        self.values: Any = None
        self.is_shared = False
        self.mask_window: int | None = None  # the window a model masks this cache to

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        self.offset += keys.shape[2]
        return keys, values

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The rows, for a layer without a cache of its own."""
        self.is_shared = True
        return self.keys, self.values

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> mx.array | None:
        self.mask_window = window_size
        return mx.ones((N, N), mx.bool_) if return_array else None

    def maybe_trim_front(self) -> None:
        pass

    @property
    def shape(self) -> RowShape | None:
        if self.keys is None:
            return None
        _, heads, _, k_dim = self.keys.shape
        return RowShape(heads, k_dim, self.values.shape[-1], self.keys.dtype)


def leaves(caches: Sequence[Any]) -> tuple[Any, ...]:
    """The caches, with the children of mlx-lm's CacheList in its place; in the order of `CachePlan.leaves`."""
    return tuple(leaf for cache in caches for leaf in (getattr(cache, "caches", None) or (cache,)))


def observe(model: Any, natives: Sequence[Any], offset: int = 0) -> tuple[Any, ...]:
    """Feed one token at position `offset`, not evaluated: a Recorder per cache of rows, the cache itself for others.

    `natives` are the model's own caches, empty; those without rows are used up.
    """

    def stand_in(cache: Any) -> Any:
        if children := getattr(cache, "caches", None):
            cache.caches = tuple(stand_in(child) for child in children)
            return cache
        return Recorder(cache, offset) if type(cache).__name__ in _ROWS else cache

    caches = [stand_in(cache) for cache in natives]
    model(mx.full((1, 1), _TOKEN, mx.int32), cache=caches)
    return leaves(caches)


@dataclass(frozen=True)
class Sinks:
    """How one layer's sinks are moved. `is_streaming` without `rotation`: its keys have no positions."""

    rotation: SinkRotation | None = None
    is_streaming: bool = False


def sink_rotations(
    model: Any, natives: Sequence[Any], again: Sequence[Any], modules: Sequence[Any], kinds: Sequence[Hashable]
) -> tuple[Sinks, ...]:
    """How each cache's keys are moved forward, found by comparing the keys of one token at two positions.

    Ropes alone are not enough: some models normalise keys after rotating them, rotate a part of the row, or keep the
    rotated part among the values. So the model is tested: the key it makes of a token at position 977 must be the
    rotated key of the same token at 0. Two decode steps, computed only as far as the first layer of each kind
    needs. A lone token attends to itself only, so that nothing but the position differs.

    Args:
        natives, again: the model's own caches, empty, twice.
        modules: for each cache the layer whose ropes are tried first, or None.
        kinds: for each cache a value that is equal for caches of the same kind.
    """
    try:
        near, far = observe(model, natives, 0), observe(model, again, _FAR)
    except Exception:  # from the model's own code: its sinks are not moved
        return (Sinks(),) * len(modules)
    first = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
    trials = {kind: _trials(near[i], far[i], modules[i], modules) for kind, i in first.items()}
    mx.eval([error for trial in trials.values() for _, error in trial])
    found = {
        kind: next((sinks for sinks, error in trial if float(error.item()) < TOLERANCE), Sinks())  # type: ignore[arg-type]
        for kind, trial in trials.items()
    }
    return tuple(found[kind] for kind in kinds)


def _trials(near: Any, far: Any, module: Any, modules: Sequence[Any]) -> list[tuple[Sinks, mx.array]]:
    """The possible ways to move this cache's keys, the most likely first, and the error of each; not evaluated."""
    if not isinstance(near, Recorder) or near.keys is None or near.native_class == "RotatingKVCache":
        return []
    unmoved = _error(near.values, far.values)
    trials = [(Sinks(None, True), mx.maximum(unmoved, _error(near.keys, far.keys)))]
    ropes = ropes_of(module) if module is not None else []
    if not ropes:
        distinct = {id(other): other for other in modules if other is not None}.values()
        ropes = [rope for other in distinct for rope in ropes_of(other)][:_MOST_ROPES]
    for rope in ropes:
        for rotation in rotations_of(rope, near.keys.shape[-1]):
            trials.append((Sinks(rotation, True), mx.maximum(unmoved, _moved(rotation, near.keys, far.keys))))
    return trials


def _moved(rotation: SinkRotation, near: mx.array, far: mx.array) -> mx.array:
    try:
        return mx.maximum(_error(rotation(near, _FAR), far), composition_error(rotation, near.shape[-1]))
    except UNUSABLE:
        return mx.array(mx.inf)


def _error(x: mx.array, expected: mx.array) -> mx.array:
    """The largest difference relative to the largest number; infinite for rows of zeros."""
    if not expected.size:
        return mx.array(0.0)
    x, expected = x.astype(mx.float32), expected.astype(mx.float32)
    scale = mx.max(mx.abs(expected))
    error = mx.max(mx.abs(x - expected)) / scale
    return mx.where((scale > 0) & (error == error), error, mx.inf)  # a NaN is no match


def learned_positions(model: Any) -> int | None:
    """The rows of a model's table of learned positions; None without such a table.

    Past its end there is no position, and the output is not a number, however few rows a window keeps (rotary positions
    only get worse). Found by feeding one token at two offsets: the table is the one whose looked-up row differs. Only
    those indices are computed.
    """
    if not isinstance(model, nn.Module):
        return None
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    tables: list[Any] = [module for _, module in model.named_modules() if isinstance(module, kinds)]
    if len({table.weight.shape[0] for table in tables}) < 2:  # only that of the vocabulary
        return None
    from mlx_lm.models.cache import make_prompt_cache

    seen: list[dict[int, list[mx.array]]] = []
    own = {id(table): type(table) for table in tables}
    for offset in (3, 5):
        looked_up: dict[int, list[mx.array]] = {}
        seen.append(looked_up)
        try:
            for table in tables:
                table.__class__ = _watched(own[id(table)], looked_up)
            observe(model, make_prompt_cache(model), offset)
        except Exception:  # from the model's own code
            return None
        finally:
            for table in tables:
                table.__class__ = own[id(table)]
    rows = [
        table.weight.shape[0]
        for table in tables
        for x, y in zip(*(looked_up.get(id(table), []) for looked_up in seen), strict=False)
        if not mx.array_equal(x, y).item()
    ]
    return min(rows, default=None)


def _watched(kind: type, looked_up: dict[int, list[mx.array]]) -> type:
    class Watched(kind):
        def __call__(self, x: mx.array) -> mx.array:
            looked_up.setdefault(id(self), []).append(x)
            return super().__call__(x)

    return Watched
