"""Recurrent layers go back to checkpoints, and the continuation is that of a fresh run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.plan import plan_cache
from mlxkv.cache.probe import leaves
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.recurrent.checkpoints import CHECKPOINT_INTERVAL, MAX_CHECKPOINTS, Checkpoints
from mlxkv.cache.recurrent.state import arrays_of, capture, restore_snapshot
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.errors import RewindError
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory.budget import Budget
from tests.hybrids import CONFIGS, tiny
from tests.reference import largest, random_ids

CONFIG = CacheConfig(window=128, block=16, slack=32, sinks=4)
RECURRENT = [name for name in CONFIGS if name != "llama4"]


def cache_of(model: Any, config: CacheConfig = CONFIG) -> PromptCache:
    return PromptCache(plan_cache(model, config), model)


def feed(model: Any, cache: PromptCache, ids: Sequence[int]) -> None:
    for _ in ModelRunner(model).prefill(cache, ids):
        pass


def score(model: Any, cache: PromptCache, ids: Sequence[int]) -> mx.array:
    return ModelRunner(model).score(cache, ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_going_back_again_and_again_is_as_if_the_rest_had_never_been(name: str) -> None:
    """Turns of random lengths, then back to random places, past the window of 128: exactly a run that was cut alike."""
    model, dice = tiny(name), random.Random(name)
    cache, fed = cache_of(model), []  # (where a turn began, its ids)
    landings = set()
    for _ in range(12):
        if fed and dice.random() < 0.6:
            target = dice.randrange(max(cache.offset - 40, 1), cache.offset + 1)
            reuse = cache.reuse([*cache.tokens[:target], 63, 62])
            assert reuse.cached == cache.offset <= target
            landings.add(target - cache.offset)
            fed = [(start, ids[: max(cache.offset - start, 0)]) for start, ids in fed if start < cache.offset]
        cache.checkpoint()
        ids = random_ids(dice.randrange(1, 30), seed=dice.randrange(1000))
        fed.append((cache.offset, ids))
        feed(model, cache, ids)
        straight = cache_of(model)
        for _, ids in fed:
            feed(model, straight, ids)
        assert straight.tokens == cache.tokens
        probe = random_ids(9, seed=5)
        difference = largest(score(model, cache.fork(), probe) - score(model, straight, probe))
        assert difference == 0.0, (name, cache.offset)
    assert len(landings) > 1
    assert cache.nbytes >= sum(leaf.nbytes for leaf in leaves(cache.layers))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
def test_a_run_that_was_cut_otherwise_differs_by_rounding_alone(name: str) -> None:
    model, ids = tiny(name), random_ids(120)
    cache, straight = cache_of(model), cache_of(model)
    for start in range(0, 90, 30):
        cache.checkpoint()
        feed(model, cache, ids[start : start + 30])
    assert cache.reuse([*ids[:75], 1]).cached == 60
    feed(model, straight, ids[:60])
    got, expected = score(model, cache, ids[60:]), score(model, straight, ids[60:])
    assert largest(got - expected) <= 1e-4 * largest(expected)


def test_a_prompt_that_goes_on_needs_no_checkpoint_and_one_that_differs_says_where_it_went() -> None:
    model, ids = tiny("qwen3_next"), random_ids(50)
    cache = cache_of(model)
    feed(model, cache, ids[:20])
    cache.checkpoint()
    feed(model, cache, ids[20:])
    on = cache.reuse([*ids, 5])
    assert (on.cached, on.stopped_at, on.why) == (50, None, None)
    back = cache.reuse([*ids[:30], 63 - ids[30], 5])
    assert (back.cached, back.stopped_at) == (20, 20)
    assert "token 30" in str(back.why)
    assert "token 20" in str(back.why)
    gone = cache.reuse([*ids[:10], 63 - ids[10], 5])
    assert (gone.cached, gone.stopped_at, cache.offset) == (0, 0, 0)
    assert all(leaf.empty() for leaf in leaves(cache.layers) if type(leaf).__name__ == "ArraysCache")


def test_a_state_of_what_was_taken_back_is_never_gone_back_to() -> None:
    model, ids, other = tiny("mamba2"), random_ids(60), random_ids(60, seed=9)
    cache, straight = cache_of(model), cache_of(model)
    for start in (0, 20, 40):
        feed(model, cache, ids[start : start + 20])
        cache.checkpoint()
    assert cache.rewind(30) == 20
    feed(model, cache, other[20:])
    assert cache.reuse([*ids[:20], *other[20:50], 63 - other[50]]).cached == 20
    feed(model, straight, ids[:20])
    assert largest(score(model, cache, other) - score(model, straight, other)) == 0.0


def test_rewinding_to_where_no_checkpoint_is_raises_and_changes_nothing() -> None:
    model, ids = tiny("mamba2"), random_ids(40)
    cache = cache_of(model)
    feed(model, cache, ids)
    before = cache.fork()
    with pytest.raises(RewindError):
        cache.rewind(30)
    assert cache.tokens == ids
    assert largest(score(model, cache, ids) - score(model, before, ids)) == 0.0


def test_a_checkpoint_that_the_rings_cannot_reach_does_not_count() -> None:
    """All layers land on the same place or none does."""
    model, ids = tiny("granitemoehybrid"), random_ids(400)
    cache = cache_of(model)
    feed(model, cache, ids[:40])
    cache.checkpoint()
    feed(model, cache, ids[40:330])
    assert cache.rewind_target(100) == 0
    cache.checkpoint()
    feed(model, cache, ids[330:350])
    assert cache.rewind_target(349) == cache.rewind(349) == 330
    assert cache.rewindable == 0


@pytest.mark.slow
def test_prefill_stops_for_a_checkpoint_every_1024_tokens_and_decode_takes_them_too() -> None:
    from mlxkv.inference.sampling import SamplingParams

    model, ids = tiny("mamba2"), random_ids(CHECKPOINT_INTERVAL + 700)
    cache = cache_of(model)
    runner = ModelRunner(model)
    assert list(runner.prefill(cache, ids[:100])) == [100]
    assert list(runner.prefill(cache, ids[100:])) == [512, 924, 1436, 1624]
    assert [c.position for c in cache.checkpoints] == [CHECKPOINT_INTERVAL]
    for _ in runner.decode(cache, 1, SamplingParams(temperature=0.0, max_tokens=400)):
        pass
    assert [c.position for c in cache.checkpoints] == [CHECKPOINT_INTERVAL, 2 * CHECKPOINT_INTERVAL]
    straight = cache_of(model)
    feed(model, straight, cache.tokens[: 2 * CHECKPOINT_INTERVAL])
    cache.rewind(2 * CHECKPOINT_INTERVAL + 1)
    difference = largest(score(model, cache, ids[:20]) - score(model, straight, ids[:20]))
    assert difference <= 1e-4 * largest(score(model, straight, ids[:20]))


def test_the_newest_are_kept_and_a_long_text_does_not_push_out_the_turns() -> None:
    model = tiny("mamba2")
    cache = cache_of(model)
    feed(model, cache, [1, 2, 3])
    checkpoints = Checkpoints([leaves(cache.layers)[0]])
    for n in range(1, 21):
        checkpoints.take(n, is_turn=n in (2, 3, 5))
    assert [c.position for c in checkpoints] == [2, 3, 5, 16, 17, 18, 19, 20][-MAX_CHECKPOINTS:]
    for n in range(21, 31):
        checkpoints.take(n, is_turn=True)
    assert [c.position for c in checkpoints] == list(range(23, 31))


def test_the_bytes_of_checkpoints_are_counted() -> None:
    model, ids = tiny("lfm2"), random_ids(60)
    cache = cache_of(model)
    feed(model, cache, ids[:20])
    plain = cache.nbytes
    cache.checkpoint()
    assert cache.nbytes == plain  # shared with the caches until they move on
    feed(model, cache, ids[20:])
    state = sum(
        x.nbytes
        for c in leaves(cache.layers)
        if type(c).__name__ == "ArraysCache"
        for x in arrays_of(capture(c)).values()
    )
    assert state > 0
    assert cache.nbytes == plain + state
    cache.reset()
    assert cache.nbytes == plain - state


def test_a_snapshot_holds_no_more_than_its_own_bytes() -> None:
    """A convolution's state is a view of the last rows of a whole prefill: it must not keep that alive."""
    big = mx.zeros((1, 100_000, 8))
    mx.eval(big)
    model = tiny("mamba2")
    cache = leaves(cache_of(model).layers)[0]
    cache[0] = big[:, -3:]
    before = mx.get_active_memory()
    snapshot = capture(cache)
    mx.eval(list(arrays_of(snapshot).values()))
    restore_snapshot(cache, snapshot)
    del big
    assert before - mx.get_active_memory() > 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["falcon_h1", "recurrent_gemma", "llama4"])
