"""StateShapes: the shapes, dtypes and plain values of the model's own caches after n tokens; nothing is computed.

A saved state is only read into such shapes, so that a file never decides what is allocated. The graph of one call is
built and thrown away. On the MLX thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.planning.traits import native_cache, traits_of
from mlxkv.cache.recurrent.state import Snapshot, arrays_of, keeps_state, scalars_of, with_arrays

_CONSTANT_AFTER = 16  # tokens after which the shapes of caches that can be saved no longer change
_IS_CONSTANT = "constant"


@dataclass(frozen=True)
class StateShape:
    """One cache after some number of tokens. `arrays`: shape and dtype by path."""

    arrays: Mapping[str, tuple[tuple[int, ...], mx.Dtype]]
    scalars: Mapping[str, Any]
    blank: Snapshot  # the cache's attributes, with None for each array


class StateShapes:
    """The StateShape of each cache, in the order of `probe.leaves`; found once per model and kept in its traits."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @cached_property
    def _known(self) -> dict[Any, Any]:  # lazy: finding the traits compares them with the model each time
        return traits_of(self._model).state_shapes

    def at(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Shapes after `num_tokens`: exact up to 16, and from then on where `is_constant`."""
        n = min(num_tokens, _CONSTANT_AFTER)
        if n not in self._known:
            self._known[n] = self._shapes_after(native_cache(self._model), n)
        return self._known[n]

    @property
    def is_constant(self) -> tuple[bool, ...]:
        """For each cache, whether its arrays keep their shapes from then on."""
        if _IS_CONSTANT not in self._known:
            caches = native_cache(self._model)
            shapes = self._shapes_after(caches, _CONSTANT_AFTER)
            self._known.setdefault(_CONSTANT_AFTER, shapes)
            # A second call, of one token: dtypes may also differ from those of the first.
            after = self._shapes_after(caches, 1)
            self._known[_IS_CONSTANT] = tuple(
                (a.arrays, a.scalars) == (b.arrays, b.scalars) for a, b in zip(shapes, after, strict=True)
            )
        return self._known[_IS_CONSTANT]

    def _shapes_after(self, caches: list[Any], num_tokens: int) -> tuple[StateShape, ...]:
        self._model(mx.zeros((1, num_tokens), mx.int32), cache=caches)
        return tuple(_shape_of(dict(vars(cache))) for cache in leaves(caches))


def state_nbytes(model: Any, plan: CachePlan) -> list[int]:
    """Bytes of each recurrent layer's state."""
    states = [keeps_state(leaf) for leaf in plan.leaves]
    if not any(states):
        return []
    shapes = StateShapes(model).at(_CONSTANT_AFTER)
    of_states = [made.arrays.values() for made, is_state in zip(shapes, states, strict=True) if is_state]
    return [sum(math.prod(shape) * dtype.size for shape, dtype in arrays) for arrays in of_states]


def _shape_of(native: Snapshot) -> StateShape:
    arrays = {path: (tuple(x.shape), x.dtype) for path, x in arrays_of(native).items()}
    return StateShape(arrays, scalars_of(native), with_arrays(native, dict.fromkeys(arrays)))
