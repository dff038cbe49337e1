"""PromptCache: plans equal what is allocated, reuse keeps the longest common prefix, rows come back bit by bit."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import make_cache, plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.errors import CacheError, RewindError
from mlxkv.inference.runner import ModelRunner
from tests.reference import largest, logits_of, random_ids, tiny_llama

CONFIG = CacheConfig(window=64, block=16, slack=32, sinks=4)
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 20}


def cache_of(model: object, config: CacheConfig = CONFIG) -> PromptCache:
    return PromptCache(plan_cache(model, config), model)


def feed(model: object, cache: PromptCache, ids: list[int]) -> None:
    for _ in ModelRunner(model).prefill(cache, ids):  # type: ignore[arg-type]
        pass


def continuation(model: object, cache: PromptCache, ids: list[int]) -> mx.array:
    return ModelRunner(model).score(cache, ids)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, SLIDING])
def test_planned_bytes_are_the_allocated_bytes_and_never_change(more: dict) -> None:
    model = tiny_llama(**more)
    cache = cache_of(model)
    assert cache.nbytes == 0
    feed(model, cache, random_ids(10))
    assert cache.nbytes == cache.plan.nbytes
    feed(model, cache, random_ids(500))
    assert cache.nbytes == cache.plan.nbytes
    assert cache.num_attended <= cache.capacity == 68


def test_planning_computes_nothing() -> None:
    model = tiny_llama(layers=8, hidden=256)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    plan_cache(model, CacheConfig(window=32_768))
    assert mx.get_peak_memory() - before < 100_000


def test_a_rounded_window_says_so() -> None:
    assert "rounded up to 112" in plan_cache(tiny_llama(), CacheConfig(window=100, block=16)).description


def test_the_default_window_is_the_trained_length() -> None:
    geometry = plan_cache(tiny_llama(max_position_embeddings=512)).geometry
    assert geometry is not None
    assert geometry.window == 512


def test_make_cache_is_a_drop_in_for_mlx_lms_loop() -> None:
    from mlx_lm.generate import generate_step

    model, ids = tiny_llama(), random_ids(20)
    expected = [t for t, _ in generate_step(mx.array(ids), model, max_tokens=20)]
    ours = make_cache(model, CacheConfig(window=64))
    assert all(isinstance(c, RingKVCache) for c in ours)
    assert [t for t, _ in generate_step(mx.array(ids), model, max_tokens=20, prompt_cache=ours)] == expected


def test_mlx_lms_own_ways_with_caches_work() -> None:
    """Trimming, and the deep copies that its server makes of prompt caches."""
    from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

    model, ids = tiny_llama(), random_ids(150)
    ours, straight = make_cache(model, CONFIG), make_cache(model, CONFIG)
    logits_of(model, ours, ids, [50])
    copied = copy.deepcopy(ours)
    assert copied[0].rotation is ours[0].rotation
    assert can_trim_prompt_cache(copied)
    assert trim_prompt_cache(copied, 20) == 20
    assert (copied[0].offset, ours[0].offset) == (130, 150)
    logits_of(model, straight, ids[:130], [50])
    assert largest(logits_of(model, copied, ids[:9], [1]) - logits_of(model, straight, ids[:9], [1])) < 1e-5


def test_recurrent_layers_pass_through_and_are_no_news() -> None:
    from mlx_lm.models.cache import ArraysCache

    class Hybrid(type(tiny_llama())):  # type: ignore[misc]
        def make_cache(self) -> list:
            return [*super().make_cache(), ArraysCache(2)]

    model = Hybrid(tiny_llama().args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_cache(model, replace(CONFIG, positions="absolute"))
    plan = plan_cache(model, CONFIG)
    assert "; 1 keep a recurrent state" in plan.description
    assert plan.passed_through == ("ArraysCache",)


def test_reuse_reads_only_what_is_new_and_says_where_it_stopped() -> None:
    model, ids = tiny_llama(), random_ids(40)
    cache = cache_of(model)
    feed(model, cache, ids)
    assert cache.reuse([*ids, 1, 2]).cached == 40
    stopped = cache.reuse([*ids[:30], (ids[30] + 1) % 64, 5])
    assert (stopped.cached, stopped.stopped_at) == (30, 30)
    assert "token 30" in (stopped.why or "")
    assert cache.reuse(ids[:30]).cached == 29  # one is left, since its logits are wanted
    assert cache.reuse([63 - ids[0], 2]).cached == 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, SLIDING])
@pytest.mark.parametrize("back", [1, 9, 32])
def test_after_reuse_the_continuation_is_as_if_the_rest_had_never_been(more: dict, back: int) -> None:
    model, ids = tiny_llama(**more), random_ids(200)
    cache, straight = cache_of(model), cache_of(model)
    feed(model, cache, ids[:150])
    other = [*ids[: 150 - back], *random_ids(40, seed=8)]
    n = cache.reuse(other).cached
    assert n >= 150 - back
    feed(model, straight, other[:n])
    assert largest(continuation(model, cache, other[n:]) - continuation(model, straight, other[n:])) < 1e-5


def test_rows_that_rotated_out_mean_reading_again_not_an_error() -> None:
    model, ids = tiny_llama(), random_ids(200)
    cache = cache_of(model)
    feed(model, cache, ids)
    with pytest.raises(RewindError):
        cache.rewind(10)
    assert cache.offset == 200
    reuse = cache.reuse([*ids[:10], 1])
    assert reuse.cached == 0
    assert "were evicted" in (reuse.why or "")
    assert cache.offset == 0


def test_a_fork_leaves_its_origin_alone() -> None:
    model, ids = tiny_llama(), random_ids(120)
    cache, straight = cache_of(model), cache_of(model)
    feed(model, cache, ids[:100])
    feed(model, straight, ids[:100])
    twin = cache.fork()
    feed(model, twin, random_ids(30, seed=3))
    assert cache.offset == 100
    assert largest(continuation(model, cache, ids[100:]) - continuation(model, straight, ids[100:])) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, SLIDING])
@pytest.mark.parametrize("fed", [3, 4, 40, 68, 69, 100, 163])
def test_exported_rows_come_back_bit_by_bit_and_can_be_rewound(more: dict, fed: int) -> None:
    model, ids = tiny_llama(**more), random_ids(200)
    cache, back = cache_of(model), cache_of(model)
    feed(model, cache, ids[:fed])
    back.begin_restore(ids[:fed])
    for group, fresh in zip(cache.groups, back.groups, strict=True):
        for a, b in group.held():
            for low in range(a, b, 7):
                rows = group.export_rows(low, min(b, low + 7))
                assert {n: (tuple(r.shape), "F32") for n, r in rows.items()} == group.shapes(min(b, low + 7) - low)
                fresh.import_rows(low, min(b, low + 7), rows)
    back.finish_restore()
    assert back.rewindable == cache.rewindable
    assert back.nbytes == cache.plan.nbytes
    n = min(20, cache.rewindable, fed)
    twins = [(cache.fork(), back.fork()) for _ in range(2)]
    for one, two in [twins[0]]:
        one.rewind(fed - n)
        two.rewind(fed - n)
    for one, two in twins:
        rest = ids[one.offset : 190]
        assert largest(continuation(model, one, rest) - continuation(model, two, rest)) == 0.0


def test_a_missing_row_is_noticed() -> None:
    model, ids = tiny_llama(), random_ids(100)
    cache, back = cache_of(model), cache_of(model)
    feed(model, cache, ids)
    back.begin_restore(ids)
    (group,), (fresh,) = cache.groups, back.groups
    a, b = group.held()[-1]
    fresh.import_rows(a, b - 1, group.export_rows(a, b - 1))
    fresh.import_rows(0, 4, group.export_rows(0, 4))
    with pytest.raises(CacheError, match="not restored"):
        back.finish_restore()
