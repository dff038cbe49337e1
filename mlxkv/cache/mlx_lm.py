"""Export to mlx-lm's caches, and import from them: the class for each layer, and the order of its rows.

Knows the layouts of both and no files (`store/prompts/mlx_lm_file.py` writes and reads those). Arrays leave lazily: a
writer can evaluate one at a time. Used on the MLX thread.

A ring that has wrapped becomes a RotatingKVCache with one row more than it attends. mlx-lm overwrites or drops the
oldest row behind the kept ones before it looks at any, so that row is a blank, and the next token sees exactly what it
would have seen here. From then on the window rotates as mlx-lm's does.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlxkv.cache.interchange import KINDS, OPAQUE, LayerState
from mlxkv.cache.planning.layer_plan import pass_through
from mlxkv.cache.planning.plan import CachePlan, LayerPlan
from mlxkv.cache.planning.probe import RowShape
from mlxkv.cache.prompt_cache import PromptCache, Reuse
from mlxkv.cache.recurrent.state import capture
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.rows import Codec, Parts, Rows, concatenated
from mlxkv.errors import CacheError, MismatchError
from mlxkv.token_ids import common_prefix

# -- out -------------------------------------------------------------------------------------------------------------


def to_mlx_lm(cache: PromptCache) -> list[LayerState]:
    """The layers with which mlx-lm continues this cache.

    Raises:
        CacheError: it is empty, or mlx-lm has no class for a layer; the message says which and why.
    """
    if not cache.log:
        raise CacheError("This prompt cache is empty; prefill it before exporting it.")
    return [_state(plan, layer, cache.offset) for plan, layer in zip(cache.plan.layers, cache.layers, strict=True)]


def native_layers(cache: PromptCache) -> list[Any]:
    """mlx-lm's own caches with the rows and states of this one, which must not be empty; nothing is evaluated.

    Raises:
        CacheError: mlx-lm has no class for a layer.
    """

    def native(plan: LayerPlan, layer: Any) -> Any:
        if plan.children:
            twin = copy.copy(layer)
            twin.caches = tuple(native(p, c) for p, c in zip(plan.children, layer.caches, strict=True))
            return twin
        if isinstance(layer, RingKVCache):
            return _mlx_lm_layer(_ring_state(plan, layer, cache.offset))
        return copy.deepcopy(layer)

    return [native(plan, layer) for plan, layer in zip(cache.plan.layers, cache.layers, strict=True)]


def _state(plan: LayerPlan, layer: Any, offset: int) -> LayerState:
    if isinstance(layer, RingKVCache):
        return _ring_state(plan, layer, offset)
    kind = type(layer).__name__
    if kind not in KINDS:
        raise CacheError(f"Layer {plan.index} is a {kind}; of mlx-lm's caches only {', '.join(KINDS)} can be exported.")
    if kind == "QuantizedKVCache":
        keys, values = (tuple(part[..., :offset, :] for part in parts) for parts in (layer.keys, layer.values))
        return LayerState(kind, keys, values, offset, group_size=layer.group_size, bits=layer.bits)
    keys, values = (x[..., : min(offset, x.shape[-2]), :] for x in (layer.keys, layer.values))
    if kind == "RotatingKVCache":
        return LayerState("RotatingKVCache", (keys,), (values,), offset, layer.keep, layer.max_size, layer._idx)
    return LayerState("KVCache", (keys,), (values,), offset)


def _ring_state(plan: LayerPlan, ring: RingKVCache, offset: int) -> LayerState:
    codec, geometry = ring.key_codec, ring.geometry
    if codec.bits is not None or ring.value_codec.bits is not None:
        return _quantized_state(plan, ring, offset)
    if ring.native_window is not None:
        first, window = max(offset - ring.native_window, 0), ring.native_window
        keys, values = _rows(ring, first, offset)
        return LayerState("RotatingKVCache", keys, values, offset, 0, window, offset - first)
    # The rows that the next token sees: if the block is full, the oldest block is evicted before it.
    evicted, sinks = geometry.blocks_evicted(offset) * geometry.block, geometry.sinks
    if not evicted:
        return LayerState("KVCache", *_rows(ring, 0, offset), offset)
    window = _rows(ring, sinks + evicted, offset)
    pinned = (_pinned_keys(ring, evicted), _parts(ring.value_rows, 0, sinks))
    blank = [tuple(mx.zeros_like(x[..., :1, :]) for x in side) for side in window]
    keys, values = (concatenated([p, z, w]) for p, z, w in zip(pinned, blank, window, strict=True))
    rows = keys[0].shape[-2]
    return LayerState("RotatingKVCache", keys, values, offset, sinks, rows, rows)


def _pinned_keys(ring: RingKVCache, evicted: int) -> Parts:
    """The sinks' keys at their positions after that many evicted tokens."""
    if ring.rotation is None:
        return _parts(ring.key_rows, 0, ring.geometry.sinks)
    pristine = ring.pristine if ring.evicted and ring.pristine else _parts(ring.key_rows, 0, ring.geometry.sinks)
    return (ring.rotation(pristine[0], evicted),)


