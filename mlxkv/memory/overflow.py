"""Tokens that a prompt loses in a window too small for it, and the window that would hold it. Pure values; no MLX."""

from __future__ import annotations

from mlxkv.cache.config import MAX_WINDOW
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.stats import Overflow

_REPLY = 1024  # tokens reserved for the reply
_STEP = 1024  # windows are suggested in multiples of it


def overflow_of(plan: CachePlan, num_tokens: int, num_before: int) -> Overflow | None:
    """The overflow of a prompt of `num_tokens`, whose first `num_before` are not new.

    None if all new tokens are still attended when the reply begins.
    """
    geometry = plan.geometry
    if geometry is None or num_tokens <= geometry.capacity:
        return None
    first_kept, sinks = geometry.first_kept(num_tokens, 0), geometry.sinks
    evicted = first_kept - max(num_before, sinks)
    if evicted <= 0:
        return None
    window = -(-(num_tokens + _REPLY) // _STEP) * _STEP
    if window > (plan.learned or MAX_WINDOW):
        window = 0
    trained = plan.trained if plan.trained and window > plan.trained else 0
    kv_bytes = plan.bytes_per_token * (window + sinks + geometry.undo * geometry.block) if window else 0
    before = max(0, min(num_before, first_kept) - sinks)
    return Overflow(num_tokens, geometry.capacity, evicted, before, window, kv_bytes, trained)
