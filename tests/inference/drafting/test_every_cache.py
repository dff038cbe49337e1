"""Drafting on every kind of cache: the same tokens as without, and the cache holds what its log says, wherever it ends.

The drafts are a known text with mistakes, so that every call accepts some tokens and takes others back.
MLXKV_THOROUGH=1 takes every architecture, not one of each kind.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.traits import has_equal_calls
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from tests.cache.architecture_checks import largest_apart, planned, run, token_ids
from tests.cache.architectures import ARCHITECTURES, CHECKED
from tests.inference.drafting.helpers import OpenGate, Oracle, decode
from tests.reference import random_ids, tiny_llama
from tests.thorough import part

TOKENS = 60  # through a block boundary, past the window of 64 and 4 pinned tokens
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS)
SAMPLED = SamplingParams(temperature=0.8, top_k=8, seed=3, repetition_penalty=1.2, max_tokens=TOKENS)
KINDS = ["llama", "gemma3_text", "falcon_h1", "mamba2", "qwen3_next", "llama4", "deepseek_v32", "afm7", "gemma3n"]


def check_equal(name: str, params: SamplingParams, plan: CachePlan | None = None) -> None:
    model = ARCHITECTURES[name].build()
    plan, prompt = plan or planned(model), token_ids(50)
    plain, drafted = PromptCache(plan, model), PromptCache(plan, model)
    expected = decode(model, plain, prompt, params)
    counts = DecodeCounts()
    drafting = Drafting(OpenGate(), Oracle([*prompt, *expected], 64))
    assert decode(model, drafted, prompt, params, drafting, counts) == expected
    if not has_equal_calls(model):
        assert name in ("phi3small", "plamo3")
        assert counts.drafted == 0
        return
    assert 0 < counts.accepted < counts.drafted
    assert counts.steps < TOKENS or drafted.checkpoints.is_needed
    assert drafted.tokens == plain.tokens
    drafted.check_log()
    rest = token_ids(40)[20:]
    assert largest_apart(run(model, drafted, rest), run(model, plain, rest)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_every_architecture(name: str) -> None:
    check_equal(name, GREEDY)


@pytest.mark.slow
@pytest.mark.parametrize("name", part(KINDS, 3))
def test_sampled_with_a_penalty(name: str) -> None:
    check_equal(name, SAMPLED)


@pytest.mark.slow
@pytest.mark.parametrize("name", part(KINDS, 3))
def test_closing_at_any_token_leaves_the_log_equal_to_the_cache(name: str) -> None:
    model = ARCHITECTURES[name].build()
    plan, prompt = planned(model), token_ids(50)
    expected = decode(model, PromptCache(plan, model), prompt, GREEDY)
    rest, runner = token_ids(40)[20:], ModelRunner(model)
    runner.drafting = Drafting(OpenGate(), Oracle([*prompt, *expected], 64))
    for taken in random.Random(1).sample(range(1, TOKENS), 5):
        cache, straight = PromptCache(plan, model), PromptCache(plan, model)
        for each in (cache, straight):
            for _ in runner.prefill(each, prompt[:-1]):
                pass
        tokens = runner.decode(cache, prompt[-1], GREEDY, prompt[:-1])
        got = [next(tokens) for _ in range(taken)]
        tokens.close()
        assert cache.tokens == [*prompt, *got]
        cache.check_log()
        for token in cache.tokens[straight.offset :]:  # as decoding without drafts feeds them
            run(model, straight, [token])
        assert largest_apart(run(model, cache, rest), run(model, straight, rest)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    CacheConfig(window=64, block=16),
    CacheConfig(window=64, block=16, slack=0, sinks=4),
    CacheConfig(window=32, block=8, sinks=4, positions="absolute"),
])  # fmt: skip
def test_a_ring_past_its_window(config: CacheConfig) -> None:
    from mlxkv.cache.planning.plan import plan_cache

    model, prompt = tiny_llama(), random_ids(50)
    plan = plan_cache(model, config)
    for params in (GREEDY, SAMPLED):
        params = replace(params, max_tokens=120)
        expected = decode(model, PromptCache(plan, model), prompt, params)
        counts = DecodeCounts()
        drafting = Drafting(OpenGate(), Oracle([*prompt, *expected], 64))
        assert decode(model, PromptCache(plan, model), prompt, params, drafting, counts) == expected
        assert counts.accepted > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba2", "qwen3_next"])
def test_checkpoints_of_recurrent_layers_stay_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those taken while decoding are of tokens that count; going back to each equals feeding its tokens."""
    monkeypatch.setattr("mlxkv.cache.recurrent.checkpoints.CHECKPOINT_INTERVAL", 5)
    model = ARCHITECTURES[name].build()
    plan, prompt = planned(model), token_ids(50)
    expected = decode(model, PromptCache(plan, model), prompt, GREEDY)
    runner, cache = ModelRunner(model), PromptCache(plan, model)
    runner.drafting = Drafting(OpenGate(), Oracle([*prompt, *expected], 64))
    for _ in runner.prefill(cache, prompt[:-1]):
        pass
    tokens = runner.decode(cache, prompt[-1], GREEDY, prompt[:-1])
    got = [next(tokens) for _ in range(33)]
    tokens.close()
    positions = [c.position for c in cache.checkpoints]
    assert len([p for p in positions if p > len(prompt)]) >= 3
    assert max(positions) <= cache.offset == len(prompt) + len(got)
    rest = token_ids(40)[20:]
    for position in reversed([p for p in positions if p >= cache.offset - cache.rewindable]):
        assert cache.rewind(position) == position
        straight = PromptCache(plan, model)
        run(model, straight, cache.tokens)
        assert largest_apart(run(model, cache.fork(), rest), run(model, straight, rest)) < 1e-3
