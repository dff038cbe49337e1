"""LayerGroup: the layers of one ring geometry, as the store sees them: rows by absolute position, in and out.

Knows which positions are held, which are needed to go on from an offset, and the exact shape of a chunk; knows
nothing of files. Used on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxkv.cache.geometry import Geometry
from mlxkv.cache.plan import CachePlan, LayerPlan
from mlxkv.cache.ring import RingKVCache
from mlxkv.errors import CacheError

Range = tuple[int, int]  # positions [a, b)

_SAFETENSORS_DTYPE = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


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
        return sum(plan.shape.row_bytes for plan in self.plans if plan.shape)

    def layout(self) -> dict[str, Any]:
        geometry = self.geometry
        return {
            "class": "RingKVCache",
            "sinks": geometry.sinks,
            "window": geometry.window,
            "block": geometry.block,
            "native_window": self.plans[0].native_window,
            "streaming": [plan.index for plan in self.plans if plan.rotation is not None],
            "layers": {
                str(p.index): [p.shape.heads, p.shape.k_dim, p.shape.v_dim, _SAFETENSORS_DTYPE[p.shape.dtype]]
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
            arrays[f"{plan.index}.k"], arrays[f"{plan.index}.v"] = ring.read(a, b)
        return arrays

    def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Exactly the tensors of a chunk of `rows` rows: name -> (shape, safetensors dtype)."""
        out: dict[str, tuple[tuple[int, ...], str]] = {}
        for plan in self.plans:
            if plan.shape is not None:
                dtype = _SAFETENSORS_DTYPE[plan.shape.dtype]
                out[f"{plan.index}.k"] = ((1, plan.shape.heads, rows, plan.shape.k_dim), dtype)
                out[f"{plan.index}.v"] = ((1, plan.shape.heads, rows, plan.shape.v_dim), dtype)
        return out

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
                keys, values = arrays[f"{plan.index}.k"], arrays[f"{plan.index}.v"]
                ring.write_at(start, end, self._restoring, keys[..., part, :], values[..., part, :])
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


def make_groups(plan: CachePlan, layers: Sequence[Any]) -> tuple[LayerGroup, ...]:
    """The ring layers of a plan, grouped by geometry; "full" and "window<n>" are their names."""
    members: dict[str, list[tuple[LayerPlan, RingKVCache]]] = {}
    for layer_plan, layer in zip(plan.layers, layers, strict=True):
        if layer_plan.geometry is not None:
            native = layer_plan.native_window
            members.setdefault("full" if native is None else f"window{native}", []).append((layer_plan, layer))
    groups = []
    for name, pairs in members.items():
        geometry = pairs[0][0].geometry
        assert geometry is not None
        groups.append(LayerGroup(name, geometry, [p for p, _ in pairs], [r for _, r in pairs]))
    return tuple(groups)
