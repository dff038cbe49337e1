"""StateGroup: recurrent states, as the store sees them: whole snapshots at a position, in and out.

A snapshot after p tokens is named as the one row [p - 1, p), so that it is saved and found like any row of that
position; its arrays have the shapes that the model makes (`cache/recurrent/state_shapes.py`). Used on the MLX thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlxkv.cache.groups.ring_group import Range
from mlxkv.cache.recurrent.checkpoints import Checkpoints
from mlxkv.cache.recurrent.state import Snapshot, arrays_of, capture, restore_snapshot, scalars_of, with_arrays
from mlxkv.cache.recurrent.state_shapes import StateShape, StateShapes
from mlxkv.cache.rings.uninitialized import SAFETENSORS_DTYPE
from mlxkv.errors import CacheError

_CONSTANT_AFTER = 1 << 30  # tokens: long after shapes have settled


class StateGroup:
    """The recurrent caches of a model.

    Args:
        members: their names in files, by index in `plan.leaves`; in the order of `checkpoints.caches`.
        tokens: the log; its length is the position of the caches.
    """

    name = "state"
    sinks = 0
    block = 0  # snapshots, not rows

    def __init__(
        self, members: Mapping[int, str], checkpoints: Checkpoints, shapes: StateShapes, tokens: Sequence[int]
    ) -> None:
        self._members, self._checkpoints, self._state_shapes, self._tokens = members, checkpoints, shapes, tokens
        self._restoring = 0  # the offset to continue from
        self._imported: dict[str, mx.array] | None = None

    @cached_property
    def unsaved(self) -> tuple[str, ...]:
        """Class names of the caches whose state has no fixed shape, or numbers that files cannot hold."""
        shapes, settled = self._state_shapes.at(_CONSTANT_AFTER), self._state_shapes.is_constant
        bad = (
            not settled[i] or any(dtype not in SAFETENSORS_DTYPE for _, dtype in shapes[i].arrays.values())
            for i in self._members
        )
        return tuple(type(c).__name__ for c, is_bad in zip(self._checkpoints.caches, bad, strict=True) if is_bad)

    @property
    def row_bytes(self) -> int:
        """Bytes of one snapshot."""
        return sum(math.prod(shape) * dtype.size for shape, dtype in self._arrays.values())

    def layout(self) -> dict[str, Any]:
        return {
            "classes": [type(cache).__name__ for cache in self._checkpoints.caches],
            "arrays": {name: [*shape, SAFETENSORS_DTYPE[dtype]] for name, (shape, dtype) in self._arrays.items()},
        }

    # -- out ---------------------------------------------------------------------------------------------------------

    @property
    def prefixes(self) -> list[int]:
        """The positions of the checkpoints at the ends of prefixes."""
        return self._checkpoints.prefixes

    def held(self) -> list[Range]:
        """The current position and those of the checkpoints."""
        return [(p - 1, p) for p in sorted({*(c.position for c in self._checkpoints), len(self._tokens)}) if p]

    def export_rows(self, a: int, b: int) -> dict[str, mx.array]:
        """The snapshot after `b` tokens.

        Raises:
            CacheError: the caches differ from those that the model was observed to make.
        """
        arrays: dict[str, mx.array] = {}
        for name, snapshot, state_shape in zip(self._members.values(), self._snapshots(b), self._at(b), strict=True):
            found = arrays_of(snapshot)
            same = {path: (tuple(x.shape), x.dtype) for path, x in found.items()} == state_shape.arrays
            if a != b - 1 or not same or scalars_of(snapshot) != state_shape.scalars:
                raise CacheError(
                    f"The state of layer {name} at token {b:,} has another shape than its model makes; not saved."
                )
            arrays |= {f"{name}.s{i}": found[path] for i, path in enumerate(state_shape.arrays)}
        padded = {name: mx.contiguous(_padded(x, self._arrays[name][0])) for name, x in arrays.items()}
        mx.eval(padded)
        return padded

    def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (shape, SAFETENSORS_DTYPE[dtype]) for name, (shape, dtype) in self._arrays.items()}

    # -- in ----------------------------------------------------------------------------------------------------------

    def required(self, offset: int) -> list[Range]:
        return [(offset - 1, offset)] if offset else []

    def optional(self, offset: int) -> list[Range]:
        return []

    def begin_restore(self, offset: int) -> None:
        self._restoring, self._imported = offset, None

    def import_rows(self, a: int, b: int, arrays: dict[str, mx.array]) -> None:
        """Import the snapshot; those of other positions are ignored."""
        if (a, b) == (self._restoring - 1, self._restoring):
            self._imported = arrays

    def finish_restore(self) -> None:
        """Continue from the restored offset.

        Raises:
            CacheError: its snapshot was not imported.
        """
        offset, arrays, self._imported = self._restoring, self._imported, None
        if arrays is None:
            raise CacheError(f"The state at token {offset:,} was not restored.")
        members = zip(self._members.values(), self._checkpoints.caches, self._at(offset), strict=True)
        for name, cache, made in members:
            found = {
                path: arrays[f"{name}.s{i}"][tuple(map(slice, shape))]
                for i, (path, (shape, _)) in enumerate(made.arrays.items())
            }
            mx.eval(found)
            restore_snapshot(cache, with_arrays(made.blank, found))

    # ----------------------------------------------------------------------------------------------------------------

    def _at(self, num_tokens: int) -> list[StateShape]:
        shapes = self._state_shapes.at(num_tokens)
        return [shapes[i] for i in self._members]

    @cached_property
    def _arrays(self) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        """The arrays of a chunk, in their final shapes; an earlier state fills the first part of them."""
        return {
            f"{name}.s{i}": array
            for name, state_shape in zip(self._members.values(), self._at(_CONSTANT_AFTER), strict=True)
            for i, array in enumerate(state_shape.arrays.values())
        }

    def _snapshots(self, position: int) -> Sequence[Snapshot]:
        if position == len(self._tokens):
            return [capture(cache) for cache in self._checkpoints.caches]
        checkpoint = self._checkpoints.newest(position, position)
        if checkpoint is None:
            raise CacheError(f"The state at token {position:,} was not saved.")
        return checkpoint.snapshots


def _padded(x: mx.array, shape: tuple[int, ...]) -> mx.array:
    if x.shape == shape:
        return x
    return mx.pad(x, [(0, full - size) for full, size in zip(shape, x.shape, strict=True)])
