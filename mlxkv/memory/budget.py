"""Whether a cache and the reading of a prompt fit in memory, and in which pieces to read. On the MLX thread."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.plan import CachePlan, plan_cache
from mlxkv.cache.recurrent.checkpoints import KEPT
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.errors import ConfigError, OutOfMemoryError
from mlxkv.memory.bound import most_bytes, widths
from mlxkv.memory.prefill_peak import prefill_bytes
from mlxkv.stats import bytes_text

CHUNKS = (512, 256, 128)
"""Tokens of one prefill call, the best first."""

_CACHE_SHARE = 0.8  # of the memory that the weights leave, for a window that was left open
_LEAST_WINDOW = 64


@dataclass
class Budget:
    """What one model may use: `limit` bytes for all that this process holds in MLX; 0 means no limit.

    Everywhere `used` is what is taken without the cache in question, weights included, in bytes; `is_loaded` is False
    for a skeleton. `trained` is the model's trained length by its config.json; None: by its arguments.
    """

    model: Any
    limit: int
    trained: int | None = None
    _known: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _widths: tuple[int, int] | None = None

    def plan(self, config: CacheConfig, used: int, *, system_tokens: int = 0, is_loaded: bool = True) -> CachePlan:
        """A plan of the cache; where the window is left open, of the largest that can also be filled."""
        share = int(max(self.limit - used, 0) * _CACHE_SHARE) if self.limit else 1 << 62

        def planned(share: int) -> CachePlan:
            return plan_cache(
                self.model, config, system_tokens=system_tokens, budget=share, is_loaded=is_loaded, trained=self.trained
            )

        plan = planned(share)
        while config.window is None and not self._can_be_filled(plan, used):
            geometry = plan.geometry
            if geometry is None or geometry.window <= _LEAST_WINDOW:
                break
            share = min(share, plan.bytes_per_token * geometry.window) // 2
            smaller = planned(share)
            if smaller.geometry is None or smaller.geometry.window >= geometry.window:
                break
            plan = smaller
        return plan

    def check(self, plan: CachePlan, used: int) -> None:
        """Refuse a cache that cannot be filled.

        Raises:
            OutOfMemoryError: with what would fit; nothing was allocated.
        """
        if self._can_be_filled(plan, used):
            return
        raise OutOfMemoryError(
            f"This KV cache needs {bytes_text(self._held(plan))}, and reading a prompt "
            f"{bytes_text(self.reading(plan, CHUNKS[-1]))}; {self._free_text(used)}; {self.advice(plan.config, used)}."
        )

    def check_copy(self, nbytes: int, used: int) -> None:
        """Refuse the first write to a fork, which copies `nbytes`; `used`: all that is taken now.

        Raises:
            OutOfMemoryError: the copy does not fit; nothing was written.
        """
        if self.limit and used + nbytes > self.limit:
            raise OutOfMemoryError(
                f"The first token after a fork copies the KV cache, {bytes_text(nbytes)}; {self._free_text(used)}; "
                f"let go of other forks first, or fork a cache with a smaller window."
            )

    def fits(self, plan: CachePlan, used: int, chunk: int = CHUNKS[-1]) -> bool:
        """Whether the cache can be filled in pieces of `chunk` tokens."""
        free = self.limit - used - self._held(plan)
        # A prediction takes as long as a turn of a small model: none is made where there is too little or plenty.
        return not self.limit or self._is_plenty(free, plan, chunk) or (free > 0 and self.reading(plan, chunk) <= free)

    def _is_plenty(self, free: int, plan: CachePlan, chunk: int) -> bool:
        """Whether a call of `chunk` tokens fits by a bound far above `reading`, known at once."""
        if self._widths is None:
            self._widths = widths(self.model)
        return most_bytes(self._widths, plan, chunk) <= free

    def _can_be_filled(self, plan: CachePlan, used: int) -> bool:
        """In some pieces; the largest are predicted first, since reading a prompt will ask about them."""
        is_plenty = self._is_plenty(self.limit - used - self._held(plan), plan, CHUNKS[-1])
        return is_plenty or any(self.fits(plan, used, chunk) for chunk in (CHUNKS[0], CHUNKS[-1]))

    def largest_chunk(self, plan: CachePlan, used: int, tokens: int | None = None) -> int:
        """The most tokens per call with which a prompt that ends at `tokens` (None: anywhere) fits; else the fewest."""
        return self._chunk_that_fits(plan, used, tokens) or CHUNKS[-1]

    def chunk(self, plan: CachePlan, used: int, tokens: int, num_new: int | None = None) -> int:
        """`largest_chunk`, for a prompt about to be read, of which `num_new` tokens (None: all) are not cached.

        Raises:
            OutOfMemoryError: not even the smallest piece fits; with what would.
        """
        free = self.limit - used - self._held(plan)
        if num_new is not None and self._is_plenty(free, plan, min(num_new, CHUNKS[0])):
            return CHUNKS[0]
        chunk = self._chunk_that_fits(plan, used, tokens)
        if chunk is None:
            need = self._held(plan) + self.reading(plan, CHUNKS[-1], tokens)
            raise OutOfMemoryError(
                f"Reading a prompt of {tokens:,} tokens needs {bytes_text(need)} with its KV cache; "
                f"{self._free_text(used)}; {self.advice(plan.config, used)}."
            )
        return chunk

    def _chunk_that_fits(self, plan: CachePlan, used: int, tokens: int | None) -> int | None:
        if self.fits(plan, used, CHUNKS[0]):  # for the full window, so the next turn finds it known
            return CHUNKS[0]
        free = self.limit - used - self._held(plan)
        return next((c for c in CHUNKS if self.reading(plan, c, tokens) <= free), None)

    def advice(self, config: CacheConfig, used: int, *, is_loaded: bool = True) -> str:
        """What would fit, as the end of a sentence."""

        def window(config: CacheConfig, most: int) -> int | None:
            size = 1 << most.bit_length() - 1
            while size >= _LEAST_WINDOW:
                try:
                    plan = plan_cache(self.model, replace(config, window=size, slack=None), is_loaded=is_loaded)
                except ConfigError:
                    return None
                if self.fits(plan, used):
                    return size
                size //= 2
            return None

        most = config.window or _LEAST_WINDOW
        if size := window(config, most - 1):
            return f"a window of {size:,} tokens would fit"
        for bits in (8, 4) if config.bits is None else ():
            if size := window(replace(config, bits=bits), most):
                return f"a window of {size:,} tokens in {bits} bits would fit"
        return "no window would fit, so use a smaller model"

    def reading(self, plan: CachePlan, chunk: int, tokens: int | None = None) -> int:
        """Bytes beside weights and cache; 0 where they cannot be predicted. `tokens` counts as a power of two."""
        if plan.geometry is None:
            return 0
        capacity = plan.geometry.capacity
        end = capacity if tokens is None else min(capacity, max(1 << (tokens - 1).bit_length(), chunk))
        key = (plan.geometry, plan.config.bits, chunk, end)
        if key not in self._known:
            self._known[key] = prefill_bytes(self.model, plan, chunk, end) or 0
        return self._known[key]

    def _held(self, plan: CachePlan) -> int:
        """Bytes of the cache: its rings, and recurrent states with all the checkpoints of them that may be kept."""
        key = ("states", tuple(leaf.native_class for leaf in plan.leaves))
        if key not in self._known:
            self._known[key] = state_nbytes(self.model, plan) * (KEPT + 1)
        return plan.nbytes + self._known[key]

    def _free_text(self, used: int) -> str:
        return f"{bytes_text(max(self.limit - used, 0))} of the {bytes_text(self.limit)} that may be used are free"
