"""What each layer of a model gets: from the cache the model itself asks for to a bounded one, and its bytes.

`plan_cache` looks at the model without computing anything; `CachePlan.make` builds the caches. Used on the thread
that owns MLX. How a ring works is `ring.py`; all layers together with the token log are `prompt_cache.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.geometry import Geometry
from mlxkv.cache.positions import SinkRotation, rotation_for
from mlxkv.cache.quantized import QuantizedRingKVCache
from mlxkv.cache.ring import RingKVCache
from mlxkv.cache.rows import PLAIN, Codec, Plane
from mlxkv.errors import ConfigError

# Bytes: what a default window is planned with where the caller names no budget.
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class RowShape:
    """One layer's key and value rows, as the model makes them."""

    heads: int
    k_dim: int
    v_dim: int
    dtype: mx.Dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's key and value in this layer."""
        return self.heads * (self.k_dim + self.v_dim) * self.dtype.size


@dataclass(frozen=True)
class LayerPlan:
    """`geometry` None: the model's own cache passes through as it is."""

    index: int
    native_class: str
    shape: RowShape | None = None
    geometry: Geometry | None = None
    native_window: int | None = None
    rotation: SinkRotation | None = None
    key_codec: Codec = PLAIN
    value_codec: Codec = PLAIN
    is_fused: bool = False  # quantized rows are always decoded for attention

    @property
    def key_planes(self) -> tuple[Plane, ...]:
        return self.key_codec.planes(self.shape.k_dim, self.shape.dtype) if self.shape else ()

    @property
    def value_planes(self) -> tuple[Plane, ...]:
        return self.value_codec.planes(self.shape.v_dim, self.shape.dtype) if self.shape else ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in this layer, as they are kept."""
        planes = (*self.key_planes, *self.value_planes)
        return self.shape.heads * sum(p.width * p.dtype.size for p in planes) if self.shape else 0

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's buffers, all of them (0 for a pass-through, which grows as it likes)."""
        if self.geometry is None or self.shape is None:
            return 0
        pristine = self.geometry.sinks if self.rotation is not None else 0
        key_bytes = self.shape.heads * sum(p.width * p.dtype.size for p in self.key_planes)
        return self.geometry.rows * self.row_bytes + pristine * key_bytes

    def make(self, native: Any) -> Any:
        if self.geometry is None:
            return native
        ring = (self.geometry, self.rotation, self.native_window, self.key_codec, self.value_codec)
        return (
            RingKVCache(*ring)
            if self.key_codec == self.value_codec == PLAIN
            else QuantizedRingKVCache(*ring, self.is_fused)
        )


