"""Which operations only look at an array in another way, and how: the arithmetic of strides. Pure numbers; no MLX."""

from __future__ import annotations

from collections.abc import Sequence

from mlxkv.memory.graph import Node

Dims = tuple[int, ...]

_VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "Depends", "ExpandDims", "Slice", "Split", "Squeeze",
    "StopGradient", "Transpose",
}  # fmt: skip
_RESHAPES = {"Flatten", "Reshape", "Unflatten"}


def packed(dims: Sequence[int]) -> Dims:
    """The strides of an array that lies in one piece, row by row."""
    strides, step = [], 1
    for n in reversed(dims):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def is_packed(dims: Dims, strides: Dims) -> bool:
    return all(s == p for n, s, p in zip(dims, strides, packed(dims), strict=True) if n != 1)


def is_matrix(dims: Dims, strides: Dims) -> bool:
    """Whether a product takes the last two axes as they lie, transposed or not."""
    if len(dims) < 2:
        return True
    (rows, columns), (down, across) = dims[-2:], strides[-2:]
    straight = across == 1 and (down == columns or rows == 1)
    return straight or (down == 1 and (across == rows or columns == 1))


def view(node: Node, dims: Dims, strides: Dims, new: Dims) -> Dims | None:
    """The strides of the node's output if it shares its input's bytes, else None.

    Args:
        dims, strides: of the input. new: the output's dimensions.
    """
    if node.name in _RESHAPES:
        return reshaped(dims, strides, new)
    if node.name == "Contiguous":
        return strides if is_packed(dims, strides) else None
    if node.name not in _VIEWS:
        return None
    if node.name == "Transpose":
        return tuple(strides[axis] for axis in node.arguments[0])
    if node.name == "Slice":
        return tuple(s * step for s, step in zip(strides, node.arguments[2], strict=True))
    if node.name in ("Broadcast", "BroadcastAxes"):
        pad = len(new) - len(dims)
        kept = (0 if n == 1 and m != 1 else s for n, m, s in zip(dims, new[pad:], strides, strict=True))
        return (0,) * pad + tuple(kept)
    if node.name == "Squeeze":
        gone = {axis % len(dims) for axis in node.arguments[0]}
        return tuple(s for axis, s in enumerate(strides) if axis not in gone)
    if node.name == "ExpandDims":
        added = {axis % len(new) for axis in node.arguments[0]}
        rest = iter(strides)
        return tuple(0 if axis in added else next(rest) for axis in range(len(new)))
    return strides if len(strides) == len(new) else packed(new)


def reshaped(dims: Dims, strides: Dims, new: Dims) -> Dims | None:
    """The strides of the same bytes in other dimensions; None where they have to be copied."""
    if is_packed(dims, strides):
        return packed(new)
    runs: list[tuple[int, int]] = []  # axes that follow each other without a gap: (numbers, stride of the last)
    for n, s in zip(dims, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == s * n:
            runs[-1] = (runs[-1][0] * n, s)
        else:
            runs.append((n, s))
    out, left, step, at = [], 1, 0, iter(runs)
    for n in new:
        if n == 1:
            out.append(0)
            continue
        if left == 1:
            left, step = next(at, (0, 0))
        if not left or left % n:
            return None
        left //= n
        out.append(step * left)
    return tuple(out)
