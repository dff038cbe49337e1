"""Recurrent layers go back to checkpoints, and the continuation is that of a fresh run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.recurrent.checkpoints import CHECKPOINT_INTERVAL, MIN_CHECKPOINTS, max_checkpoints
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
def test_a_long_prefill_and_a_long_reply_take_checkpoints_and_no_call_is_cut_for_them() -> None:
    from mlxkv.inference.sampling import SamplingParams

    model, ids = tiny("mamba2"), random_ids(1724)
    cache = cache_of(model)
    runner = ModelRunner(model)
    assert list(runner.prefill(cache, ids[:100])) == [100]
    assert list(runner.prefill(cache, ids[100:])) == [512, 1024, 1536, 1624]
    assert [c.position for c in cache.checkpoints] == [1124]
    for _ in runner.decode(cache, 1, SamplingParams(temperature=0.0, max_tokens=500)):
        pass
    assert [c.position for c in cache.checkpoints] == [1124, 1124 + CHECKPOINT_INTERVAL]
    straight = cache_of(model)
    feed(model, straight, cache.tokens[: 1124 + CHECKPOINT_INTERVAL])
    cache.rewind(1124 + CHECKPOINT_INTERVAL + 1)
    difference = largest(score(model, cache, ids[:20]) - score(model, straight, ids[:20]))
    assert difference <= 1e-4 * largest(score(model, straight, ids[:20]))


def test_prefill_stops_where_checkpoints_are_asked_for() -> None:
    model, ids = tiny("mamba2"), random_ids(700)
    cache = cache_of(model)
    assert list(ModelRunner(model).prefill(cache, ids, checkpoints=[600], prefixes=[90])) == [90, 600, 700]
    assert [(c.position, c.is_prefix) for c in cache.checkpoints] == [(90, True), (600, False)]
    llama = tiny("llama4")
    assert list(ModelRunner(llama).prefill(cache_of(llama), ids[:80], checkpoints=[60])) == [80]


@pytest.mark.parametrize("turn", [10, 30, 60, 100, 400, 1600])
def test_going_back_five_turns_prefills_at_most_half_of_the_distance(turn: int) -> None:
    """The rule, within the six states that are kept by default, through a chat of 8,000 tokens."""
    model = tiny("mamba2")
    cache = cache_of(model)
    feed(model, cache, random_ids(80))  # the rest only counts tokens

    def fed(num_tokens: int) -> None:
        for done in range(0, num_tokens, 512):
            cache.advance([1] * min(512, num_tokens - done))

    fed(500)
    cache.checkpoint(is_prefix=True)
    starts, positions = [], []
    while cache.offset < 8000:
        starts.append(cache.offset)
        cache.begin_turn()
        fed(turn // 2)
        cache.checkpoint()
        fed(turn - turn // 2)
        back = [(cache.offset - at, at - cache.rewind_target(at)) for at in (*starts[-5:], starts[-1] + turn // 2)]
        assert all(again <= distance / 2 + 128 for distance, again in back), (cache.offset, back)
        positions = [c.position for c in cache.checkpoints if c.position != cache.offset]
        assert len(positions) <= MIN_CHECKPOINTS
        assert positions[0] == 580
    assert len(positions) == MIN_CHECKPOINTS


def test_memory_does_not_grow_with_the_chat() -> None:
    """It is what the budget counts from the fourth turn on."""
    model = tiny("qwen3_next")
    state = sum(state_nbytes(model, plan_cache(model, CONFIG)))
    cache = cache_of(model, replace(CONFIG, window=1024, checkpoint_bytes=6 * state))
    used = []
    for turn in range(12):
        cache.begin_turn()
        feed(model, cache, random_ids(20, seed=turn))
        cache.checkpoint()
        feed(model, cache, random_ids(10, seed=100 + turn))
        used.append(cache.nbytes)
    assert {*used[3:]} == {Budget(model, 0).cache_bytes(cache.plan)}
    assert used == sorted(used)


def test_a_budget_in_bytes_bounds_the_checkpoints() -> None:
    model = tiny("qwen3_next")
    state = sum(state_nbytes(model, plan_cache(model, CONFIG)))
    for most, config in ((2, replace(CONFIG, checkpoint_bytes=2 * state)), (1, replace(CONFIG, checkpoint_bytes=0))):
        cache = cache_of(model, config)
        for seed in range(6):
            feed(model, cache, random_ids(10, seed=seed))
            cache.checkpoint()
        feed(model, cache, [1])
        assert len(list(cache.checkpoints)) == most
        assert Budget(model, 0).checkpoint_bytes(cache.plan) == most * state


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
    state = sum(state_nbytes(model, plan))
    states = state * (max_checkpoints(plan.nbytes, state, None) + 1)
    prefill = Budget(model, limit=1).prefill_bytes(plan, 128)
    assert Budget(model, limit=plan.nbytes + states + prefill).fits(plan, used=0)
    assert not Budget(model, limit=plan.nbytes + states + prefill - 1).fits(plan, used=0)