@dataclass(frozen=True)
class CachePlan:
    """One plan per cache entry of the model, and what to tell the user about it."""

    layers: tuple[LayerPlan, ...]
    config: CacheConfig
    notes: tuple[str, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Bytes that the caches will hold once allocated."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Bytes one attended token takes over all layers."""
        return sum(layer.row_bytes for layer in self.layers if layer.geometry)

    @property
    def geometry(self) -> Geometry | None:
        """The ring of the full-attention layers; of the widest sliding-window layer where there are none."""
        rings = [layer for layer in self.layers if layer.geometry]
        full = [layer.geometry for layer in rings if layer.native_window is None]
        return full[0] if full else max((r.geometry for r in rings if r.geometry), key=lambda g: g.window, default=None)

    @property
    def resolved(self) -> CacheConfig:
        """The config with every default decided, so that the same cache can be made again anywhere."""
        if self.geometry is None:
            return self.config
        g = self.geometry
        return replace(self.config, window=g.window, sinks=g.sinks, block=g.block, slack=g.undo * g.block)

    @property
    def passed_through(self) -> tuple[str, ...]:
        """Class names of the caches left as they are."""
        return tuple(sorted({layer.native_class for layer in self.layers if layer.geometry is None}))

    @property
    def description(self) -> str:
        """One sentence: how this model's cache is bounded."""
        geometry = self.geometry
        if geometry is None:
            return "This model's own caches are used as they are."
        rings = sum(layer.geometry is not None for layer in self.layers)
        text = (
            f"{rings} layers keep {geometry.sinks} + {geometry.window:,} tokens, "
            f"evict {geometry.block} at a time and rewind at least {geometry.undo * geometry.block}"
        )
        if self.config.bits is not None:
            text += f", in {self.config.bits} bits"
        return "; ".join([text, *self.notes]) + "."

    def make(self, model: nn.Module) -> list[Any]:
        return [plan.make(native) for plan, native in zip(self.layers, native_cache(model), strict=True)]


def native_cache(model: Any) -> list[Any]:
    """The cache entries that mlx-lm would use."""
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(model)


def trained_length(model: Any) -> int | None:
    """The context the model was trained for, where its arguments say so."""
    args = getattr(model, "args", None)
    for holder in (args, getattr(args, "text_config", None)):
        value = (
            holder.get("max_position_embeddings")
            if isinstance(holder, dict)
            else getattr(holder, "max_position_embeddings", None)
        )
        if isinstance(value, int) and value > 0:
            return value
    return None


def plan_cache(
    model: Any, config: CacheConfig | None = None, *, system_tokens: int = 0, budget: int = _UNLIMITED
) -> CachePlan:
    """Plan a bounded cache for any mlx-lm model.

    Args:
        model: an mlx-lm model; its weights are not read.
        config: what to bound it to.
        system_tokens: length of the system prompt, for `sinks="system"`.
        budget: bytes the cache may take when `config.window` is None.

    Raises:
        ConfigError: `config.bits` does not fit this model's rows.
    """
    config = config or CacheConfig()
    native, shapes = _probe(model)
    layers = list(getattr(model, "layers", []))
    paired = layers if len(layers) == len(native) else [None] * len(native)
    row_bytes = sum(s.row_bytes for c, s in zip(native, shapes, strict=True) if s and _is_full(c))
    if config.bits is not None:  # scales and biases included, a little more than bits/16 of 16-bit rows
        row_bytes = row_bytes * 9 // 16
    length = trained_length(model)
    window = config.window or config.default_window(length, row_bytes, budget)
    geometry = config.geometry(window, system_tokens)
    plans, notes = [], []
    if config.window is not None and geometry.window != window:
        notes.append(f"the window of {window:,} is rounded up to {geometry.window:,}, whole blocks of {geometry.block}")
    for i, (cache, shape, layer) in enumerate(zip(native, shapes, paired, strict=True)):
        plans.append(_plan_layer(i, cache, shape, layer, config, geometry))
    if config.bits is not None:
        plans = [_quantized(plan, config) for plan in plans]
        if not _takes_packed_rows(model, plans):
            plans = [replace(plan, is_fused=True) for plan in plans]
    rings = [p for p in plans if p.geometry is not None and p.native_window is None]
    if config.positions == "streaming" and geometry.sinks and any(p.rotation is None for p in rings):
        notes.append("its positions do not compose, so the pinned tokens keep absolute positions")
    if outside := sorted({p.native_class for p in plans if p.geometry is None}):
        notes.append(f"{', '.join(outside)} is used as the model made it, outside the cache budget")
    return CachePlan(tuple(plans), config, tuple(notes))


def make_cache(model: Any, config: CacheConfig | None = None) -> list[Any]:
    """Bounded caches for an mlx-lm model, to pass as `prompt_cache` to mlx-lm's own loops.

    Returns one entry per layer. `sinks="system"` means 4 here, where there is no chat. Warns of layers whose caches
    stay as the model made them, and of a window that had to be rounded up.
    """
    plan = plan_cache(model, config)
    for note in plan.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return plan.make(model)


def _plan_layer(
    index: int, native: Any, shape: RowShape | None, layer: Any, config: CacheConfig, geometry: Geometry
) -> LayerPlan:
    name = type(native).__name__
    if shape is None:
        return LayerPlan(index, name)
    if _is_full(native):
        streaming = config.positions == "streaming" and geometry.sinks > 0
        rotation = rotation_for(layer, shape.k_dim) if streaming and layer is not None else None
        return LayerPlan(index, name, shape, geometry, None, rotation)
    window = min(native.max_size, geometry.window)
    return LayerPlan(index, name, shape, config.native_geometry(window, geometry.undo * geometry.block), window)


def _quantized(plan: LayerPlan, config: CacheConfig) -> LayerPlan:
    """The plan with rows of `config.bits`; groups of 32 where 64 does not divide the head size.

    Raises:
        ConfigError: no group size divides the head size.
    """
    if plan.geometry is None or plan.shape is None:
        return plan
    dims = (plan.shape.k_dim, plan.shape.v_dim)
    sizes = [size for size in (config.group_size, 32) if all(dim % size == 0 for dim in dims)]
    if not sizes:
        raise ConfigError(
            f"`bits` is {config.bits!r}, and rows of {dims[0]} and {dims[1]} numbers (layer {plan.index}) do not "
            f"divide into groups of 32; leave it out for this model."
        )
    keys, values = config.bits if isinstance(config.bits, tuple) else (config.bits, config.bits)
    return replace(plan, key_codec=Codec(keys, sizes[0]), value_codec=Codec(values, sizes[0]))


def _takes_packed_rows(model: Any, plans: Sequence[LayerPlan]) -> bool:
    """Whether the model's attention takes quantized rows: a decode step is run through the graph, nothing computed."""
    caches = [plan.make(native) for plan, native in zip(plans, native_cache(model), strict=True)]
    try:
        model(mx.zeros((1, 1), mx.int32), cache=caches)
    except (ValueError, TypeError, AttributeError):  # learned sinks, or an attention of its own
        return False
    return True


def _is_full(cache: Any) -> bool:
    return type(cache).__name__ == "KVCache"


def _is_sliding(cache: Any) -> bool:
    return type(cache).__name__ == "RotatingKVCache" and not cache.keep


def _probe(model: Any) -> tuple[list[Any], Sequence[RowShape | None]]:
    """The model's own caches and the rows it puts into them: one token is run through the graph, nothing computed."""
    native = native_cache(model)
    model(mx.zeros((1, 1), mx.int32), cache=native)
    shapes = [_row_shape(c) if _is_full(c) or _is_sliding(c) else None for c in native]
    return native, shapes


def _row_shape(cache: Any) -> RowShape | None:
    if cache.keys is None:
        return None
    _, heads, _, k_dim = cache.keys.shape
    return RowShape(heads, k_dim, cache.values.shape[-1], cache.keys.dtype)