def _quantized_state(plan: LayerPlan, ring: RingKVCache, offset: int) -> LayerState:
    keys, values = ring.key_codec, ring.value_codec
    why = None
    if keys != values:
        why = f"keys of {keys.bits} and values of {values.bits} bits"
    elif ring.native_window is not None:
        why = "a quantized sliding window"
    elif ring.geometry.blocks_evicted(offset):
        why = "a quantized window that has wrapped"
    if why is not None:
        raise CacheError(f"mlx-lm has no cache for {why} (layer {plan.index}); export a cache without `bits`.")
    rows = _rows(ring, 0, offset)
    return LayerState("QuantizedKVCache", *rows, offset, group_size=keys.group_size, bits=keys.bits or 0)


def _rows(ring: RingKVCache, a: int, b: int) -> tuple[Parts, Parts]:
    """Positions [a, b), oldest first, as attended."""
    segments = list(ring.geometry.segments(a, b, ring.offset))
    keys, values = (
        concatenated([_parts(rows, s.row, s.row + s.b - s.a) for s in segments])
        for rows in (ring.key_rows, ring.value_rows)
    )
    return keys, values


def _parts(rows: Rows | None, start: int, end: int) -> Parts:
    assert rows is not None  # a cache with tokens has buffers
    return rows.parts(start, end)


# -- in --------------------------------------------------------------------------------------------------------------


def to_model_dtype(
    states: Sequence[LayerState], plan: CachePlan, what: str
) -> tuple[tuple[LayerState, ...], tuple[str, ...]]:
    """`states` in the floating types that the model computes in, and a note if they were converted. `plan` is
    this model's with plain rows.

    Raises:
        MismatchError: another number of layers, rows of another shape, or of a type that cannot be converted exactly.
        CacheError: the model's own caches are of a kind that cannot be read.
    """
    if plan.passed_through:
        raise CacheError(
            f"{what} cannot be used: this model keeps {', '.join(plan.passed_through)}, not keys and values."
        )
    if len(states) != len(plan.layers):
        raise MismatchError(
            f"{what} has {len(states)} layers and this model {len(plan.layers)}; load the model it was made with.",
            "layers",
        )
    out, notes = [], {}
    for layer, given in zip(plan.layers, states, strict=True):
        assert layer.shape is not None
        state, types = _converted(given, layer.shape.dtype, what, layer.index)
        out.append(state)
        if types:
            notes[f"the imported rows were converted from {types}, and lost nothing"] = None
        found = tuple(tuple((tuple(x.shape), x.dtype) for x in side) for side in (state.keys, state.values))
        rows = state.keys[0].shape[-2]
        if found != _expected(state, layer.shape, rows):
            raise MismatchError(
                f"{what} holds rows of {[[str(x) for x in side] for side in found]} in layer {layer.index}, this model "
                f"makes {layer.shape}; load the model it was made with.",
                f"layer {layer.index}",
            )
    return tuple(out), tuple(notes)


def _converted(state: LayerState, dtype: mx.Dtype, what: str, index: int) -> tuple[LayerState, str]:
    """A layer's floating numbers as `dtype`, and a text of the two types; "" if nothing changed.

    Raises:
        MismatchError: the conversion would lose digits.
    """
    types = ""
    sides = []
    for side in (state.keys, state.values):
        parts = []
        for part in side:
            if part.dtype != dtype and mx.issubdtype(part.dtype, mx.floating):
                types = f"{_type_name(part.dtype)} to {_type_name(dtype)}"
                converted = part.astype(dtype)
                if not mx.array_equal(converted.astype(part.dtype), part, equal_nan=True):
                    raise MismatchError(
                        f"{what} holds {_type_name(part.dtype)} numbers in layer {index}, this model computes in "
                        f"{_type_name(dtype)}, and some would lose digits; make the file on a machine where the model "
                        f"computes in {_type_name(dtype)}, too.",
                        f"layer {index}",
                    )
                part = converted
            parts.append(part)
        sides.append(tuple(parts))
    return (replace(state, keys=sides[0], values=sides[1]), types) if types else (state, "")


