"""ModelRunner: what it yields equals mlx-lm's loop, and the token log always equals what the cache holds."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import make_cache, plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from tests.reference import FullRecomputation, largest, logits_of, random_ids, tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=30)
ENDLESS = CacheConfig(window=256, block=64, sinks=4)


def cache_of(model: Any, config: CacheConfig | None = None) -> PromptCache:
    return PromptCache(plan_cache(model, config or CacheConfig(window=64, block=16)), model)


def run(runner: ModelRunner, cache: PromptCache, ids: list[int], params: SamplingParams) -> list[int]:
    for _ in runner.prefill(cache, ids[:-1]):
        pass
    return list(runner.decode(cache, ids[-1], params, ids[:-1]))


def test_greedy_tokens_equal_mlx_lms() -> None:
    model, ids = tiny_llama(), random_ids(20)
    expected = [t for t, _ in generate_step(mx.array(ids), model, max_tokens=30)]
    assert run(ModelRunner(model, chunk=7), cache_of(model), ids, GREEDY) == expected


def test_sampled_tokens_equal_mlx_lms_with_the_same_seed() -> None:
    model, ids = tiny_llama(), random_ids(20)
    params = SamplingParams(temperature=0.8, top_p=0.9, top_k=20, max_tokens=30, repetition_penalty=1.3, seed=5)
    mx.random.seed(5)
    expected = [
        t
        for t, _ in generate_step(
            mx.array(ids),
            model,
            max_tokens=30,
            sampler=make_sampler(temp=0.8, top_p=0.9, top_k=20),
            logits_processors=params.make_logits_processors(),
        )
    ]
    assert run(ModelRunner(model), cache_of(model), ids, params) == expected


@pytest.mark.parametrize("taken", [1, 7, 30])
def test_the_log_equals_the_cache_however_decoding_ends(taken: int) -> None:
    model, ids = tiny_llama(), random_ids(20)
    runner, cache = ModelRunner(model), cache_of(model)
    for _ in runner.prefill(cache, ids[:-1]):
        pass
    tokens = runner.decode(cache, ids[-1], GREEDY)
    got = [next(tokens) for _ in range(taken)]
    tokens.close()
    assert cache.layers[0].offset == cache.offset
    fed = taken if taken < GREEDY.max_tokens else taken - 1  # the last one allowed is never fed
    assert cache.tokens == [*ids, *got[:fed]]
    straight = cache_of(model)
    rest = random_ids(10, seed=4)
    for _ in runner.prefill(straight, cache.tokens):
        pass
    assert largest(runner.score(cache, rest) - runner.score(straight, rest)) < 1e-5


def test_a_cancelled_prefill_keeps_what_was_read() -> None:
    model, ids = tiny_llama(), random_ids(60)
    runner, cache = ModelRunner(model, chunk=8), cache_of(model)
    done = list(runner.prefill(cache, ids, cancelled=lambda: cache.offset >= 24))
    assert done == [8, 16, 24]
    assert cache.tokens == ids[:24]


def test_prefill_is_cut_at_block_boundaries_once_the_window_is_full() -> None:
    model = tiny_llama()
    cache = cache_of(model, CacheConfig(window=64, block=16, sinks=4))
    done = list(ModelRunner(model, chunk=512).prefill(cache, random_ids(120)))
    assert done == [68, 84, 100, 116, 120]


# -- real weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(stories_path: Path) -> Any:
    from mlx_lm.utils import load_model

    return load_model(stories_path)[0]


@pytest.fixture(scope="module")
def stream(stories_path: Path) -> list[int]:
    return json.loads((stories_path.parent / "stories_text.json").read_text())


def perplexity(scores: mx.array, start: int) -> float:
    return math.exp(-mx.mean(scores[start - 1 :]).item())  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_endless_text_stays_as_good_as_a_pure_window(stories: Any, stream: list[int]) -> None:
    """Tokens 2k..4k at a trained length of 512: pinned sinks must not make a window worse (StreamingLLM)."""
    pure, kept = (
        ModelRunner(stories).score(cache_of(stories, CacheConfig(window=256, block=64, sinks=sinks)), stream)
        for sinks in (0, 4)
    )
    assert perplexity(kept, 2048) <= 1.02 * perplexity(pure, 2048)


@pytest.mark.slow
def test_any_chunk_scores_exactly_the_same(stories: Any, stream: list[int]) -> None:
    """Through every row of the ring twice and more."""
    one, some, many = (ModelRunner(stories, n).score(cache_of(stories, ENDLESS), stream[:700]) for n in (1, 40, 512))
    assert largest(one - some) == 0.0
    assert largest(one - many) == 0.0


@pytest.mark.slow
def test_mlx_lms_own_prefill_sees_the_same(stories: Any, stream: list[int]) -> None:
    """generate_step feeds 599 tokens in one call, two windows: the next logits equal full recomputation."""
    prompt = stream[:600]
    ours = make_cache(stories, ENDLESS)
    _, logprobs = next(generate_step(mx.array(prompt), stories, max_tokens=1, prompt_cache=ours))
    slow = [FullRecomputation(4, 256, 64, layer.self_attn.rope) for layer in stories.layers]
    logits = logits_of(stories, slow, prompt, [1])[-1]
    expected = logits - mx.logsumexp(logits)
    assert largest(logprobs - expected) < 1e-5 * largest(expected)


@pytest.mark.slow
def test_memory_stays_constant_over_4000_tokens() -> None:
    """Ten times through the ring; four bytes a token that stayed would be noticed."""
    model = tiny_llama(layers=1, hidden=16, heads=2, kv_heads=1, vocab=16)
    cache = cache_of(model, CacheConfig(window=256))
    runner, params = ModelRunner(model), SamplingParams(temperature=0.0, max_tokens=4000)
    sizes, active = set(), []
    for n, _ in enumerate(runner.decode(cache, 1, params)):
        if n % 400 == 399:
            sizes.add(cache.nbytes)
            active.append(mx.get_active_memory())
    assert sizes == {cache.plan.nbytes}
    assert cache.offset == 4000
    assert max(active[1:]) <= active[0] + cache.plan.nbytes // 2


def test_a_reply_that_has_ended_holds_no_cache() -> None:
    """Its memory is free at once, not when Python next collects cycles."""
    model = tiny_llama()
    runner = ModelRunner(model)
    gc.disable()
    try:
        for most in (5, 1):
            cache = cache_of(model)
            tokens = runner.decode(cache, 1, SamplingParams(temperature=0.0, max_tokens=5))
            for _ in range(most):
                next(tokens)
            tokens.close()
            held = weakref.ref(cache)
            del cache, tokens
            assert held() is None
    finally:
        gc.enable()
