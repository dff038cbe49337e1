"""The model under test: its caches, prompts that fit the machine's speed, and checks of memory before each use.

Everything is made anew for a check and dropped after it. On the MLX thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxkv.errors import UnboundedError

if TYPE_CHECKING:
    from mlxkv.cache.planning.plan import CachePlan
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.device import Device
    from mlxkv.inference.runner import ModelRunner
    from mlxkv.memory import Budget
    from mlxkv.model import Model

ROUNDS = 3
CHUNK = 512  # tokens of one prefill call
_TEXT = (
    "A KV cache holds the keys and values of every token that a model has read, so that each new token needs one step. "
    "When its window is full, the oldest block is evicted, and the first tokens stay. Ada lives in Porto, her brother "
    "in Turin; they write to each other once a week, about the weather, their work and the books they read. "
)
_SINKS = 4
_PREFILLS, _DECODES = 20, 70  # prompts prefilled and runs of `steps` tokens, in all checks together
_PREFILL_S, _DECODE_S = 25.0, 25.0  # seconds for each
_PILOT = (64, 8)  # tokens prefilled and decoded to learn the speed


@dataclass(frozen=True)
class Sizes:
    """How much a check computes: `tokens` of a prompt, decode `steps`; and the speeds that they follow from."""

    tokens: int
    steps: int
    token_s: float
    step_s: float


class Subject:
    """A loaded model on this device. `folder` is temporary, for files."""

    def __init__(self, model: Model, device: Device, folder: Path) -> None:
        self.model, self.device, self.folder = model, device, folder

    @property
    def network(self) -> Any:
        """mlx-lm's model."""
        return self.model.loaded.model

    @cached_property
    def runner(self) -> ModelRunner:
        """Its chunk is fixed, since sums of other lengths are rounded differently."""
        from mlxkv.inference.runner import ModelRunner
        from mlxkv.memory import Budget

        return ModelRunner(self.network, CHUNK, Budget(self.network, self.device.memory_limit))

    @cached_property
    def budget(self) -> Budget:
        """The machine's memory; of this check alone, so that no measured peak has corrected it."""
        from mlxkv.memory import Budget

        return Budget(self.network, self.device.memory_limit)

    @cached_property
    def sizes(self) -> Sizes:
        """Measured once, after a warm-up."""
        num, steps = _PILOT
        plan = self.plan(num + steps)
        seconds: tuple[float, float] = (0.0, 0.0)
        for _ in range(2):
            begun = time.perf_counter()
            cache = self.prefilled(plan, num)
            middle = time.perf_counter()
            self.decoded(cache, steps)
            seconds = (middle - begun) / num, (time.perf_counter() - middle) / steps
        token_s, step_s = seconds
        tokens = next((n for n in (1024, 512, 256, 128) if _PREFILLS * n * token_s <= _PREFILL_S), 64)
        return Sizes(tokens, min(max(int(_DECODE_S / _DECODES / step_s), 4), 32), token_s, step_s)

    def plan(
        self, window: int, *, bits: int | str | None = None, block: int | None = None, copies: int = 1
    ) -> CachePlan:
        """The plan of a cache that holds `window` tokens; the model's own bound where it has none of ours.

        Raises:
            OutOfMemoryError: so many copies of the cache do not fit beside the weights.
        """
        from mlxkv.cache.config import CacheConfig

        config = CacheConfig(window=window, sinks=_SINKS, block=block, bits=bits)
        weights = self.model.loaded.weight_bytes
        try:
            plan = self.budget.plan(config, weights)
        except UnboundedError:
            plan = self.budget.plan(CacheConfig(bits=bits), weights)
        self.budget.check(plan, weights + (copies - 1) * plan.nbytes)
        return plan

    def largest_window(self, above: int, most: int) -> int | None:
        """The largest window that fits beside one of `above` tokens: `most` or a half, a quarter of it; None if none.

        Raises:
            UnboundedError, ConfigError: the model's caches cannot be held to such windows.
        """
        from mlxkv.cache.config import CacheConfig

        def plan(window: int) -> CachePlan:
            return self.budget.plan(CacheConfig(window=window, sinks=_SINKS), self.model.loaded.weight_bytes)

        used = self.model.loaded.weight_bytes + plan(above).nbytes
        while most > above:
            if self.budget.fits(plan(most), used):
                return most
            most //= 2
        return None

    def prompt(self, count: int) -> list[int]:
        """Token ids of a text."""
        ids = list(self.model.tokenizer.encode(_TEXT))
        return (ids * (count // len(ids) + 1))[:count]

    def cache(self, plan: CachePlan) -> PromptCache:
        """An empty cache."""
        from mlxkv.cache.prompt_cache import PromptCache

        return PromptCache(plan, self.network)

    def prefilled(self, plan: CachePlan, count: int) -> PromptCache:
        """A cache that holds the first `count` tokens of the prompt."""
        cache = self.cache(plan)
        self.feed(cache, self.prompt(count))
        return cache

    def feed(self, cache: PromptCache, ids: Sequence[int]) -> None:
        for _ in self.runner.prefill(cache, ids):
            pass

    def stream(self, cache: PromptCache, steps: int) -> Iterator[int]:
        """Greedy tokens after the prompt's next token, which is fed first."""
        from mlxkv.inference.sampling import SamplingParams

        following = self.prompt(cache.offset + 1)[-1]
        return self.runner.decode(cache, following, SamplingParams(temperature=0.0, max_tokens=steps))

    def decoded(self, cache: PromptCache, steps: int) -> list[int]:
        return list(self.stream(cache, steps))
