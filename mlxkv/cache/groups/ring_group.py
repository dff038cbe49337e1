"""RingGroup: the layers of one ring geometry, for the store: export and import of rows by absolute position.

Knows the positions held, those required to continue from an offset, and the exact shape of a chunk; knows no files.
On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import mlx.core as mx

from mlxkv.cache.interchange import Buffer, Places
from mlxkv.cache.planning.plan import LayerPlan
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.rows import Plane, Rows, Spec
from mlxkv.cache.rings.uninitialized import SAFETENSORS_DTYPE, uninitialized_arrays
from mlxkv.errors import CacheError
from mlxkv.safetensors.writer import flat_bytes

Range = tuple[int, int]  # positions [a, b)


class RingGroup:
    """Layers that share a geometry, so that position p is held by all of them or by none."""

    def __init__(
        self, name: str, geometry: Geometry, plans: Sequence[LayerPlan], layers: Sequence[RingKVCache]
    ) -> None:
        self.name = name
        self.geometry = geometry
        self.plans = tuple(plans)
        self.layers = tuple(layers)
        self.row_bytes = sum(plan.row_bytes for plan in plans)
        """Bytes of one position over all layers of the group."""
        self._names = tuple(tuple(_names(plan)) for plan in plans)
        self._restoring = 0  # the offset to continue from
        self._imported: list[Range] = []

    @property
    def sinks(self) -> int:
        return self.geometry.sinks

    @property
    def block(self) -> int:
        return self.geometry.block

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
        """Positions [a, b) of every layer: contiguous, evaluated copies, named as in `shapes`."""
        arrays = {}
        for names, ring in zip(self._names, self.layers, strict=True):
            keys, values = ring.read(a, b)
            arrays |= dict(zip((name for name, _ in names), (*keys, *values), strict=True))
        mx.eval(arrays)  # together: one wait for all layers
        return arrays

    def views(self, a: int, b: int) -> dict[str, list[memoryview]]:
        """The bytes of positions [a, b) in place: for each array of `shapes` its pieces in order. Drop them before the
        cache is used, which writes into the same memory."""
        mx.eval([ring.state for ring in self.layers])
        out = {}
        for names, ring in zip(self._names, self.layers, strict=True):
            for (name, _), pieces in zip(names, ring.row_spans(a, b), strict=True):
                out[name] = _slices(pieces)
        return out

    def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Exactly the tensors of a chunk of `rows` rows: name -> (shape, safetensors dtype)."""
        return {
            name: ((1, plan.shape.heads, rows, plane.width), SAFETENSORS_DTYPE[plane.dtype])
            for plan, names in zip(self.plans, self._names, strict=True)
            if plan.shape
            for name, plane in names
        }

    # -- in ----------------------------------------------------------------------------------------------------------

    def required(self, offset: int) -> list[Range]:
        """The positions that must be imported to continue from `offset`."""
        return self._ranges(offset, 0)

    def optional(self, offset: int) -> list[Range]:
        """Evicted blocks that make the ring rewindable again, newest last."""
        geometry = self.geometry
        first = max(geometry.flushes(offset) - geometry.undo, 0)
        starts = (geometry.sinks + n * geometry.block for n in range(first, geometry.flushes(offset)))
        return [(a, a + geometry.block) for a in starts]

    def begin_restore(self, offset: int) -> None:
        """Allocate buffers that no fork shares, without zeroing them; `places` says where to write rows."""
        self._restoring, self._imported = offset, []
        buffers: list[tuple[Rows, int]] = []
        specs: list[Spec] = []
        for plan, ring in zip(self.plans, self.layers, strict=True):
            if plan.shape is None:
                continue
            if ring.empty():
                shape = plan.shape
                ring.allocate((1, shape.heads, 0, shape.k_dim), shape.v_dim, shape.dtype, shape.dtype)
            for rows in (ring.key_rows, ring.value_rows):
                if rows is not None:
                    buffers.append((rows, len(rows.arrays)))
                    specs += rows.release()  # the old memory before allocating
        arrays = iter(uninitialized_arrays(specs))  # together: each call waits for MLX's readers
        for rows, count in buffers:
            rows.arrays = tuple(islice(arrays, count))

    def places(self, a: int, b: int, parts: Sequence[Range]) -> Places:
        """Where to write `parts` of the rows of [a, b), a whole chunk; call `imported` for each part then."""
        spans: list[tuple[int, int, int | None]] = []
        at = a
        for low, high in sorted(range_ for part in parts for range_ in self._wanted(*part)):
            if at < low:
                spans.append((at, low, None))
            spans += [(s.a, s.b, s.row) for s in self.geometry.segments(low, high, self._restoring)]
            at = high
        if at < b:
            spans.append((at, b, None))
        tensors = {}
        for names, ring in zip(self._names, self.layers, strict=True):
            if ring.key_rows is not None and ring.value_rows is not None:
                arrays = (*ring.key_rows.arrays, *ring.value_rows.arrays)
                for (name, _), x in zip(names, arrays, strict=True):
                    _, heads, rows, width = x.shape
                    tensors[name] = Buffer(flat_bytes(x), width * x.itemsize, heads, rows)
        return Places(tuple(spans), tensors)

    def mark_imported(self, a: int, b: int) -> None:
        """Record that the rows of [a, b) were written to their places."""
        self._imported += self._wanted(a, b)

    def _wanted(self, a: int, b: int) -> list[Range]:
        """The parts of [a, b) that are required or optional."""
        wanted = (*self.required(self._restoring), *self.optional(self._restoring))
        ranges = [(max(a, x), min(b, y)) for x, y in wanted]
        return sorted((x, y) for x, y in ranges if x < y)

    def import_rows(self, a: int, b: int, arrays: dict[str, mx.array]) -> None:
        """Write positions [a, b); those that are neither required nor optional are ignored."""
        for start, end in self._wanted(a, b):
            part = slice(start - a, end - a)
            for plan, names, ring in zip(self.plans, self._names, self.layers, strict=True):
                parts = tuple(arrays[name][..., part, :] for name, _ in names)
                split = len(plan.key_planes)
                ring.write_at(start, end, self._restoring, parts[:split], parts[split:])
                mx.eval(ring.state)
            self._imported.append((start, end))

    def finish_restore(self) -> None:
        """Continue from the restored offset.

        Raises:
            CacheError: a required position was not imported.
        """
        offset = self._restoring
        for a, b in self.required(offset):
            if not self._has(a, b):
                raise CacheError(f"Positions {a:,} to {b:,} of group {self.name} were not restored.")
        undo = 0
        for a, b in reversed(self.optional(offset)):
            if not self._has(a, b):
                break
            undo += 1
        for ring in self.layers:
            ring.finish_restore(offset, undo)

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


def _slices(pieces: Sequence[tuple[mx.array, int, int]]) -> list[memoryview]:
    """The bytes of (array (1, heads, rows, width), first row, rows), head by head."""
    flat = [(flat_bytes(x), x.shape[2], x.shape[3] * x.itemsize, row, count) for x, row, count in pieces]
    return [
        data[(head * rows + row) * row_bytes : (head * rows + row + count) * row_bytes]
        for head in range(pieces[0][0].shape[1])
        for data, rows, row_bytes, row, count in flat
    ]
