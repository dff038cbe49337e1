"""Re-rotating attention sinks, so that an endless chat keeps the distances the model was trained on.

Window keys keep their absolute rotary positions: only differences matter and those stay below the window. The sinks
would drift away without end; after E evicted tokens they are rotated forward by E (StreamingLLM, arXiv 2309.17453).
Rotations compose, so this is one rope call on the sinks' rows, always from pristine copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Rope = Callable[..., mx.array]


class SinkRotation:
    """Moves keys that were rotated by a layer's rope forward by any number of positions."""

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self.rope = rope
        # Some ropes also multiply (YaRN's mscale): what rope does to ones at position 0 is that factor, per dimension.
        scale = rope(mx.ones((1, 1, 1, head_dim), dtype=mx.float32), offset=0)
        self.scale = None if mx.array_equal(scale, mx.ones_like(scale)).item() else scale

    def __call__(self, keys: mx.array, by: int) -> mx.array:
        """`keys` (B, n_kv_heads, rows, head_dim), each row moved forward by `by` positions. A new array."""
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
        x = mx.random.normal((1, 2, 1, head_dim), key=mx.random.key(0))
        for start, by in ((0, 1), (0, 977), (3, 4096), (5, 60_000)):
            moved = rotation(rope(x, offset=start), by)
            direct = rope(x, offset=start + by)
            if not mx.allclose(moved, direct, rtol=1e-2, atol=2e-2).item():
                return None
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return None  # a rope with another signature or other shapes: nothing we can compose
    return rotation