def _type_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _expected(state: LayerState, shape: RowShape, rows: int) -> tuple[tuple[tuple[tuple[int, ...], Any], ...], ...]:
    codec = Codec(state.bits, state.group_size) if state.kind == "QuantizedKVCache" else Codec()
    return tuple(
        tuple(((1, shape.heads, rows, plane.width), plane.dtype) for plane in codec.planes(dim, shape.dtype))
        for dim in (shape.k_dim, shape.v_dim)
    )


def can_be_rings(states: Sequence[LayerState], plan: CachePlan) -> bool:
    """Whether rings can hold these rows: plain ones for every layer, none of which is a sliding window."""
    full = all(layer.native_window is None for layer in plan.layers)
    return full and all(state.kind == "KVCache" for state in states)


def window_for(num_tokens: int) -> int:
    """The smallest power of two above `num_tokens`."""
    return 2 ** math.ceil(math.log2(num_tokens + 1))


class ImportedCache(PromptCache):
    """An imported mlx-lm cache, whose tokens are unknown: OPAQUE in the log.

    Args:
        notes: for the user, about the imported rows.
        states: the imported layers; rings take the rows if they can (`can_be_rings`), else every layer is mlx-lm's own,
            exactly as saved, so that every later token is equal to mlx-lm's.
    """

    def __init__(
        self, plan: CachePlan, model: Any, states: Sequence[LayerState], files: Any = None, notes: Sequence[str] = ()
    ) -> None:
        rings = can_be_rings(states, plan)
        plan = plan if rings else all_native(plan)
        super().__init__(replace(plan, notes=(*plan.notes, *notes)), model, files)
        if rings:
            self._fill_rings(states)
        else:
            self.layers[:] = [_mlx_lm_layer(state) for state in states]
            self._adopt(None)
            self._empty = tuple(capture(_mlx_lm_layer(state, empty=True)) for state in states)
            self.log.extend([OPAQUE] * states[0].offset)

    def reuse(self, ids: Sequence[int]) -> Reuse:
        """PromptCache.reuse, but imported tokens are never forgotten, since they cannot be prefilled again.

        Raises:
            CacheError: the prompt does not continue all of the imported tokens; nothing was changed.
        """
        num_opaque = self.log.count(OPAQUE)
        if self.rewind_target(min(common_prefix(self.log, ids), len(ids) - 1)) < num_opaque:
            raise CacheError(
                f"This prompt does not continue the {num_opaque:,} imported tokens, which cannot be prefilled again; "
                f"import the cache again or continue a fork of it."
            )
        return super().reuse(ids)

    def save(self, path: str | os.PathLike[str]) -> int:
        """Raise CacheError: without ids a later prompt cannot be compared."""
        raise CacheError("The token ids of an imported cache are unknown; write it with `export_mlx_lm` instead.")

    def _fill_rings(self, states: Sequence[LayerState]) -> None:
        num_tokens = states[0].offset
        self.begin_restore([OPAQUE] * num_tokens)
        arrays = {}
        for plan, state in zip(self.plan.layers, states, strict=True):
            sides = (
                ("k", state.keys, plan.key_codec, plan.key_planes),
                ("v", state.values, plan.value_codec, plan.value_planes),
            )
            for side, rows, codec, planes in sides:
                encoded = codec.encode(rows[0])
                arrays |= {f"{plan.name}.{side}{plane.name}": x for plane, x in zip(planes, encoded, strict=True)}
        for group in self.groups:
            group.import_rows(0, num_tokens, arrays)
        self.finish_restore()


def all_native(plan: CachePlan) -> CachePlan:
    """The plan with the model's own caches in all layers."""
    return replace(plan, layers=tuple(map(pass_through, plan.layers)), notes=())


def _mlx_lm_layer(state: LayerState, *, empty: bool = False) -> Any:
    from mlx_lm.models import cache as theirs

    layer: Any
    match state.kind:
        case "KVCache":
            layer = theirs.KVCache()
        case "RotatingKVCache":
            layer = theirs.RotatingKVCache(state.max_size, state.keep)
        case "QuantizedKVCache":
            layer = theirs.QuantizedKVCache(state.group_size, state.bits)
    if empty:
        return layer
    packed = state.kind == "QuantizedKVCache"
    layer.keys, layer.values = (side if packed else side[0] for side in (state.keys, state.values))
    layer.offset = state.offset
    if state.kind == "RotatingKVCache":
        layer._idx = state.idx
    return layer
