"""LayerPlan: one cache of a model, planned as a ring (with its rows' codec) or left as the model's own, and its bytes.

`plan.py` plans all caches of a model together, `probe.py` observes what the model stores in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.probe import RowShape, Sinks
from mlxkv.cache.planning.traits import LeafTraits
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.quantized import QuantizedRingKVCache
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.rows import PLAIN, Codec, Plane
from mlxkv.cache.rings.sink_rotation import SinkRotation
from mlxkv.device import Device
from mlxkv.errors import ConfigError

FULL = ("KVCache", "ConcatenateKVCache")
"""mlx-lm's caches of layers that attend to everything."""
_BOUNDED = ("ArraysCache", "ChunkedKVCache")  # of constant size, or cut by the model itself


@dataclass(frozen=True)
class LayerPlan:
    """The plan of one cache. `geometry` None: the model's own cache, unchanged."""

    index: int
    native_class: str
    shape: RowShape | None = None
    geometry: Geometry | None = None
    native_window: int | None = None
    rotation: SinkRotation | None = None
    key_codec: Codec = PLAIN
    value_codec: Codec = PLAIN
    is_fused: bool = False  # quantized rows are always decoded for attention
    is_streaming: bool = False  # no gap between the sinks and the rest after eviction
    is_shared: bool = False  # layers without a cache read this one
    children: tuple[LayerPlan, ...] = ()  # of a CacheList, each by the same rules
    child: int | None = None  # its index there

    @property
    def name(self) -> str:
        """Its name in files: "3", and "3.1" for the second child of a CacheList."""
        return str(self.index) if self.child is None else f"{self.index}.{self.child}"

    @property
    def key_planes(self) -> tuple[Plane, ...]:
        return self.key_codec.planes(self.shape.k_dim, self.shape.dtype) if self.shape else ()

    @property
    def value_planes(self) -> tuple[Plane, ...]:
        return self.value_codec.planes(self.shape.v_dim, self.shape.dtype) if self.shape else ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in this layer, as stored."""
        planes = (*self.key_planes, *self.value_planes)
        return self.shape.heads * sum(p.width * p.dtype.size for p in planes) if self.shape else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers of this layer (0 for the model's own caches, whose size is not bounded here)."""
        if self.geometry is None or self.shape is None:
            return 0
        pristine = self.geometry.sinks if self.rotation is not None else 0
        key_bytes = self.shape.heads * sum(p.width * p.dtype.size for p in self.key_planes)
        return self.geometry.rows * self.row_bytes + pristine * key_bytes

    def make(self, native: Any) -> Any:
        if self.children:
            native.caches = tuple(p.make(c) for p, c in zip(self.children, native.caches, strict=True))
        if self.geometry is None:
            return native
        codecs = (self.key_codec, self.value_codec)
        ring = (self.geometry, self.rotation, self.native_window, *codecs, self.is_shared)
        return (
            RingKVCache(*ring)
            if self.key_codec == self.value_codec == PLAIN
            else QuantizedRingKVCache(*ring, self.is_fused)
        )


def plan_leaf(
    plan: LayerPlan,
    native: Any,
    seen: LeafTraits,
    sinks: Sinks,
    config: CacheConfig,
    geometry: Geometry,
    asked: int | None,
) -> LayerPlan:
    """Plan one cache. `asked`: the window that the model masks its sliding layers to."""
    if seen.shape is None:
        return plan
    plan = replace(plan, shape=seen.shape, is_shared=seen.is_shared)
    if plan.native_class in FULL:
        return replace(plan, geometry=geometry, rotation=sinks.rotation, is_streaming=sinks.is_streaming)
    if plan.native_class != "RotatingKVCache":
        return replace(plan, shape=None)
    # PLaMo 3 masks its caches to one token more than they keep: a prefill saw it, a decode step did not.
    window = min(max(native.max_size - native.keep, asked or 0), geometry.window)
    slack = geometry.undo * geometry.block
    return replace(plan, geometry=config.native_geometry(window, slack, native.keep), native_window=window)


def pass_through(plan: LayerPlan) -> LayerPlan:
    """The plan with the model's own cache."""
    return LayerPlan(
        plan.index, plan.native_class, children=tuple(pass_through(child) for child in plan.children), child=plan.child
    )


def unbounded_in(plan: LayerPlan) -> list[str]:
    """The classes of those caches in a layer that grow with every token."""
    leaves = plan.children or (plan,)
    return [leaf.native_class for leaf in leaves if leaf.geometry is None and leaf.native_class not in _BOUNDED]


def quantized(plan: LayerPlan, config: CacheConfig, device: Device) -> LayerPlan:
    """The plan with rows of `config.bits`; groups of 32 where 64 does not divide the head size.

    Decoded for every call where the device's products of packed rows are not exact: a prefill attends to decoded rows,
    so a reply would depend on which tokens were prefilled and which decoded.

    Raises:
        ConfigError: no group size divides the head size.
    """
    if plan.geometry is None or plan.shape is None:
        return plan
    dims = (plan.shape.k_dim, plan.shape.v_dim)
    sizes = [size for size in (config.group_size, 32) if all(dim % size == 0 for dim in dims)]
    if not sizes:
        raise ConfigError(
            f"`bits` is {config.bits!r}, and rows of {dims[0]} and {dims[1]} numbers (layer {plan.name}) do not "
            f"divide into groups of 32; leave it out for this model."
        )
    # An indexer stores keys only: empty rows are not quantized.
    keys, values = (
        Codec(b, sizes[0]) if dim else PLAIN for b, dim in zip(config.key_and_value_bits, dims, strict=True)
    )
    is_fused = not device.has_exact_packed_products(plan.shape.dtype)
    return replace(plan, key_codec=keys, value_codec=values, is_fused=is_fused)
