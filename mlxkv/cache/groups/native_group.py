"""NativeGroup: layers whose rows stay in the model's own caches (chunked attention, caches that no ring replaces).

The same interface for the store as `RingGroup`: export and import of rows by absolute position. Used on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlxkv.cache.groups.ring_group import Range
from mlxkv.cache.recurrent.state_shapes import StateShapes
from mlxkv.cache.rings.uninitialized import SAFETENSORS_DTYPE
from mlxkv.errors import CacheError


class NativeGroup:
    """Caches that hold the same positions.

    Args:
        members: by index in `plan.leaves`: the cache's name in files, and the cache.
        shapes: of the model's rows.
    """

    sinks = 0
    block = 1

    def __init__(self, name: str, members: Mapping[int, tuple[str, Any]], shapes: StateShapes) -> None:
        self.name = name
        self._members, self._state_shapes = members, shapes
        self._restoring = 0  # the offset to continue from
        self._imported: list[tuple[Range, dict[str, mx.array]]] = []

    @cached_property
    def _rows(self) -> dict[str, tuple[Any, int, int, mx.Dtype]]:
        """For each array of a chunk: its cache, heads, width and dtype. Caches unused by the model have none."""
        out = {}
        shapes = self._state_shapes.at(1)
        for i, (name, cache) in self._members.items():
            for kind, path in (("k", "keys"), ("v", "values")):
                if path in shapes[i].arrays:
                    (_, heads, _, width), dtype = shapes[i].arrays[path]
                    out[f"{name}.{kind}"] = (cache, heads, width, dtype)
        return out

    @property
    def row_bytes(self) -> int:
        return sum(heads * width * dtype.size for _, heads, width, dtype in self._rows.values())

    def layout(self) -> dict[str, Any]:
        cache = self._first
        return {
            "class": type(cache).__name__,
            "chunk": getattr(cache, "chunk_size", None),
            "layers": {n: [heads, width, SAFETENSORS_DTYPE[t]] for n, (_, heads, width, t) in self._rows.items()},
        }

    # -- out ---------------------------------------------------------------------------------------------------------

    def held(self) -> list[Range]:
        cache = self._first
        start = getattr(cache, "start_position", 0)
        return [(start, cache.offset)] if start < cache.offset else []

    def export_rows(self, a: int, b: int) -> dict[str, mx.array]:
        arrays = {}
        for name, (cache, *_) in self._rows.items():
            start = getattr(cache, "start_position", 0)
            rows = cache.keys if name.endswith(".k") else cache.values
            arrays[name] = mx.contiguous(rows[..., a - start : b - start, :])
        mx.eval(arrays)
        return arrays

    def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {n: ((1, heads, rows, width), SAFETENSORS_DTYPE[t]) for n, (_, heads, width, t) in self._rows.items()}

    # -- in ----------------------------------------------------------------------------------------------------------

    def required(self, offset: int) -> list[Range]:
        """The rows of one chunk, as a chunked cache keeps them: exactly as many, so that every sum is equal."""
        chunk = getattr(self._first, "chunk_size", None) or offset
        return [(max(0, offset - chunk), offset)] if offset else []

    def optional(self, offset: int) -> list[Range]:
        return []

    def begin_restore(self, offset: int) -> None:
        self._restoring, self._imported = offset, []

    def import_rows(self, a: int, b: int, arrays: dict[str, mx.array]) -> None:
        for low, high in self.required(self._restoring):
            start, end = max(a, low), min(b, high)
            if start < end:
                part = {name: x[..., start - a : end - a, :] for name, x in arrays.items()}
                self._imported.append(((start, end), part))

    def finish_restore(self) -> None:
        """Continue from the restored offset.

        Raises:
            CacheError: a required position was not imported.
        """
        offset = self._restoring
        parts, self._imported = sorted(self._imported, key=lambda part: part[0]), []
        for a, b in self.required(offset):
            at = a
            for (low, high), _ in parts:
                at = high if low == at else at
            if at != b:
                raise CacheError(f"Positions {a:,} to {b:,} of group {self.name} were not restored.")
            for name, (cache, *_) in self._rows.items():
                rows = mx.contiguous(mx.concatenate([arrays[name] for _, arrays in parts], axis=2))
                mx.eval(rows)
                setattr(cache, "keys" if name.endswith(".k") else "values", rows)
                cache.offset = offset
                if hasattr(cache, "start_position"):
                    cache.start_position = a

    @property
    def _first(self) -> Any:
        return next((cache for cache, *_ in self._rows.values()), next(iter(self._members.values()))[1])
