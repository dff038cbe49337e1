"""Decode and prefill on our ring against mlx-lm's own caches, alternating in one process.

Times on a machine that does other things are noise; both sides of a ratio see the same noise, so the ratio is what
counts. `parts.py` makes the tables of `mlxkv bench` from it, the repository's bench/ measures more. On the MLX thread.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlxkv.cache.planning.plan import CachePlan
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.inference.runner import ModelRunner
    from mlxkv.inference.sampling import SamplingParams

ROUNDS = 5
T = TypeVar("T")


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


@dataclass(frozen=True)
class Filled:
    """Caches of both sides that hold one prompt, and the peak memory of its prefill above the weights, in bytes."""

    ours: PromptCache
    theirs: list[Any]
    our_peak: int
    their_peak: int


def their_caches(runner: ModelRunner, window: int | None = None) -> list[Any]:
    """mlx-lm's own empty caches for this model; `window`: its `max_kv_size`, which some models ignore."""
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(runner.model, max_kv_size=window)


def prefill_speeds(
    runner: ModelRunner, plan: CachePlan, ids: list[int], rounds: int = ROUNDS, window: int | None = None
) -> Speeds:
    """Prefill `ids` into an empty cache, the first token of the reply included; `window`: see `their_caches`."""

    def ours() -> float:
        return _seconds(lambda: _prefill_ours(runner, plan, ids))

    def theirs() -> float:
        return _seconds(lambda: _prefill_theirs(runner, ids, window))

    return Speeds("prefill", len(ids), compare(ours, theirs, rounds))


def fill(runner: ModelRunner, plan: CachePlan, ids: list[int], window: int | None = None) -> Filled:
    """Prefill `ids` on both sides and keep the caches; `window`: see `their_caches`."""
    ours, our_peak = peak_of(lambda: _prefill_ours(runner, plan, ids))
    theirs, their_peak = peak_of(lambda: _prefill_theirs(runner, ids, window))
    return Filled(ours, theirs, our_peak, their_peak)


def decode_speeds(runner: ModelRunner, filled: Filled, last: int, steps: int, rounds: int = ROUNDS) -> Speeds:
    """Decode `steps` tokens after the first one, which follows the token `last`, on copies of the caches."""

    def ours() -> float:
        return decode_ours(runner, filled.ours, last, steps)

    def theirs() -> float:
        return decode_theirs(runner, filled.theirs, last, steps)

    return Speeds("decode", steps, compare(ours, theirs, rounds))


# Every round has copies of its own: not every cache can go back, and copying happens before the clock runs.


def decode_ours(runner: ModelRunner, cache: PromptCache, last: int, steps: int) -> float:
    """Seconds for `steps` tokens after the first one, which follows the token `last`, on a fork of `cache`."""
    return timed(runner.decode(cache.fork(), last, _greedy(steps + 1)))


def decode_theirs(runner: ModelRunner, caches: list[Any], last: int, steps: int) -> float:
    """The same by mlx-lm's loop, on a copy of its caches."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    fresh = copy.deepcopy(caches)
    return timed(generate_step(mx.array([last]), runner.model, max_tokens=steps + 1, prompt_cache=fresh))


def decode_peaks(runner: ModelRunner, filled: Filled, last: int, steps: int = 8) -> tuple[int, int]:
    """Peak memory above the weights while each side decodes on its cache, the cache included, in bytes."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    def theirs() -> None:
        for _ in generate_step(mx.array([last]), runner.model, max_tokens=steps, prompt_cache=filled.theirs):
            pass

    ours, held = filled.ours.nbytes, their_bytes(filled.theirs)
    _, our_rise = peak_of(lambda: [*runner.decode(filled.ours, last, _greedy(steps))])
    _, their_rise = peak_of(theirs)
    return ours + our_rise, held + their_rise


def their_bytes(caches: list[Any]) -> int:
    """Bytes that mlx-lm's caches hold."""
    return sum(cache.nbytes for cache in caches)


def peak_of(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` returns, and by how many bytes MLX's memory rose meanwhile, at most."""
    import mlx.core as mx

    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = work()
    mx.synchronize()
    return result, max(mx.get_peak_memory() - before, 0)


def copy_bandwidth(nbytes: int, is_cpu: bool, rounds: int = ROUNDS) -> float:
    """Bytes per second that are read and written while `nbytes` are copied: the best of the rounds.

    Memory is in use before the clock runs, since a new page costs more than its copy. On the CPU backend the processor
    copies, elsewhere MLX adds to an array in place.
    """
    import mlx.core as mx

    on_cpu, on_gpu = (nbytes, 4) if is_cpu else (0, nbytes)
    source, target = memoryview(bytearray(b"\1" * on_cpu)), memoryview(bytearray(on_cpu))
    array = mx.zeros((on_gpu // 4,), mx.float32)

    def copied() -> None:
        nonlocal array
        if is_cpu:
            target[:] = source
            return
        array = array + 1
        mx.eval(array)

    return 2 * nbytes / min([_seconds(copied) for _ in range(rounds + 1)][1:])


def random_ids(count: int, vocab: int) -> list[int]:
    """Random token ids, the same on every call."""
    import mlx.core as mx

    return [int(t) for t in mx.random.randint(3, vocab, (count,), key=mx.random.key(1)).tolist()]  # type: ignore[union-attr]


def _prefill_ours(runner: ModelRunner, plan: CachePlan, ids: list[int]) -> PromptCache:
    """A cache that holds `ids`; the first token of the reply is computed."""
    from mlxkv.cache.prompt_cache import PromptCache

    cache = PromptCache(plan, runner.model)
    for _ in runner.prefill(cache, ids[:-1]):
        pass
    next(runner.decode(cache, ids[-1], _greedy(1)))
    return cache


def _prefill_theirs(runner: ModelRunner, ids: list[int], window: int | None) -> list[Any]:
    """The same by mlx-lm's loop, which is a token ahead."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    caches = their_caches(runner, window)
    next(generate_step(mx.array(ids), runner.model, max_tokens=1, prompt_cache=caches))
    return caches


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def timed(stream: Iterator[Any]) -> float:
    """Seconds from the first token to the last."""
    next(stream)
    begun = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - begun


def _greedy(most: int) -> SamplingParams:
    from mlxkv.inference.sampling import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=most)
