"""Budget: whether a cache and the prefill of a prompt fit in memory, and in chunks of what size.

    peak = weights + cache + one prefill call

Weights and cache are sums of array sizes. The third part is the formula of `prefill_peak`, corrected by the peaks of
the first chunks of this process. Loading a model is `preflight.py`. On the MLX thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan, plan_cache
from mlxkv.cache.recurrent.checkpoints import max_checkpoints
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.errors import ConfigError, OutOfMemoryError
from mlxkv.memory.prefill_peak import prefill_bytes
from mlxkv.settings.schema import KV_BITS
from mlxkv.stats import bytes_text

CHUNKS = (512, 256, 128)
"""Tokens of one prefill call, the fastest first, of which one must fit."""

SIZES = (2048, 1024, *CHUNKS)
"""Those and larger ones, which a machine that is fast enough uses where they fit."""

_CACHE_SHARE = 0.8  # of the memory beside the weights, for the window where the config names none
_LEAST_WINDOW = 64
_MARGIN = 1.25  # over a measured peak: how far MLX queues ahead varies from call to call


@dataclass
class Budget:
    """The memory that one model may use: `limit` bytes for all that this process holds in MLX; 0 means no limit.

    Everywhere `used` is the memory in use without the cache in question, weights included, in bytes; `is_loaded` is
    False for a skeleton. `trained` is the model's trained length by its config.json; None: by its arguments.
    """

    model: Any
    limit: int
    trained: int | None = None
    _predicted: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _measured: dict[tuple[Any, ...], tuple[int, int]] = field(default_factory=dict)  # predicted and measured bytes

    def plan(self, config: CacheConfig, used: int, *, system_tokens: int = 0, is_loaded: bool = True) -> CachePlan:
        """Plan a cache; where the config names no window, the largest that can also be filled."""
        share = int(max(self.limit - used, 0) * _CACHE_SHARE) if self.limit else 1 << 62

        def planned(share: int) -> CachePlan:
            return plan_cache(
                self.model, config, system_tokens=system_tokens, budget=share, is_loaded=is_loaded, trained=self.trained
            )

        plan = planned(share)
        while config.window is None and not self.fits(plan, used):
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
        """Check that a cache can be filled.

        Raises:
            OutOfMemoryError: nothing was allocated; the message says what would fit.
        """
        if self.fits(plan, used):
            return
        raise OutOfMemoryError(
            f"This KV cache needs {bytes_text(self.cache_bytes(plan))}, and prefilling a prompt "
            f"{bytes_text(self.prefill_bytes(plan, CHUNKS[-1]))}; {self._free_text(used)}; "
            f"{self.advice(plan.config, used)}."
        )

    def check_copy(self, nbytes: int, used: int) -> None:
        """Check that `nbytes` fit, which a fork copies or grows by; `used`: all memory in use now.

        Raises:
            OutOfMemoryError: they do not; nothing was written.
        """
        if self.limit and used + nbytes > self.limit:
            raise OutOfMemoryError(
                f"This fork of a KV cache needs {bytes_text(nbytes)} more; {self._free_text(used)}; delete other forks "
                f"first, or fork a cache with a smaller window."
            )

    def fits(self, plan: CachePlan, used: int, chunk: int = CHUNKS[-1]) -> bool:
        """Whether the cache can be filled in chunks of this many tokens."""
        return not self.limit or used + self.cache_bytes(plan) + self.prefill_bytes(plan, chunk) <= self.limit

    def chunk(
        self, plan: CachePlan, used: int, tokens: int, num_new: int | None = None, largest: int = CHUNKS[0]
    ) -> int:
        """The largest chunk that fits for a prompt of `tokens`, of which `num_new` (None: all) are not cached, and of
        which no more than `largest` are fed at once.

        Raises:
            OutOfMemoryError: not even the smallest chunk fits; the message says what would.
        """
        chunk = self.largest_chunk(plan, used, tokens, num_new, largest)
        if chunk is None:
            need = self.cache_bytes(plan) + self.prefill_bytes(plan, min(num_new or tokens, CHUNKS[-1]), tokens)
            raise OutOfMemoryError(
                f"Prefilling a prompt of {tokens:,} tokens needs {bytes_text(need)} with its KV cache; "
                f"{self._free_text(used)}; {self.advice(plan.config, used)}."
            )
        return chunk

    def largest_chunk(
        self,
        plan: CachePlan,
        used: int,
        tokens: int | None = None,
        num_new: int | None = None,
        largest: int = CHUNKS[0],
    ) -> int | None:
        """The largest chunk of a prompt that ends at `tokens` (None: anywhere) and fits; None if none does."""
        free = self.limit - used - self.cache_bytes(plan)
        most = largest if num_new is None else num_new
        sizes = (size for size in SIZES if size <= max(largest, CHUNKS[-1]))
        fitting = (c for c in sizes if not self.limit or self.prefill_bytes(plan, min(c, most), tokens) <= free)
        return next(fitting, None)

    def advice(self, config: CacheConfig, used: int, *, is_loaded: bool = True) -> str:
        """The window or model that would fit, as the end of a sentence."""

        def fits(config: CacheConfig) -> bool:
            try:
                return self.fits(plan_cache(self.model, replace(config, slack=None), is_loaded=is_loaded), used)
            except ConfigError:  # such rows are not for this model
                return False

        def largest(config: CacheConfig, most: int) -> int:
            """The largest power of two up to `most`; 0 if none fits."""
            size = 1 << most.bit_length() - 1
            while size >= _LEAST_WINDOW and not fits(replace(config, window=size)):
                size //= 2
            return size if size >= _LEAST_WINDOW else 0

        most = config.window or _LEAST_WINDOW
        smaller = [replace(config, bits=bits) for bits in (KV_BITS if config.bits is None else ())]
        if size := largest(config, most - 1):
            same = next((c for c in smaller if config.window and fits(c)), None)
            also = f", or one of {most:,} in {same.named_bits} bits," if same else ""
            return f"a window of {size:,} tokens{also} would fit"
        for quantized in smaller:
            if size := largest(quantized, most):
                return f"a window of {size:,} tokens in {quantized.named_bits} bits would fit"
        return "no window would fit, so use a smaller model"

    def prefill_bytes(self, plan: CachePlan, chunk: int, tokens: int | None = None) -> int:
        """Bytes beside weights and cache of a call that ends at `tokens` (None: anywhere)."""
        predicted = self._formula(plan, chunk, tokens)
        if (known := self._measured.get(_key(plan))) is None:
            return predicted
        at, measured = known
        if measured > at:
            return predicted * measured // at
        # What was measured counts with a margin. Growth beyond it stays the formula's: it may be of another term.
        return max(predicted - at, 0) + min(predicted, at) * min(int(measured * _MARGIN), at) // at

    def record_peak(self, plan: CachePlan, chunk: int, tokens: int, measured: int) -> None:
        """Correct the formula by the measured peak of a call, in bytes beside weights and cache.

        The largest call of a cache geometry counts, and any that took more than predicted.
        """
        predicted = prefill_bytes(self.model, plan, chunk, tokens)
        at, before = self._measured.get(_key(plan), (0, 0))
        if predicted > at or measured * at > before * predicted > 0:
            self._measured[_key(plan)] = predicted, measured

    def cache_bytes(self, plan: CachePlan) -> int:
        """Bytes of the cache: its rings, recurrent states and the checkpoints of these."""
        return plan.nbytes + self.state_bytes(plan) + self.checkpoint_bytes(plan)

    def state_bytes(self, plan: CachePlan) -> int:
        """Bytes of the recurrent states; 0 without recurrent layers."""
        key = ("states", tuple(leaf.native_class for leaf in plan.leaves))
        if key not in self._predicted:
            self._predicted[key] = sum(state_nbytes(self.model, plan))
        return self._predicted[key]

    def checkpoint_bytes(self, plan: CachePlan) -> int:
        """Bytes of the most checkpoints that are kept; 0 without recurrent layers."""
        state = self.state_bytes(plan)
        return state and state * max_checkpoints(plan.nbytes, state, plan.config.checkpoint_bytes)

    def _formula(self, plan: CachePlan, chunk: int, tokens: int | None) -> int:
        """`prefill_bytes`, remembered for both numbers rounded up to powers of two."""
        chunk = 1 << (chunk - 1).bit_length()
        tokens = None if tokens is None else 1 << (max(tokens, chunk) - 1).bit_length()
        key = (*_key(plan), chunk, tokens)
        if key not in self._predicted:
            self._predicted[key] = prefill_bytes(self.model, plan, chunk, tokens)
        return self._predicted[key]

    def _free_text(self, used: int) -> str:
        return f"{bytes_text(max(self.limit - used, 0))} of the {bytes_text(self.limit)} that may be used are free"


def _key(plan: CachePlan) -> tuple[Any, ...]:
    return plan.geometry, plan.config.bits
