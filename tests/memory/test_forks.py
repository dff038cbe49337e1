"""What a fork costs: nothing until one side is fed, then the rows in use, which are counted before they are taken."""

from __future__ import annotations

import copy
import gc
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.errors import OutOfMemoryError
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import Budget
from tests.reference import random_ids, tiny_llama
from tests.thorough import part

CONFIG = CacheConfig(window=4096, block=64, sinks=4)
GREEDY = SamplingParams(temperature=0.0, max_tokens=4)


def filled(num_tokens: int = 30) -> tuple[ModelRunner, PromptCache]:
    model = tiny_llama(hidden=128)
    cache = PromptCache(plan_cache(model, CONFIG), model)
    list(ModelRunner(model).prefill(cache, random_ids(num_tokens)))
    return ModelRunner(model, budget=Budget(model, 0)), cache


def taken() -> int:
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


@pytest.mark.slow
def test_a_fork_copies_the_rows_in_use_and_doubles_up_to_the_window() -> None:
    runner, cache = filled(183)
    row, before = cache.plan.bytes_per_token, taken()
    a, b = cache.fork(), cache.fork()
    assert taken() - before < 1000
    rings = sum(leaf.geometry.rows * leaf.row_bytes for leaf in cache.plan.leaves if leaf.geometry)
    assert a.shared_nbytes == b.shared_nbytes == cache.shared_nbytes == rings
    for num_new, rows in ((1, 256), (73, 512), (600, 1024), (3000, 4096), (300, rings // row)):
        growth, held = a.growth(num_new), a.ring_nbytes if not a.shared_nbytes else 0
        list(runner.prefill(a, random_ids(num_new, seed=num_new)))
        assert taken() - before == pytest.approx(rows * row, rel=0.02)
        assert a.ring_nbytes - held == pytest.approx(growth, abs=4 * row)
        assert (a.shared_nbytes, b.shared_nbytes) == (0, rings)
    assert a.nbytes == cache.plan.nbytes
    assert a.num_evicted > 0
    list(runner.prefill(b, [6]))
    assert cache.shared_nbytes == 0  # the last one that holds the old buffers writes into them
    held = taken()
    list(runner.prefill(cache, [7]))
    assert taken() == pytest.approx(held, abs=1000)
    assert cache.ring_nbytes == cache.plan.nbytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tokens", "bits"), part([*((n, None) for n in (1, 63, 64, 65, 68, 69, 84, 130)), (1, 8), (69, 8), (130, 8)], 4)
)
def test_a_fork_that_grows_holds_what_a_cache_of_full_size_holds(num_tokens: int, bits: int | None) -> None:
    """From any length, in calls of any length, past the window and back, from the older side and from the newer."""
    model = tiny_llama(hidden=128)
    plan = plan_cache(model, CacheConfig(window=64, block=16, sinks=4, slack=32, bits=bits, group_size=32))
    ids = random_ids(num_tokens + 150)
    for step, writes_first in ((512, True), (1, True), (7, False)):
        runner = ModelRunner(model, step)
        straight, root = PromptCache(plan, model), PromptCache(plan, model)
        for one in (straight, root):
            list(ModelRunner(model).prefill(one, ids[:num_tokens]))
        side, other = (root.fork(), root) if writes_first else (root, root.fork())
        kept = [x.tolist() for ring in other.layers for x in (ring.keys, ring.values)]
        assert side.growth(1)
        for one in (straight, side):
            list(runner.prefill(one, ids[num_tokens:]))
        assert side.ring_nbytes == plan.nbytes
        assert [x.tolist() for ring in other.layers for x in (ring.keys, ring.values)] == kept
        straight.rewind(straight.offset - 20)
        side.rewind(side.offset - 20)
        assert mx.array_equal(runner.score(side, ids[:30]), runner.score(straight, ids[:30]))


@pytest.mark.slow
def test_four_forks_of_183_tokens_take_no_more_than_mlx_lms() -> None:
    """The rings of SmolLM2-135M in 16 bits with its window of 8,192: 803 MB when a fork copied the whole window."""
    from mlx_lm.models.cache import KVCache

    layers, new = 30, mx.ones((1, 3, 1, 64), mx.bfloat16)  # (B, KV heads, tokens, head_dim)
    prompt = mx.broadcast_to(new, (1, 3, 183, 64))

    def forks_take(caches: list[Any]) -> int:
        for cache in caches:
            cache.update_and_fetch(prompt, prompt)
        mx.eval([cache.keys for cache in caches], [cache.values for cache in caches])
        before, forks = taken(), [copy.deepcopy(caches) for _ in range(4)]
        for fork in forks:
            for cache in fork:
                cache.update_and_fetch(new, new)
            mx.eval([cache.keys for cache in fork], [cache.values for cache in fork])
        return taken() - before

    theirs = forks_take([KVCache() for _ in range(layers)])
    ours = forks_take([RingKVCache(CacheConfig(window=8192).geometry(8192)) for _ in range(layers)])
    print(f"4 forks of 183 tokens: {ours / 1e6:.1f} MB, mlx-lm's {theirs / 1e6:.1f} MB")
    assert ours <= theirs <= 24e6


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
    runner, cache = filled()
    fork = cache.fork()
    runner._budget.limit = mx.get_active_memory() + 32 * cache.plan.bytes_per_token - 1000
    new = random_ids(num_new, seed=3)

    def feed(one: PromptCache) -> list[int]:
        list(runner.prefill(one, new[:-1]))
        return list(runner.decode(one, new[-1], GREEDY))

    with pytest.raises(OutOfMemoryError, match=r"This fork of a KV cache needs .* more; .* are free; delete"):
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
    need = 1024 * plan.bytes_per_token + Budget(model, 0).prefill_bytes(plan, 128, 630)  # 630 tokens in 1,024 rows
    runner._budget.limit = mx.get_active_memory() + need - 20_000  # the copy alone would fit
    with pytest.raises(OutOfMemoryError, match=r"Prefilling a prompt of 630 tokens needs"):
        list(runner.prefill(fork, random_ids(600)))
    assert fork.offset == 30
    runner._budget.limit = mx.get_active_memory() + need + 20_000  # the whole window would not
    list(runner.prefill(fork, random_ids(600)))
    assert fork.offset == 630


@pytest.mark.slow
def test_a_fork_that_grows_while_it_decodes_is_refused_there() -> None:
    """Not by the system, which would end the process; the tokens so far stay."""
    runner, cache = filled()
    fork, got = cache.fork(), list[int]()
    runner._budget.limit = mx.get_active_memory() + 32 * cache.plan.bytes_per_token + 20_000
    with pytest.raises(OutOfMemoryError, match="This fork of a KV cache needs"):
        got.extend(runner.decode(fork, 5, SamplingParams(temperature=0.0, max_tokens=40)))
    assert fork.tokens == [*cache.tokens, 5, *got][: fork.offset]
    assert fork.offset == 32


@pytest.mark.slow
def test_generating_from_a_fork_is_refused_in_a_sentence(model: mlxkv.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    book = model.prefill("once upon a time", cache=CacheConfig(window=4096))
    log = list(book.tokens)
    fork = book.fork()
    monkeypatch.setattr(model._runtime.budget, "limit", mx.get_active_memory() + fork.growth(1) - 10)
    with pytest.raises(OutOfMemoryError, match="delete other forks first"):
        model.generate(" there was", cache=fork, max_tokens=4, temperature=0.0)
    assert (fork.tokens, book.tokens) == (log, log)
    del fork
    gc.collect()
    monkeypatch.setattr(model._runtime.budget, "limit", mx.get_active_memory() + book.nbytes - 10_000)
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
