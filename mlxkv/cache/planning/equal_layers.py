"""Comparison of a model's layers, weights aside, so that a test of one layer holds for all equal ones.

Two layers are equal if their modules have the same classes, settings, shapes and small tables (the frequencies of a
rope). A value of an unknown type makes a layer unique. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_TABLE = 4096  # numbers: a rope's table is compared itself, larger arrays by their shapes
_NUMBER = ("layer_idx", "layer_id")  # differs between equal layers
_PLAIN = (bool, int, float, str, bytes, type(None), type, mx.Dtype)


def layer_kinds(layers: Sequence[Any]) -> tuple[Hashable, ...]:
    """For each layer a value that is equal for equal layers; None for other objects."""
    known = {id(layer): layer for layer in layers if isinstance(layer, nn.Module)}
    vectors = {
        id(array): mx.all(array == array[0])
        for layer in known.values()
        for _, module in layer.named_modules()
        for array in module.values()
        if isinstance(array, mx.array) and array.ndim == 1 and array.size
    }
    mx.eval(list(vectors.values()))
    # A norm of one number commutes with a rotation, any other does not: so much of the weights counts.
    uniform = {array for array, is_uniform in vectors.items() if is_uniform.item()}
    found = {key: _described(layer, uniform) for key, layer in known.items()}
    return tuple(found.get(id(layer)) for layer in layers)


def _described(value: Any, uniform: set[int]) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, nn.Module):
        parts = {name: part for name, part in {**vars(value), **value}.items() if name not in _NUMBER}
        return type(value), tuple((name, _entry(name, part, uniform)) for name, part in sorted(parts.items()))
    if isinstance(value, list | tuple):
        return type(value), tuple(_described(part, uniform) for part in value)
    if isinstance(value, dict):
        return dict, tuple((str(name), _described(part, uniform)) for name, part in sorted(value.items(), key=str))
    if isinstance(value, set | frozenset):
        return set, tuple(sorted(map(str, value)))
    return type(value), id(value)


def _entry(name: str, value: Any, uniform: set[int]) -> Hashable:
    if not isinstance(value, mx.array):
        return _described(value, uniform)
    is_table = name.startswith("_") and value.size <= _TABLE  # mlx's modules: an underscore means no parameter
    return value.shape, str(value.dtype), str(value.tolist()) if is_table else id(value) in uniform
