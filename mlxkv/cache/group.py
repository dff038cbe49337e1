"""LayerGroup: the layers of one ring geometry, as the store sees them: rows by absolute position, in and out.

Knows which positions are held, which are needed to go on from an offset, and the exact shape of a chunk; knows
nothing of files. Used on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxkv.cache.geometry import Geometry
from mlxkv.cache.plan import LayerPlan
from mlxkv.cache.ring import RingKVCache
from mlxkv.cache.rows import Plane
from mlxkv.errors import CacheError

Range = tuple[int, int]  # positions [a, b)

SAFETENSORS_DTYPE = {
    mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.int64: "I64",
    mx.uint8: "U8", mx.bool_: "BOOL",
}  # fmt: skip


class LayerGroup:
    """Layers that share a geometry, so that position p is held by all of them or by none."""

    def __init__(
        self, name: str, geometry: Geometry, plans: Sequence[LayerPlan], layers: Sequence[RingKVCache]
    ) -> None:
        self.name = name
        self.geometry = geometry
        self.plans = tuple(plans)
        self.layers = tuple(layers)
        self._restoring: int | None = None
        self._imported: list[Range] = []

    @property
    def sinks(self) -> int:
        return self.geometry.sinks

    @property
    def block(self) -> int:
        return self.geometry.block

    @property
    def row_bytes(self) -> int:
        """Bytes of one position over all layers of the group."""
        return sum(plan.row_bytes for plan in self.plans)

    def layout(self) -> dict[str, Any]:
        geometry = self.geometry
        return {
            "class": type(self.layers[0]).__name__,
            "bits": [self.plans[0].key_codec.bits, self.plans[0].value_codec.bits],
            "group_size": self.plans[0].key_codec.group_size if self.plans[0].key_codec.bits else None,
            "sinks": geometry.sinks,
            "window": geometry.window,
            "block": geometry.block,
            "native_window": self.plans[0].native_window,
            "streaming": [plan.name for plan in self.plans if plan.rotation is not None],
            "layers": {
                p.name: [p.shape.heads, p.shape.k_dim, p.shape.v_dim, SAFETENSORS_DTYPE[p.shape.dtype]]
                for p in self.plans
                if p.shape
            },
        }

    # -- out ---------------------------------------------------------------------------------------------------------

    def held(self) -> list[Range]:
        """Position ranges that can be exported now, ascending and disjoint."""
        ring = self.layers[0]
        return self._ranges(ring.offset, ring.undo_blocks)

    def export_rows(self, a: int, b: int) -> dict[str, mx.array]:
        """Positions [a, b) of every layer: contiguous, evaluated copies named as `shapes` says."""
        arrays = {}
        for plan, ring in zip(self.plans, self.layers, strict=True):
            keys, values = ring.read(a, b)
            arrays |= dict(zip((name for name, _ in _names(plan)), (*keys, *values), strict=True))
        mx.eval(arrays)  # together: one wait for all layers
        return arrays

    def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Exactly the tensors of a chunk of `rows` rows: name -> (shape, safetensors dtype)."""
        return {
            name: ((1, plan.shape.heads, rows, plane.width), SAFETENSORS_DTYPE[plane.dtype])
            for plan in self.plans
            if plan.shape
            for name, plane in _names(plan)
        }

    # -- in ----------------------------------------------------------------------------------------------------------

    def required(self, offset: int) -> list[Range]:
        """What must be imported to go on from `offset`."""
        return self._ranges(offset, 0)

    def optional(self, offset: int) -> list[Range]:
        """Evicted blocks that make the ring rewindable again, newest last."""
        geometry = self.geometry
        first = max(geometry.flushes(offset) - geometry.undo, 0)
        starts = (geometry.sinks + n * geometry.block for n in range(first, geometry.flushes(offset)))
        return [(a, a + geometry.block) for a in starts]

    def begin_restore(self, offset: int) -> None:
        self._restoring, self._imported = offset, []
        for plan, ring in zip(self.plans, self.layers, strict=True):
            if plan.shape is not None and ring.empty():
                shape = plan.shape
                ring.allocate((1, shape.heads, 0, shape.k_dim), shape.v_dim, shape.dtype, shape.dtype)

    def import_rows(self, a: int, b: int, arrays: dict[str, mx.array]) -> None:
        """Put positions [a, b) back. Positions that are neither required nor optional are passed over."""
        if self._restoring is None:
            raise CacheError("Rows can only be imported between begin_restore and finish_restore.")
        for low, high in [*self.required(self._restoring), *self.optional(self._restoring)]:
            start, end = max(a, low), min(b, high)
            if start >= end:
                continue
            part = slice(start - a, end - a)
            for plan, ring in zip(self.plans, self.layers, strict=True):
                parts = tuple(arrays[name][..., part, :] for name, _ in _names(plan))
                split = len(plan.key_planes)
                ring.write_at(start, end, self._restoring, parts[:split], parts[split:])
                mx.eval(ring.state)
            self._imported.append((start, end))

    def finish_restore(self) -> None:
        """Go on from the restored offset.

        Raises:
            CacheError: a required position was not imported.
        """
        offset, self._restoring = self._restoring, None
        if offset is None:
            raise CacheError("finish_restore was called without begin_restore.")
        for a, b in self.required(offset):
            if not self._has(a, b):
                raise CacheError(f"Positions {a:,} to {b:,} of group {self.name} were not restored.")
        undo = 0
        for a, b in reversed(self.optional(offset)):
            if not self._has(a, b):
                break
            undo += 1
        for ring in self.layers:
            ring.settle(offset, undo)

    def _has(self, a: int, b: int) -> bool:
        for low, high in sorted(self._imported):
            if low <= a < high:
                a = high
        return a >= b

    def _ranges(self, offset: int, undo: int) -> list[Range]:
        K = self.sinks
        if offset <= K:
            return [(0, offset)] if offset else []
        first = self.geometry.first_kept(offset, undo)
        sinks = [(0, K)] if K else []
        return [*sinks, (first, offset)]


def _names(plan: LayerPlan) -> list[tuple[str, Plane]]:
    """The names of a layer's arrays in a chunk, keys first: `0.k`, `0.v`; quantized `0.k.w`, `0.k.s`, `0.k.b`, ..."""
    keys = [(f"{plan.name}.k{plane.name}", plane) for plane in plan.key_planes]
    return keys + [(f"{plan.name}.v{plane.name}", plane) for plane in plan.value_planes]

