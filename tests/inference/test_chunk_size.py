"""Prefill chunks by measurement: on machines of any speed a call takes a second at most, but for the first."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.chunk_size import ChunkSize
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget
from tests.reference import random_ids, tiny_llama


def chunks(size: ChunkSize, calls: int, rate: float, floor: float = 0.0) -> list[tuple[int, float]]:
    """The tokens and seconds of calls on a machine that prefills `rate` tokens a second, and takes `floor` at least."""
    found = []
    for _ in range(calls):
        n = size.at(0)
        found.append((n, max(n / rate, floor)))
        size.took(*found[-1])
    return found


@pytest.mark.parametrize("rate", [40, 60, 100, 300, 511, 513, 1000, 2047, 2049, 5000, 100_000])
def test_no_call_but_the_first_takes_more_than_a_second(rate: float) -> None:
    (first, *rest) = chunks(ChunkSize(), 12, rate)
    assert first == (512, 512 / rate)
    assert all(seconds <= 1.0 for _, seconds in rest)
    settled = rest[-1][0]
    assert rate / 4 < settled or settled == 2048  # no more calls than four times the fewest possible
    assert settled == rest[-2][0]


def test_it_grows_and_shrinks_within_its_bounds() -> None:
    size = ChunkSize()
    assert [n for n, _ in chunks(size, 4, 1e6)] == [512, 1024, 2048, 2048]
    assert [n for n, _ in chunks(size, 3, 1.0)] == [2048, 32, 32]
    assert [n for n, _ in chunks(size, 8, 1e6)] == [32, 64, 128, 256, 512, 1024, 2048, 2048]


def test_a_slow_first_call_is_recovered_from() -> None:
    """A model's kernels are compiled in it."""
    size = ChunkSize()
    size.took(512, 4.0)
    assert size.at(0) == 128
    assert [n for n, _ in chunks(size, 5, 1e5)] == [128, 256, 512, 1024, 2048]


def test_a_call_that_was_cut_short_says_nothing_about_larger_ones() -> None:
    size = ChunkSize()
    size.took(100, 0.01)
    assert size.at(0) == 512
    size.took(256, 1.5)  # but it may be too slow
    assert size.at(0) == 128


@pytest.mark.parametrize(
    ("keys", "n"), [(65_536, 2048), (65_537, 1024), (131_072, 1024), (131_073, 512), (1 << 20, 128), (1 << 27, 32)]
)
def test_calls_are_shorter_where_they_attend_more_than_65_536_keys(keys: int, n: int) -> None:
    size = ChunkSize()
    chunks(size, 3, 1e6)
    assert size.at(keys) == n


def test_a_fixed_size_stays() -> None:
    assert {n for n, _ in chunks(ChunkSize(300), 5, 1.0)} == {300}
    assert ChunkSize(300).at(1 << 20) == 300


class Machine:
    """A model, and a clock that only it moves."""

    def __init__(self, rate: float) -> None:
        self.model: Any = tiny_llama(max_position_embeddings=8192)
        self.rate, self.now = rate, 0.0

    def __call__(self, ids: mx.array, cache: Any) -> Any:
        self.now += ids.shape[1] / self.rate
        return self.model(ids, cache=cache)

    def runner(self, limit: int = 0) -> ModelRunner:
        runner = ModelRunner(self.model, None, Budget(self.model, limit), clock=lambda: self.now)
        runner.model = self
        return runner

    def cache(self, window: int = 8192) -> PromptCache:
        return PromptCache(plan_cache(self.model, CacheConfig(window=window, block=64, sinks=4)), self.model)


def sizes(done: list[int]) -> list[int]:
    return [b - a for a, b in pairwise([0, *done])]


@pytest.mark.slow
def test_the_runner_measures_and_keeps_it_for_the_next_prompt() -> None:
    fast, slow = Machine(1e6), Machine(700)
    runner, cache = fast.runner(), fast.cache()
    assert sizes(list(runner.prefill(cache, random_ids(3700)))) == [512, 1024, 2048, 116]
    assert sizes(list(runner.prefill(fast.cache(), random_ids(2100)))) == [2048, 52]
    runner = slow.runner()
    assert sizes(list(runner.prefill(slow.cache(), random_ids(700)))) == [512, 188]
    slow.rate = 100
    assert sizes(list(runner.prefill(slow.cache(), random_ids(700)))) == [512, 64, 64, 60]


@pytest.mark.slow
def test_esc_answers_within_a_second() -> None:
    machine = Machine(150)
    runner, cache = machine.runner(), machine.cache()
    list(runner.prefill(machine.cache(), random_ids(600)))  # the first prompt of a process
    esc, times = threading.Event(), [machine.now]
    for done in runner.prefill(cache, random_ids(3000), esc.is_set):
        times.append(machine.now)
        if done >= 500:
            esc.set()
    assert 500 <= cache.offset < 700
    assert max(b - a for a, b in pairwise(times)) <= 1.0


@pytest.mark.slow
def test_a_full_window_is_fed_a_block_at_a_time() -> None:
    machine = Machine(1e6)
    done = list(machine.runner().prefill(machine.cache(1024), random_ids(1500)))
    assert sizes(done) == [512, 516, *[64] * 7, 24]


@pytest.mark.slow
def test_it_does_not_grow_beyond_memory() -> None:
    machine = Machine(1e6)
    cache, budget = machine.cache(), Budget(machine.model, 0)
    need = budget.cache_bytes(cache.plan) + budget.prefill_bytes(cache.plan, 1024, 4000)
    runner = machine.runner(mx.get_active_memory() + need + 100_000)
    assert sizes(list(runner.prefill(cache, random_ids(4000))))[:3] == [512, 1024, 1024]
