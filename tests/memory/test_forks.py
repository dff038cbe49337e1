"""What a fork costs: nothing until one side is fed, then the whole window, which is counted before it is taken."""

from __future__ import annotations

import gc

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import OutOfMemoryError
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import Budget
from tests.reference import random_ids, tiny_llama

CONFIG = CacheConfig(window=4096, block=64, sinks=4)
GREEDY = SamplingParams(temperature=0.0, max_tokens=4)


def filled(num_tokens: int = 30) -> tuple[ModelRunner, PromptCache]:
    model = tiny_llama(hidden=128)
    cache = PromptCache(plan_cache(model, CONFIG), model)
    list(ModelRunner(model).prefill(cache, random_ids(num_tokens)))
    return ModelRunner(model, budget=Budget(model, 0)), cache


@pytest.mark.slow
def test_the_bytes_that_are_shared_are_those_that_the_first_token_copies() -> None:
    runner, cache = filled()
    assert cache.shared_nbytes == 0
    gc.collect()  # caches of earlier tests
    before = mx.get_active_memory()
    a, b = cache.fork(), cache.fork()
    assert mx.get_active_memory() - before < 1000
    rings = sum(leaf.geometry.rows * leaf.row_bytes for leaf in cache.plan.leaves if leaf.geometry)
    assert a.shared_nbytes == b.shared_nbytes == cache.shared_nbytes == rings
    list(runner.prefill(a, [5]))
    assert mx.get_active_memory() - before == pytest.approx(rings, rel=0.01)
    assert (a.shared_nbytes, b.shared_nbytes) == (0, rings)
    list(runner.prefill(b, [6]))
    assert mx.get_active_memory() - before == pytest.approx(2 * rings, rel=0.01)
    assert cache.shared_nbytes == 0  # the last one that holds the old buffers writes into them
    list(runner.prefill(cache, [7]))
    assert mx.get_active_memory() - before == pytest.approx(2 * rings, rel=0.01)


@pytest.mark.slow
def test_a_fork_that_is_gone_shares_nothing() -> None:
    _, cache = filled()
    fork = cache.fork()
    assert cache.shared_nbytes
    del fork
    gc.collect()
    assert cache.shared_nbytes == 0


def test_a_restored_fork_has_buffers_of_its_own() -> None:
    _, cache = filled()
    fork = cache.fork()
    fork.begin_restore([1, 2, 3])
    assert cache.shared_nbytes == fork.shared_nbytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_new", [1, 3])
def test_a_copy_that_does_not_fit_is_refused_before_anything_is_fed(num_new: int) -> None:
    """Four forks of 183 tokens took 803 MB that the budget knew nothing of."""
    runner, cache = filled()
    fork = cache.fork()
    runner._budget.limit = mx.get_active_memory() + cache.nbytes - 10_000
    new = random_ids(num_new, seed=3)

    def feed(one: PromptCache) -> list[int]:
        list(runner.prefill(one, new[:-1]))
        return list(runner.decode(one, new[-1], GREEDY))

    with pytest.raises(OutOfMemoryError, match=r"first token after a fork copies the KV cache, .* are free; delete"):
        feed(fork)
    assert fork.tokens == cache.tokens
    assert fork.shared_nbytes == cache.shared_nbytes
    runner._budget.limit = 0
    expected = feed(cache.fork())
    runner._budget.limit = mx.get_active_memory() + cache.nbytes - 10_000
    del fork
    gc.collect()
    assert feed(cache) == expected  # nothing was lost, and the last one needs no copy


def test_a_prefill_into_a_fork_counts_what_the_others_hold() -> None:
    """Its own buffers count as free otherwise, since they are about to be written; shared ones are not."""
    runner, cache = filled()
    fork = cache.fork()
    plan, model = cache.plan, runner.model
    need = Budget(model, 0).cache_bytes(plan) + Budget(model, 0).prefill_bytes(plan, 128, 630)
    runner._budget.limit = mx.get_active_memory() + need - 20_000  # the copy alone would fit
    with pytest.raises(OutOfMemoryError, match=r"Prefilling a prompt of 630 tokens needs"):
        list(runner.prefill(fork, random_ids(600)))
    assert fork.offset == 30


@pytest.mark.slow
def test_generating_from_a_fork_is_refused_in_a_sentence(model: mlxkv.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    book = model.prefill("once upon a time", cache=CacheConfig(window=4096))
    log = list(book.tokens)
    fork = book.fork()
    monkeypatch.setattr(model._runtime.budget, "limit", mx.get_active_memory() + book.nbytes - 10_000)
    with pytest.raises(OutOfMemoryError, match="delete other forks first"):
        model.generate(" there was", cache=fork, max_tokens=4, temperature=0.0)
    assert (fork.tokens, book.tokens) == (log, log)
    del fork
    gc.collect()
    assert len(model.generate(" there was", cache=book, max_tokens=4, temperature=0.0).tokens) == 4


@pytest.mark.slow
def test_a_forks_copy_does_not_count_as_the_peak_of_a_prefill() -> None:
    """It would make every later prompt of this cache look as if it took a whole cache more."""
    runner, cache = filled()
    fork = cache.fork()
    predicted = runner._budget.prefill_bytes(cache.plan, 512)
    gc.collect()
    mx.reset_peak_memory()
    list(runner.prefill(fork, random_ids(512)))
    assert runner._budget.prefill_bytes(cache.plan, 512) == predicted
