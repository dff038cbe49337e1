"""Frames: what the model itself makes of n tokens, as shapes, dtypes and plain values; nothing is computed.

A saved state is only ever read into such a frame, so that nothing in a file decides what is allocated. One call of the
model is run through the graph and thrown away. Used on the MLX thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlxkv.cache.plan import CachePlan
from mlxkv.cache.probe import leaves
from mlxkv.cache.recurrent.state import Snapshot, arrays_of, keeps_state, scalars_of, with_arrays
from mlxkv.cache.traits import native_cache, traits_of

_SETTLED = 16  # tokens after which shapes no longer change, where they are to be saved
_IS_SETTLED = "settled"


@dataclass(frozen=True)
class Frame:
    """One cache after so many tokens. `arrays`: shape and dtype by path."""

    arrays: Mapping[str, tuple[tuple[int, ...], mx.Dtype]]
    scalars: Mapping[str, Any]
    hollow: Snapshot  # the cache's attributes, with None for each array


class Frames:
    """Frames of the model's own caches, in the order of `state.leaves`; made once per model, which keeps them."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @cached_property
    def _known(self) -> dict[Any, Any]:  # not before it is needed: traits are compared with the model each time
        return traits_of(self._model).frames

    def at(self, num_tokens: int) -> tuple[Frame, ...]:
        """After `num_tokens`: exact up to 16, and from there on where `is_settled`."""
        n = min(num_tokens, _SETTLED)
        if n not in self._known:
            self._known[n] = self._frames(native_cache(self._model), n)
        return self._known[n]

    @property
    def is_settled(self) -> tuple[bool, ...]:
        """For each cache, whether its arrays keep their shapes, however many tokens there are."""
        if _IS_SETTLED not in self._known:
            caches = native_cache(self._model)
            frames = self._frames(caches, _SETTLED)
            self._known.setdefault(_SETTLED, frames)
            # A second call, and one token: dtypes may differ from those of the first, too.
            after = self._frames(caches, 1)
            self._known[_IS_SETTLED] = tuple(
                (a.arrays, a.scalars) == (b.arrays, b.scalars) for a, b in zip(frames, after, strict=True)
            )
        return self._known[_IS_SETTLED]

    def _frames(self, caches: list[Any], num_tokens: int) -> tuple[Frame, ...]:
        self._model(mx.zeros((1, num_tokens), mx.int32), cache=caches)
        return tuple(_frame(dict(vars(cache))) for cache in leaves(caches))


def state_nbytes(model: Any, plan: CachePlan) -> int:
    """Bytes of the recurrent layers' states; a checkpoint takes as many."""
    return sum(_states_nbytes(model, plan))


def largest_state_nbytes(model: Any, plan: CachePlan) -> int:
    """Bytes of the largest recurrent layer's state; 0 without such layers."""
    return max(_states_nbytes(model, plan), default=0)


def _states_nbytes(model: Any, plan: CachePlan) -> list[int]:
    states = [keeps_state(leaf) for leaf in plan.leaves]
    if not any(states):
        return []
    frames = Frames(model).at(_SETTLED)
    of_states = [frame for frame, is_state in zip(frames, states, strict=True) if is_state]
    return [sum(math.prod(shape) * dtype.size for shape, dtype in frame.arrays.values()) for frame in of_states]


def _frame(native: Snapshot) -> Frame:
    arrays = {path: (tuple(x.shape), x.dtype) for path, x in arrays_of(native).items()}
    return Frame(arrays, scalars_of(native), with_arrays(native, dict.fromkeys(arrays)))
