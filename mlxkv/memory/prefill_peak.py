"""The peak of one model call, from a model and a plan of its cache. On the MLX thread; nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxkv.cache.plan import CachePlan
from mlxkv.cache.probe import leaves
from mlxkv.cache.ring import RingKVCache
from mlxkv.memory.allocation import peak_bytes
from mlxkv.memory.graph import trace
from mlxkv.models.skeleton import placeholder

Arrays = Sequence[mx.array]


def prefill_bytes(model: Any, plan: CachePlan, chunk: int, tokens: int | None = None) -> int | None:
    """The bytes that reading `chunk` tokens takes beyond weights and cache, and decoding one after them.

    None for a model whose graph cannot be had (its own code looks at numbers while it builds it).

    Args:
        model: its weights are not read; those of a skeleton must be placeholders.
        tokens: how many the cache holds after the call, at most the window; None: the full window.
    """
    capacity = plan.geometry.capacity if plan.geometry else chunk
    end = max(min(tokens or capacity, capacity), 1)
    chunk = min(chunk, end)
    try:
        reading = peak_bytes(trace(*_call(model, plan, chunk, end, _states))) + _copied_rows(plan, chunk, end)
        return max(reading, peak_bytes(trace(*_call(model, plan, 1, end, _next_token))))
    except Exception:  # a model's own code: whatever it raises, its graph is not to be had
        return None


def _copied_rows(plan: CachePlan, chunk: int, end: int) -> int:
    """A sliding-window layer fed across its block boundaries reads its old rows while new ones are written: a copy."""
    rings = [(leaf.geometry, leaf.nbytes) for leaf in plan.leaves if leaf.geometry and leaf.native_window is not None]
    return max((nbytes for ring, nbytes in rings if chunk > ring.block and end > ring.capacity), default=0)


def _states(logits: mx.array, caches: Sequence[Any]) -> tuple[Arrays, Arrays]:
    arrays = [array for _, array in tree_flatten([cache.state for cache in caches]) if isinstance(array, mx.array)]
    return arrays, [logits]


def _next_token(logits: mx.array, caches: Sequence[Any]) -> tuple[Arrays, Arrays]:
    """As a sampler with `top_p` does it; the random key is given, so that the one in use stays what it is."""
    last = logits[:, -1, :]
    scores = last - mx.logsumexp(last, axis=-1, keepdims=True)
    order = mx.argsort(scores, axis=-1)
    likely = mx.cumsum(mx.take_along_axis(mx.exp(scores), order, axis=-1), axis=-1) > 0.1
    kept = mx.where(mx.put_along_axis(mx.zeros_like(likely), order, likely, axis=-1), scores, -mx.inf)
    return [mx.random.categorical(kept, key=mx.random.key(0))], []


def _call(
    model: Any, plan: CachePlan, chunk: int, end: int, outcome: Callable[..., tuple[Arrays, Arrays]]
) -> tuple[Any, ...]:
    """The call that feeds the tokens before `end`, and its placeholders, for `trace`."""
    caches = plan.make(model)
    rows = []
    for leaf, cache in zip(plan.leaves, leaves(caches), strict=True):
        if isinstance(cache, RingKVCache) and leaf.shape is not None:
            shape = leaf.shape
            cache.allocate((1, shape.heads, 0, shape.k_dim), shape.v_dim, shape.dtype, shape.dtype)
            cache.offset, cache.longest = end - chunk, None
            # Flushing copies two blocks, one at a time, and computes: no part of a graph, and never the peak.
            cache._flush = lambda: None  # type: ignore[method-assign]
            rows += [cache.key_rows, cache.value_rows]

    def call(ids: mx.array, *arrays: mx.array) -> tuple[Arrays, Arrays]:
        following = iter(arrays)
        for buffer in rows:
            buffer.arrays = tuple(next(following) for _ in buffer.arrays)
        return outcome(model(ids, cache=caches), caches)

    held = [placeholder(array) for buffer in rows for array in buffer.arrays]
    return call, mx.zeros((1, chunk), mx.int32), *held
