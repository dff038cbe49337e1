"""Which requests mlx-lm's batch caches can hold: one pure function of plan and lengths, and one trial of the model.

The rest run in turns, each in its own ring; see `scheduler`. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.planning.traits import native_cache, traits_of
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.errors import first_line

_PROMPTS = ((7,), (3, 5, 2), (2, 9, 4, 7, 6, 3, 8))  # of different lengths, so that rows are padded
_STEPS = ((4, 8), (5, 2), (9, 6))  # the tokens of two decode steps
_TOLERANCE = 0.05  # of the range of the logits: 16-bit products round differently, wrong positions differ by far more


def refusal(
    plan: CachePlan, layers: Sequence[Any], num_tokens: int, max_tokens: int, model_error: str | None = None
) -> str | None:
    """Why a request cannot be a row of a batch, as the end of a sentence; None if it can.

    Args:
        plan, layers: how its cache is planned, and the caches of the layers.
        num_tokens: tokens of its prompt.
        max_tokens: the most tokens of its reply.
        model_error: what `model_error` found.
    """
    if plan.config.bits is not None:
        return "its rows are quantized, and mlx-lm batches none of these"
    if (geometry := plan.geometry) is not None and num_tokens + max_tokens > geometry.capacity:
        return (
            f"its prompt of {num_tokens:,} tokens and `max_tokens` of {max_tokens:,} exceed the window of "
            f"{geometry.capacity:,}"
        )
    own = {type(leaf).__name__ for leaf in leaves(layers) if not isinstance(leaf, RingKVCache) and not _can_merge(leaf)}
    if own:
        return f"mlx-lm cannot batch its caches ({', '.join(sorted(own))})"
    return model_error


def model_error(model: Any) -> str | None:
    """Why mlx-lm cannot batch this model, None if it can: its caches, and two rows tried out beside each alone.

    The trial takes eleven model calls of a few tokens, once for each loaded model.
    """
    traits = traits_of(model)
    if not traits.batch_errors:
        if traits.counts_blocks:
            why: str | None = "its sparse attention counts blocks of rows, which padding moves"
        elif any(leaf.mask_window and leaf.max_size and leaf.mask_window > leaf.max_size for leaf in traits.leaves):
            why = "it masks a window larger than mlx-lm's caches keep"
        else:
            why = _tried(model)
        traits.batch_errors.append(why)
    return traits.batch_errors[0]


def _can_merge(leaf: Any) -> bool:
    """Whether mlx-lm has a batch of this cache; that of a rotating one forgets the pinned rows."""
    return hasattr(leaf, "merge") and not getattr(leaf, "keep", 0)


def _tried(model: Any) -> str | None:
    caches = [native_cache(model) for _ in _PROMPTS]
    try:
        for ids, cache in zip(_PROMPTS, caches, strict=True):
            model(mx.array([ids]), cache=cache)
            mx.eval([c.state for c in cache])
        merged = merge(caches)
        together = [
            model(mx.array([[token] for token in step]), cache=merged)[:, -1] for step in zip(*_STEPS, strict=True)
        ]
        alone = [
            mx.concatenate([model(mx.array([[t]]), cache=c)[:, -1] for t, c in zip(step, caches, strict=True)])
            for step in zip(*_STEPS, strict=True)
        ]
        a, b = (mx.stack(logits).astype(mx.float32) for logits in (alone, together))
        off = float((mx.abs(a - b).max() / (a.max() - a.min())).item())  # type: ignore[arg-type]
    except Exception as error:  # a model's own code may raise anything
        return f"mlx-lm cannot batch this model ({first_line(error)})"
    if not off <= _TOLERANCE:  # or not a number
        return "mlx-lm's batches of this model give other logits than its prompts alone"
    return None


def merge(rows: list[list[Any]]) -> list[Any]:
    """One batch cache per layer from the caches of several rows."""
    return [layer[0].merge(list(layer)) for layer in zip(*rows, strict=True)]
