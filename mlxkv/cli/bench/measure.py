"""`mlxkv bench`: decode and prefill on our ring against mlx-lm's own caches, alternating in one process.

Times on a machine that does other things are noise; both sides of a ratio see the same noise, so the ratio is what
counts. `mlxkv bench` prints it for one model, the repository's bench/ measures more. Used on the MLX thread.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxkv.cli.bench.report import Environment, command_line
from mlxkv.stats import bytes_text

if TYPE_CHECKING:
    from mlxkv.cache.plan import CachePlan
    from mlxkv.inference.runner import ModelRunner
    from mlxkv.inference.sampling import SamplingParams
    from mlxkv.models import LoadedModel

ROUNDS = 5


@dataclass(frozen=True)
class Ratio:
    """mlxkv's speed over mlx-lm's: above 1 is faster. `worst` is the smallest ratio of one pair of rounds."""

    ours: float  # seconds, median
    theirs: float  # seconds, median
    worst: float

    @property
    def median(self) -> float:
        return self.theirs / self.ours


@dataclass(frozen=True)
class Speeds:
    """One measurement: `tokens` were prefilled or generated per round."""

    what: str
    tokens: int
    ratio: Ratio

    @property
    def ours_tps(self) -> float:
        return self.tokens / self.ratio.ours

    @property
    def theirs_tps(self) -> float:
        return self.tokens / self.ratio.theirs


def report(loaded: LoadedModel, num_prompt: int, num_tokens: int, rounds: int = ROUNDS) -> Iterator[str]:
    """Yield the lines that `mlxkv bench` prints, each when it is measured; counts are tokens.

    Raises:
        OutOfMemoryError: the caches of both sides do not fit beside the weights. UnboundedError: see `plan_cache`.
    """
    from mlxkv.cache.config import CacheConfig
    from mlxkv.device import current_device, set_wired_limit
    from mlxkv.inference.runner import ModelRunner
    from mlxkv.memory import Budget

    device = current_device()
    budget = Budget(loaded.model, device.memory_limit)
    plan = budget.plan(CacheConfig(window=num_prompt + num_tokens + 1), loaded.weight_bytes)
    budget.check(plan, loaded.weight_bytes + 3 * plan.nbytes)  # theirs, and a copy of each for a round
    yield from Environment.here(command_line()).lines()
    yield f"model     {loaded.name}, {bytes_text(loaded.weight_bytes)} of weights"
    yield f"settings  {num_prompt:,} tokens prefilled, {num_tokens:,} generated, greedy; medians of {rounds}"
    yield f"cache     {plan.description}"
    yield f"{'tok/s':<9} {'mlxkv':>9} {'mlx-lm':>9} {'ratio':>7} {'worst':>7}"
    runner = ModelRunner(loaded.model, budget=budget)
    ids = random_ids(num_prompt, loaded.tokenizer.vocab_size)
    with set_wired_limit(device):
        yield _line(prefill_speeds(runner, plan, ids, rounds))
        yield _line(decode_speeds(runner, plan, ids, num_tokens, rounds))


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int = ROUNDS) -> Ratio:
    """Run both alternately, `rounds` times after one warm-up each. Each returns the seconds it took."""
    ours()
    theirs()
    pairs = []
    for i in range(rounds):
        # Whoever goes second finds warm caches: take turns.
        if i % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        pairs.append((a, b))
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(a, b, min(b / a for a, b in pairs))


def prefill_speeds(runner: ModelRunner, plan: CachePlan, ids: list[int], rounds: int = ROUNDS) -> Speeds:
    """Prefill `ids` into an empty cache, the first token of the reply included."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    from mlxkv.cache.prompt_cache import PromptCache

    def ours() -> float:
        cache = PromptCache(plan, runner.model)
        begun = time.perf_counter()
        for _ in runner.prefill(cache, ids[:-1]):
            pass
        next(runner.decode(cache, ids[-1], _greedy(1)))
        return time.perf_counter() - begun

    def theirs() -> float:
        cache = make_prompt_cache(runner.model)
        begun = time.perf_counter()
        next(generate_step(mx.array(ids), runner.model, max_tokens=1, prompt_cache=cache))
        return time.perf_counter() - begun

    return Speeds("prefill", len(ids), compare(ours, theirs, rounds))


def decode_speeds(runner: ModelRunner, plan: CachePlan, ids: list[int], steps: int, rounds: int = ROUNDS) -> Speeds:
    """Decode `steps` tokens after the first one, with `ids` in the cache."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    from mlxkv.cache.prompt_cache import PromptCache

    full, last = PromptCache(plan, runner.model), ids[-1]
    for _ in runner.prefill(full, ids[:-1]):
        pass
    cache = make_prompt_cache(runner.model)
    for at in range(0, len(ids) - 1, runner.chunk):
        runner.model(mx.array([ids[at : min(at + runner.chunk, len(ids) - 1)]]), cache=cache)
        mx.eval([layer.state for layer in cache])

    # Every round has copies of its own: not every cache can go back, and copying happens before the clock runs.
    def ours() -> float:
        return _timed(runner.decode(full.fork(), last, _greedy(steps + 1)))

    def theirs() -> float:
        fresh = copy.deepcopy(cache)
        return _timed(generate_step(mx.array([last]), runner.model, max_tokens=steps + 1, prompt_cache=fresh))

    return Speeds("decode", steps, compare(ours, theirs, rounds))


def random_ids(count: int, vocab: int) -> list[int]:
    """Random token ids, the same on every call."""
    import mlx.core as mx

    return [int(t) for t in mx.random.randint(3, vocab, (count,), key=mx.random.key(1)).tolist()]  # type: ignore[union-attr]


def _line(speeds: Speeds) -> str:
    ratio = speeds.ratio
    figures = f"{speeds.ours_tps:>9,.0f} {speeds.theirs_tps:>9,.0f} {ratio.median:>7.3f} {ratio.worst:>7.3f}"
    return f"{speeds.what:<9} {figures}"


def _timed(stream: Iterator[Any]) -> float:
    """Seconds from the first token to the last."""
    next(stream)
    begun = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - begun


def _greedy(most: int) -> SamplingParams:
    from mlxkv.inference.sampling import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=most)
