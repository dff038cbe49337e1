"""Capacity: how many requests run at once, each in a window of how many tokens. On the MLX thread."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlxkv.cache.config import DEFAULT_SINKS, CacheConfig
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.memory import CHUNKS

MAX_SLOTS = 16
_WANTED = 4  # slots; a smaller window is chosen for them,
_LEAST_WINDOW = 8192  # but none below this
_SHARE = 0.6  # of the memory beside the weights; replies that decode together need copies of their rows


@dataclass(frozen=True)
class Capacity:
    """What fits.

    Attributes:
        cache: bounds of every cache.
        window: the most tokens of a prompt and its reply; None: any number.
        num_slots: requests that run at once.
    """

    cache: CacheConfig
    window: int | None
    num_slots: int


def decide_capacity(runtime: ModelRuntime, cache: CacheConfig, num_slots: int | None) -> Capacity:
    """The slots that fit in memory. Without a window in `cache`, the largest one is taken of which four fit, and
    8,192 tokens at least, unless the model or this machine has less.

    Nothing is ever evicted from these windows, so that nothing is pinned, either.
    """
    cache = replace(cache, sinks=DEFAULT_SINKS)
    budget, weights = runtime.budget, runtime.weight_bytes
    plan = budget.plan(cache, weights)

    def count() -> int:
        if not budget.limit:
            return MAX_SLOTS
        free = budget.limit - weights - budget.prefill_bytes(plan, CHUNKS[-1])
        return max(1, min(MAX_SLOTS, int(free * _SHARE) // max(budget.cache_bytes(plan), 1)))

    while cache.window is None and count() < _WANTED and (plan.resolved.window or 0) >= 2 * _LEAST_WINDOW:
        plan = budget.plan(replace(cache, window=(plan.resolved.window or 0) // 2), weights)
    geometry = plan.geometry
    limits = [n for n in (geometry.capacity if geometry else None, plan.learned) if n]
    return Capacity(plan.resolved, min(limits, default=None), num_slots or count())
