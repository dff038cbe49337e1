"""Rows of a batch: each reply has the tokens that its prompt alone has, over all kinds of caches.

MLXKV_THOROUGH=1 takes every architecture, not one of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.events import FinishReason
from mlxkv.inference import batch as batch_module
from mlxkv.inference.batch import Batch, RowCache, beginning, can_begin, rows_of
from mlxkv.inference.batch_check import model_error, refusal
from mlxkv.inference.sampling import SamplingParams
from tests.cache.architectures import ARCHITECTURES, CHECKED
from tests.hybrids import tiny
from tests.inference.batches import CONFIG, GREEDY, TOKENIZER, alone, cache_of, together
from tests.reference import random_ids, tiny_llama

SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 20}
KINDS: dict[str, Any] = {
    "full": tiny_llama,
    "sliding": lambda: tiny_llama(**SLIDING),
    "recurrent": lambda: tiny("mamba2"),
    "hybrid": lambda: tiny("falcon_h1"),
    "convolutions": lambda: tiny("lfm2"),
}
PROMPTS = [random_ids(n, seed=n) for n in (9, 60, 23, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_replies_are_those_of_each_prompt_alone(kind: str) -> None:
    model = KINDS[kind]()
    replies = together(model, PROMPTS)
    assert all(reply.stats.batched and reply.stats.not_batched_why is None for reply in replies)
    assert [list(reply.tokens) for reply in replies] == [alone(model, ids) for ids in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_continue_a_cache_that_stays_as_it_is(kind: str) -> None:
    model = KINDS[kind]()
    cache = cache_of(model, ids=random_ids(70, seed=7))
    before = cache.tokens
    prompts = [[*before, *ids] for ids in PROMPTS]
    shorter = [*before[:30], 5, 6, 7]  # differs from the cache
    *replies, other = together(model, [*prompts, shorter], cache=cache)
    assert cache.tokens == before
    assert [list(reply.tokens) for reply in replies] == [alone(model, ids, cache=cache) for ids in prompts]
    assert {reply.stats.cached_tokens for reply in replies} == {70}
    assert list(other.tokens) == alone(model, shorter)
    assert alone(model, prompts[0], cache=cache) == alone(model, prompts[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_every_architecture_is_batched_exactly_or_refused(name: str) -> None:
    model = ARCHITECTURES[name].build()
    try:
        cache = cache_of(model)
    except ValueError:  # its own caches have no bound
        cache = cache_of(model, CacheConfig())
    prompts = [random_ids(n, seed=n) for n in (40, 2, 23)]
    params = replace(GREEDY, max_tokens=12)
    replies = together(model, prompts, params, cache=cache)
    assert [list(reply.tokens) for reply in replies] == [alone(model, ids, params, cache) for ids in prompts]
    assert all(reply.stats.batched is (model_error(model) is None) or reply.stats.not_batched_why for reply in replies)


def test_quantized_rows_take_turns_and_say_why() -> None:
    model = tiny_llama(hidden=128)
    cache = cache_of(model, CacheConfig(window=256, bits=8))
    replies = together(model, PROMPTS[:2], cache=cache)
    assert [list(reply.tokens) for reply in replies] == [alone(model, ids, cache=cache) for ids in PROMPTS[:2]]
    assert {reply.stats.not_batched_why for reply in replies} == {
        "its rows are quantized, and mlx-lm batches none of these"
    }


def test_a_prompt_that_may_exceed_the_window_takes_turns_beside_the_batch() -> None:
    model = tiny_llama()
    long = random_ids(400, seed=3)
    replies = together(model, [*PROMPTS[:2], long])
    assert [reply.stats.batched for reply in replies] == [True, True, False]
    assert list(replies[2].tokens) == alone(model, long)
    assert replies[2].stats.not_batched_why == (
        "its prompt of 400 tokens and `max_tokens` of 24 exceed the window of 260"
    )
    assert replies[2].stats.evicted_tokens > 0


def test_a_wrapped_prompt_cache_takes_turns() -> None:
    model = tiny_llama()
    cache = cache_of(model, ids=random_ids(400, seed=5))
    prompts = [[*cache.tokens, 7, 8], [*cache.tokens, 9]]
    replies = together(model, prompts, cache=cache)
    assert not any(reply.stats.batched for reply in replies)
    assert [list(reply.tokens) for reply in replies] == [alone(model, ids, cache=cache) for ids in prompts]


SAMPLED = [
    SamplingParams(temperature=0.8, seed=5, max_tokens=20),
    SamplingParams(temperature=1.3, seed=2**63 + 9, top_p=0.9, max_tokens=9),
    SamplingParams(temperature=1.0, seed=5, top_k=7, min_p=0.05, max_tokens=20),
    SamplingParams(temperature=1.0, seed=1, repetition_penalty=1.3, presence_penalty=0.5, max_tokens=20),
    SamplingParams(temperature=0.0, frequency_penalty=0.7, repetition_penalty=1.1, max_tokens=15),
    SamplingParams(temperature=1e-4, seed=3, max_tokens=6),
]


def test_each_reply_has_its_own_sampling_and_its_own_seed() -> None:
    model = tiny_llama()
    prompts = [random_ids(5 + 7 * i, seed=i) for i in range(len(SAMPLED))]
    replies = together(model, prompts, SAMPLED)
    assert all(reply.stats.batched for reply in replies)
    assert [list(reply.tokens) for reply in replies] == [
        alone(model, ids, params) for ids, params in zip(prompts, SAMPLED, strict=True)
    ]


def test_sampled_requests_that_take_turns_do_not_share_random_numbers() -> None:
    model = tiny_llama(hidden=128)
    cache = cache_of(model, CacheConfig(window=256, bits=8))
    replies = together(model, PROMPTS, SAMPLED[:4], cache=cache)
    assert not any(reply.stats.batched for reply in replies)
    assert [list(reply.tokens) for reply in replies] == [
        alone(model, ids, params, cache) for ids, params in zip(PROMPTS, SAMPLED[:4], strict=True)
    ]


def test_a_seed_of_one_prompt_leaves_the_threads_random_numbers_alone() -> None:
    model = tiny_llama()
    free = SamplingParams(temperature=1.0, max_tokens=8)
    found = []
    for seed in (1, 2):
        mx.random.seed(77)
        found.append(together(model, PROMPTS[:2], [replace(free, seed=seed), free]))
    assert found[0][1].tokens == found[1][1].tokens
    assert found[0][0].tokens != found[1][0].tokens


def test_replies_end_one_by_one_and_others_take_their_places() -> None:
    """Of 12 prompts three run at once, with lengths of 1 to 23 tokens, and some end with an end-of-text token."""
    model = tiny_llama()
    prompts = [random_ids(3 + i, seed=40 + i) for i in range(12)]
    params = [SamplingParams(temperature=1.5, seed=i, max_tokens=1 + 2 * i) for i in range(12)]
    replies = together(model, prompts, params, max_rows=3)
    assert [list(reply.tokens) for reply in replies] == [
        alone(model, ids, own) for ids, own in zip(prompts, params, strict=True)
    ]
    assert {reply.reason for reply in replies} == {FinishReason.LENGTH, FinishReason.STOP}


def test_the_last_token_of_a_reply_is_not_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    batch, sizes = Batch(model, ()), []
    inner = batch._chosen
    monkeypatch.setattr(batch, "_chosen", lambda logits, inputs: (sizes.append(len(logits)), inner(logits, inputs))[1])
    rows = []
    for ids, most in ((PROMPTS[0], 2), (PROMPTS[2], 4)):
        cache = RowCache(plan_cache(model, CONFIG), model)
        model(mx.array([ids[:-1]]), cache=cache.layers)
        rows.append(batch.add(cache, ids[-1], replace(GREEDY, max_tokens=most), ids[:-1]))
    taken = [[batch.take(row) for _ in range(5)] for row in rows]
    assert [len([token for token in tokens if token is not None]) for tokens in taken] == [2, 4]
    assert sizes == [2, 2, 1, 1]


def test_an_error_in_a_step_ends_all_rows() -> None:
    model = tiny_llama()
    batch = Batch(model, ())
    cache = RowCache(plan_cache(model, CONFIG), model)
    model(mx.array([PROMPTS[0][:-1]]), cache=cache.layers)
    row = batch.add(cache, PROMPTS[0][-1], GREEDY, ())
    batch.take(row)
    batch._model = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        batch.take(row)
    assert batch.take(row) is None


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_the_beginning_of_a_prompts_rows_are_the_rows_of_a_shorter_prompt(kind: str) -> None:
    model = KINDS[kind]()
    ids = random_ids(18, seed=2)
    whole, short = cache_of(model, ids=ids), cache_of(model, ids=ids[:11])
    rows = rows_of(whole, model, [*ids, 1])
    assert can_begin(rows.layers)
    for a, b in zip(beginning(rows.layers, 11), rows_of(short, model, [*ids[:11], 1]).layers, strict=True):
        assert mx.allclose(a.keys, b.keys[..., :11, :], atol=1e-5)
        assert a.offset == b.offset == 11
    assert not can_begin(rows_of(cache_of(model, ids=PROMPTS[1]), model, [*PROMPTS[1], 1]).layers) or kind == "full"


def test_recurrent_rows_have_no_beginning() -> None:
    model = tiny("mamba2")
    cache = cache_of(model, ids=PROMPTS[0])
    assert not can_begin(rows_of(cache, model, [*PROMPTS[0], 1]).layers)


def test_refusals() -> None:
    model = tiny_llama(hidden=128)
    plan = plan_cache(model, CONFIG)
    layers = plan.make(model)
    assert refusal(plan, layers, 200, 60) is None
    assert refusal(plan, layers, 200, 61) is not None
    assert refusal(plan, layers, 2, 2, "the model") == "the model"
    eight = plan_cache(model, CacheConfig(bits=8))
    assert "quantized" in (refusal(eight, eight.make(model), 2, 2) or "")
    chunked = tiny("llama4")
    plan = plan_cache(chunked, CacheConfig())
    assert "ChunkedKVCache" in (refusal(plan, plan.make(chunked), 2, 2) or "")


@pytest.mark.parametrize(
    ("name", "why"),
    [("afm7", "other logits"), ("phi3small", "cannot batch this model"), ("minimax_m3_vl", "blocks"),
     ("plamo3", "window larger"), ("llama", None)],
)  # fmt: skip
def test_a_trial_finds_models_that_padding_would_change(name: str, why: str | None) -> None:
    found = model_error(ARCHITECTURES[name].build())
    assert found is None if why is None else why in (found or "")


def test_the_trial_runs_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    assert model_error(model) is None
    monkeypatch.setattr(batch_module, "merge", None)
    monkeypatch.setattr("mlxkv.inference.batch_check._tried", lambda _: "again")
    assert model_error(model) is None


def prompts_of(replies: Sequence[Any]) -> list[int]:
    return [reply.stats.prompt_tokens for reply in replies]


def test_figures_of_a_row_are_those_of_its_prompt() -> None:
    model = tiny_llama()
    replies = together(model, PROMPTS)
    assert prompts_of(replies) == [len(ids) for ids in PROMPTS]
    for reply, ids in zip(replies, PROMPTS, strict=True):
        assert reply.stats.generated_tokens == len(reply.tokens) <= 24
        assert reply.stats.cache_tokens == len(ids) + len(reply.tokens) - 1
        assert reply.stats.cache_window == 260
        assert reply.stats.ttft_s <= reply.stats.total_s
        assert reply.stats.cache_bytes > 0
    assert TOKENIZER.eos_token_ids
