"""A bound of what a model call takes, several times above the prediction and known without a graph.

Where memory is plenty it spares the prediction, which takes as long as a turn of a small model. Pure but for `widths`,
which looks at shapes. On the MLX thread.
"""

from __future__ import annotations

from typing import Any

from mlx.utils import tree_flatten

from mlxkv.cache.plan import CachePlan

_ARRAYS = 100  # per token and as wide as the widest: twice what MLX's queue can hold (`allocation._AHEAD`)
_SCORES = 10  # of heads x tokens x rows: two layers of attention without a fused kernel
_COPIES = 4  # of one layer's rows, decoded or concatenated
_UNKNOWN = 1 << 62


def widths(model: Any) -> tuple[int, int]:
    """The longest axis of a weight in the layers, and of any (the vocabulary); 0 where there are none."""
    layers = [layer.parameters() for layer in getattr(model, "layers", ())]
    return _longest(layers), _longest(model.parameters() if hasattr(model, "parameters") else [])


def most_bytes(widths: tuple[int, int], plan: CachePlan, chunk: int) -> int:
    """Bytes that a prefill of `chunk` tokens and a decode step stay below; 1 << 62 for caches of more than rows."""
    shapes = [(leaf.shape, leaf.geometry) for leaf in plan.leaves if leaf.shape and leaf.geometry]
    width, widest = widths
    if plan.geometry is None or len(shapes) != len(plan.leaves) or not width:
        return _UNKNOWN  # recurrent layers hold a state per token
    heads = -(-width // min(shape.k_dim or 1 for shape, _ in shapes))
    rows = max(geometry.rows for _, geometry in shapes)
    layer = max(geometry.rows * shape.row_bytes for shape, geometry in shapes)
    per_token = 4 * (_ARRAYS * width + _SCORES * heads * rows)
    return chunk * per_token + 4 * _ARRAYS * widest + _COPIES * layer


def _longest(parameters: Any) -> int:
    arrays: Any = tree_flatten(parameters)
    return max((max(array.shape, default=0) for _, array in arrays), default=0)
