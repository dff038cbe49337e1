"""Real layer shapes of this year's families: mlx-lm's tokens, bit-identical after going back, forking and resuming.

Like test_architectures.py, in the shapes that real models have (states of 2 MB a layer, 256 numbers a head), which the
tiny ones there do not. Few tokens, since each takes about 40 ms of such a state on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from bench.shapes import DOCS, make_row, without_weights, written_bytes
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan, plan_cache
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.recurrent.state import keeps_state
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.prompts.kv_file import read_prompt_file, write_prompt_file
from tests.cache.architecture_checks import (
    check_bounded,
    difference,
    feed,
    largest_apart,
    reference_caches,
    run,
    token_ids,
)
from tests.cache.architectures import ARCHITECTURES
from tests.cache.real_shapes import REAL_SHAPES, RealShape

SMALL = CacheConfig(window=8, sinks=2, block=4, slack=4, positions="absolute", group_size=32)  # evicts from token 11 on
CALLS = (8, 4, 1, 1, 2)
TURN = 13  # tokens, of which some are evicted


@pytest.fixture(scope="module", params=REAL_SHAPES.values(), ids=list(REAL_SHAPES))
def shape(request: pytest.FixtureRequest) -> RealShape:
    return request.param


@pytest.fixture(scope="module")
def model(shape: RealShape) -> Any:
    """In float32, so that a sum in another order changes no token."""
    return shape.build()


@pytest.fixture(scope="module")
def model_16(shape: RealShape, model: Any) -> Any:
    """In the dtype of real weights, where MLX's CPU backend can: states stay in float32 then."""
    if shape.has_experts:
        return model
    _, half = without_weights(shape.config())
    half.update(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters()))
    mx.eval(half.parameters())
    return half


def test_it_keeps_what_the_real_model_keeps(shape: RealShape) -> None:
    """Bytes of rows and of states per layer, which the table in docs/models.md adds up."""

    def kept(config: dict[str, Any]) -> tuple[set[int], set[int]]:
        _, model = without_weights(config)
        plan = plan_cache(model, SMALL, is_loaded=False)
        return {leaf.row_bytes for leaf in plan.leaves if leaf.geometry}, {*state_nbytes(model, plan)}

    assert kept(shape.config()) == kept(shape.real.config())


@pytest.mark.slow
def test_greedy_tokens_are_those_of_mlx_lm(shape: RealShape, model: Any) -> None:
    """A ring of the model's own sliding window rotates, and no other."""
    ids = mx.array(token_ids(shape.window + 6))
    plan = plan_cache(model, CacheConfig(window=2 * ids.size + 64))
    ours, theirs = (
        list(generate_step(ids, model, max_tokens=3, prompt_cache=cache))
        for cache in (plan.make(model), make_prompt_cache(model))
    )
    assert [token for token, _ in ours] == [token for token, _ in theirs]
    for (_, got), (_, expected) in zip(ours, theirs, strict=True):
        assert difference(got, expected) < 1e-5


@pytest.mark.slow
def test_past_the_window_it_attends_to_what_the_ring_holds(model: Any) -> None:
    ids, plan = token_ids(sum(CALLS)), plan_cache(model, SMALL)
    caches = plan.make(model)
    expected = feed(model, reference_caches(model, plan), ids, (len(ids),))
    got = feed(model, caches, ids, CALLS, lambda: check_bounded(plan, caches))
    assert difference(got, expected) < 1e-5
    states = [cache.nbytes for leaf, cache in zip(plan.leaves, leaves(caches), strict=True) if keeps_state(leaf)]
    assert states == state_nbytes(model, plan)
    eight = feed(model, plan_cache(model, CacheConfig(**{**vars(SMALL), "bits": 8})).make(model), ids[:12], CALLS[:2])
    assert 0 < difference(eight, got[:12]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, (8, 4)])
def test_it_goes_on_bit_by_bit(model_16: Any, bits: tuple[int, int] | None, tmp_path: Path) -> None:
    """After a rewind, in a fork and after a resume, each past an eviction."""
    model, plan = model_16, plan_cache(model_16, CacheConfig(**{**vars(SMALL), "bits": bits}))
    ids, more = token_ids(TURN), token_ids(TURN + 6)[-6:]
    cache, resumed = PromptCache(plan, model), PromptCache(plan, model)
    run(model, cache, ids, chunk=7)
    cache.checkpoint()
    fork = cache.fork()
    run(model, cache, more[:3])
    expected = run(model, fork, more[3:])
    assert cache.rewind(TURN) == TURN
    identity = ModelIdentity.of("real", {"config.hidden": "256"})
    write_prompt_file(tmp_path / "cache.kv", cache, identity)
    assert read_prompt_file(tmp_path / "cache.kv", resumed, identity).tokens == TURN
    for again in (cache, resumed):
        assert largest_apart(run(model, again, more[3:]), expected) == 0.0


@pytest.mark.parametrize("module", ["gemma4_text", "qwen3_5"])
def test_a_turn_writes_the_rows_that_the_rings_still_hold(module: str) -> None:
    model = ARCHITECTURES[module].build()
    plan = plan_cache(model, SMALL)
    cache, state = PromptCache(plan, model), sum(state_nbytes(model, plan))
    run(model, cache, token_ids(40))
    rows = sum(
        leaf.row_bytes * (min(b, 40) - max(a, 22))
        for group in cache.groups
        if group.name != "state"
        for a, b in group.held()
        if b > 22
        for leaf in _leaves_of(plan, group.name)
    )
    assert written_bytes(plan, state, 18, start=22) == rows
    assert written_bytes(plan, state, 1024, start=22) - written_bytes(plan, 0, 1024, start=22) == state


def _leaves_of(plan: CachePlan, group: str) -> list[Any]:
    return [
        leaf
        for leaf in plan.leaves
        if leaf.geometry and group == ("full" if leaf.native_window is None else f"window{leaf.native_window}")
    ]


@pytest.mark.parametrize("shape", [REAL_SHAPES["qwen3_5"], REAL_SHAPES["gemma4, shared layers"]])
def test_the_row_in_the_documentation_is_what_the_command_prints(shape: RealShape) -> None:
    assert str(make_row(shape.real)) in DOCS.read_text().splitlines()