def test_a_fork_and_a_reset_leave_the_other_alone(name: str) -> None:
    model, ids = tiny(name), random_ids(90)
    cache, straight = cache_of(model), cache_of(model)
    feed(model, cache, ids[:40])
    cache.checkpoint()
    feed(model, cache, ids[40:60])
    twin = cache.fork()
    twin.reuse([*ids[:50], 1])
    feed(model, twin, random_ids(20, seed=3))
    twin.reset()
    feed(model, straight, ids[:40])
    feed(model, straight, ids[40:60])
    assert largest(score(model, cache.fork(), ids[60:]) - score(model, straight, ids[60:])) == 0.0
    fresh = cache_of(model)
    assert largest(score(model, twin, ids) - score(model, fresh, ids)) == 0.0


def test_a_chunked_layer_goes_back_within_its_chunk() -> None:
    model, ids = tiny("llama4"), random_ids(200)
    cache = cache_of(model)
    for start in range(0, 120, 20):
        feed(model, cache, ids[start : start + 20])
    assert cache.rewind_target(97) == 97  # chunks of 48 begin at 96
    assert cache.rewind_target(60) == 0
    with pytest.raises(RewindError):
        cache.rewind(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
def test_the_bytes_of_states_are_known_before_any_is_made(name: str) -> None:
    model = tiny(name)
    cache = cache_of(model)
    feed(model, cache, random_ids(30))
    states = [leaf for leaf in leaves(cache.layers) if type(leaf).__name__ == "ArraysCache"]
    assert sum(state_nbytes(model, cache.plan)) == sum(leaf.nbytes for leaf in states) > 0


def test_memory_is_kept_for_the_checkpoints() -> None:
    """A limit that the rings fit and the states with their checkpoints do not."""
    model = tiny("qwen3_next")
    plan = plan_cache(model, CONFIG)
    states = sum(state_nbytes(model, plan)) * (MAX_CHECKPOINTS + 1)
    prefill = Budget(model, limit=1).prefill_bytes(plan, 128)
    assert Budget(model, limit=plan.nbytes + states + prefill).fits(plan, used=0)
    assert not Budget(model, limit=plan.nbytes + states + prefill - 1).fits(plan, used=0)
