"""Rotation of attention sinks, so that an endless chat keeps the distances the model was trained on.

Window keys keep their absolute rotary positions: only differences matter and those stay below the window. The sinks
would drift away; after E evicted tokens they are rotated forward by E (StreamingLLM, arXiv 2309.17453).
Rotations compose, so this is one rope call on the sinks' rows, always from pristine copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Rope = Callable[..., mx.array]

TOLERANCE = 0.03  # of the largest number of the rows: 16-bit keys are rounded before and after they are rotated
UNUSABLE = (TypeError, ValueError, AttributeError, RuntimeError)  # a rope of another signature, or of other rows


class SinkRotation:
    """Moves keys, rotated by a layer's rope, forward by any number of positions."""

    def __init__(self, rope: Rope, head_dim: int, start: int = 0) -> None:
        """`start`: first number of a row that the rope sees (some models rotate the end of it)."""
        self.rope = rope
        self.start, head_dim = start, head_dim - start
        # Some ropes also multiply (YaRN's mscale): a rope of ones at position 0 is that factor, per dimension.
        scale = rope(mx.ones((1, 1, 1, head_dim), dtype=mx.float32), offset=0)
        self.scale = None if mx.array_equal(scale, mx.ones_like(scale)).item() else scale

    def __call__(self, keys: mx.array, by: int) -> mx.array:
        """`keys` (B, n_kv_heads, rows, head_dim) with each row moved forward by `by` positions; a new array."""
        if self.start:
            still, moving = mx.split(keys, [self.start], axis=-1)
            return mx.concatenate([still, self.rotate(moving, by)], axis=-1)
        return self.rotate(keys, by)

    def rotate(self, keys: mx.array, by: int) -> mx.array:
        """The part of the rows that the rope sees."""
        B, H, rows, D = keys.shape
        if self.scale is not None:
            keys = (keys / self.scale).astype(keys.dtype)
        # One row per sequence: rope would otherwise add the row's index to the offset.
        return self.rope(keys.reshape(B, H * rows, 1, D), offset=by).reshape(B, H, rows, D)


def find_rope(layer: nn.Module) -> Rope | None:
    """The one rope of a transformer layer, or None where there is none or more than one."""
    found: dict[int, Any] = {}
    for name, module in layer.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("rope", "rotary_emb", "rope_emb") and callable(module):
            found[id(module)] = module
    return next(iter(found.values())) if len(found) == 1 else None


def ropes_of(layer: nn.Module) -> list[Rope]:
    """All modules of a layer that have the name of a rope."""
    found: dict[int, Any] = {
        id(module): module
        for name, module in layer.named_modules()
        if ("rope" in (last := name.rsplit(".", 1)[-1]) or "rotary" in last) and callable(module)
    }
    # Modules that rotate in a function of their own keep the frequencies (nanochat, talkie).
    tables = [getattr(module, "_rope_freqs", None) for _, module in layer.named_modules()]
    return [*found.values(), *(TableRope(table) for table in tables if isinstance(table, mx.array))]


class TableRope:
    """A rope of these frequencies; the halves of a row are rotated against each other."""

    def __init__(self, freqs: mx.array) -> None:
        self._freqs = freqs  # (dims / 2,)

    def __call__(self, x: mx.array, offset: int) -> mx.array:
        dims = 2 * self._freqs.size
        return mx.fast.rope(x, dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._freqs)


def rotations_of(rope: Rope, head_dim: int) -> list[SinkRotation]:
    """The possible uses of a rope on rows of `head_dim`: on the whole row, or on the end of it."""
    dims = getattr(rope, "dims", None) or getattr(rope, "dim", None)
    if dims is None and (freqs := getattr(rope, "_freqs", None)) is not None:
        dims = 2 * freqs.size
    starts = [0, head_dim - dims] if isinstance(dims, int) and 0 < dims < head_dim else [0]
    rotations = []
    for start in starts:
        try:
            rotations.append(SinkRotation(rope, head_dim, start))
        except UNUSABLE:
            continue
    return rotations


def rotation_for(layer: nn.Module, head_dim: int) -> SinkRotation | None:
    """A layer's rotation if its rope composes, else None (the sinks then keep absolute positions).

    Checked on random rows: rope(x, 0) moved by d must equal rope(x, d), near and far. Dynamic NTK, learned
    positions and latent attention do not pass.
    """
    rope = find_rope(layer)
    if rope is None:
        return None
    try:
        rotation = SinkRotation(rope, head_dim)
        error = composition_error(rotation, head_dim)
    except UNUSABLE:
        return None
    return rotation if float(error.item()) < TOLERANCE else None  # type: ignore[arg-type]


def composition_error(rotation: SinkRotation, head_dim: int) -> mx.array:
    """The error of rope(x, a) moved by d against rope(x, a + d), relative to the largest number; not evaluated."""
    rope, width = rotation.rope, head_dim - rotation.start
    x = mx.random.normal((1, 2, 1, width), key=mx.random.key(0))
    errors = []
    for a, by in ((0, 1), (0, 977), (3, 4096), (5, 60_000)):
        direct = rope(x, offset=a + by)
        errors.append(mx.max(mx.abs(rotation.rotate(rope(x, offset=a), by) - direct)) / mx.max(mx.abs(direct)))
    return mx.max(mx.stack(errors))
