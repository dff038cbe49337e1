"""The decode loop with drafts: limits, ends, errors, the order of calls, random keys by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.drafting.gate import DraftGate
from mlxkv.inference.draws import Draws
from mlxkv.inference.generation import Generation
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams, random_state
from tests.cache.architectures import ARCHITECTURES
from tests.inference.drafting.helpers import OpenGate, Oracle, decode
from tests.reference import random_ids, tiny_llama
from tests.tokenizers import tiny_tokenizer

MODEL = tiny_llama()
PROMPT = random_ids(40)
SAMPLED = SamplingParams(temperature=0.9, top_k=12, max_tokens=40, seed=7, presence_penalty=0.5)


def cache_of(model: Any = MODEL) -> PromptCache:
    return PromptCache(plan_cache(model, CacheConfig(window=64, block=16, sinks=4)), model)


class Calls:
    """A model that notes the number of tokens of each call, and may raise in one."""

    def __init__(self, error_at: int = -1) -> None:
        self.sizes: list[int] = []
        self.error_at = error_at

    def __call__(self, ids: mx.array, cache: Any) -> mx.array:
        self.sizes.append(ids.shape[1])
        if len(self.sizes) == self.error_at:
            raise ValueError("no")
        return MODEL(ids, cache=cache)


def oracle(params: SamplingParams) -> Drafting:
    return Drafting(OpenGate(), Oracle([*PROMPT, *decode(MODEL, cache_of(), PROMPT, params)], 64))


@pytest.mark.parametrize("most", range(1, 12))
def test_the_last_token_allowed_is_never_fed(most: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=most)
    cache = cache_of()
    got = decode(MODEL, cache, PROMPT, params, oracle(params))
    assert len(got) == most
    assert cache.tokens == [*PROMPT, *got[:-1]]


@pytest.mark.parametrize("layers", [
    {}, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24},
])  # fmt: skip
def test_no_call_crosses_a_block_boundary_of_any_ring(layers: dict[str, Any]) -> None:
    """A ring takes such a call apart, and could not take it back."""
    params, model, calls = replace(SAMPLED, max_tokens=120), tiny_llama(**layers), []
    expected = decode(model, cache_of(model), PROMPT, params)
    cache, drafting = cache_of(model), Drafting(OpenGate(), Oracle([*PROMPT, *expected], 64))

    def watched(ids: mx.array, cache: Any) -> mx.array:
        boundary = min(layer.geometry.tokens_to_boundary(layer.offset) for layer in cache)
        calls.append((cache[0].offset, ids.shape[1], boundary))
        return model(ids, cache=cache)

    assert decode(watched, cache, PROMPT, params, drafting) == expected
    drafted = [each for each in calls if each[0] >= len(PROMPT) and each[1] > 1]
    assert len(drafted) > 10
    assert all(size <= boundary for _, size, boundary in drafted)


def test_closing_at_any_token_takes_back_what_was_not_yielded() -> None:
    params = replace(SAMPLED, max_tokens=30)
    drafting, expected = oracle(params), decode(MODEL, cache_of(), PROMPT, params)
    filled, runner = cache_of(), ModelRunner(MODEL)
    for _ in runner.prefill(filled, PROMPT[:-1]):
        pass
    for taken in range(1, 30):
        cache, runner.drafting = filled.fork(), drafting
        tokens = runner.decode(cache, PROMPT[-1], params, PROMPT[:-1])
        got = [next(tokens) for _ in range(taken)]
        tokens.close()
        assert cache.tokens == [*PROMPT, *got] == [*PROMPT, *expected[:taken]]
        cache.check_log()


def test_learned_positions_end_a_reply_where_they_do_without() -> None:
    architecture = ARCHITECTURES["gpt2"]
    model = architecture.build(architecture.config() | {"n_positions": 96, "n_ctx": 96})
    params = replace(SAMPLED, max_tokens=200)
    expected = decode(model, cache_of(model), PROMPT, params)
    assert len(expected) == 96 - len(PROMPT) + 1
    cache = cache_of(model)
    assert (
        decode(model, cache, PROMPT, params, Drafting(OpenGate(), Oracle([*PROMPT, *expected, *expected], 64)))
        == expected
    )
    assert cache.offset == 96


@pytest.mark.parametrize("keeps_reply", [True, False])
def test_a_stop_string_ends_the_reply_where_it_does_without(keeps_reply: bool) -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token_ids = set()
    whole = decode(MODEL, cache_of(), PROMPT, SAMPLED)
    stop = tokenizer.decode(whole[17:20])
    found = []
    for drafting in (None, Drafting(OpenGate(), Oracle([*PROMPT, *whole], 64))):
        runner, cache = ModelRunner(MODEL), cache_of()
        runner.drafting = drafting
        params = replace(SAMPLED, stop=(stop,))
        run = Generation(runner, tokenizer, cache, PROMPT, params, keeps_reply=keeps_reply)
        list(run.events())
        cache.check_log()
        found.append((run.text, run.reason, run.generated, cache.tokens))
    assert found[0] == found[1]
    assert found[0][1] == "stop_string"


def test_without_a_draft_each_call_is_made_before_the_token_before_is_yielded() -> None:
    class Shut(DraftGate):
        def length(self, match: int, most: int) -> int:
            return 0

    made = []
    for drafting in (None, Drafting(Shut())):
        model, cache = Calls(), cache_of()
        runner = ModelRunner(model)  # type: ignore[arg-type]
        runner.drafting = drafting
        tokens = runner.decode(cache, 1, SamplingParams(temperature=0.0, max_tokens=10))
        made.append([len(model.sizes) for _ in tokens])
    assert made[0] == made[1] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10]


def test_a_device_may_wait_for_each_token() -> None:
    runner, expected = ModelRunner(MODEL), decode(MODEL, cache_of(), PROMPT, SAMPLED)
    runner.in_place(cache_of()).one_step_ahead = False
    runner.drafting = oracle(SAMPLED)
    cache = cache_of()
    for _ in runner.prefill(cache, PROMPT[:-1]):
        pass
    assert list(runner.decode(cache, PROMPT[-1], SAMPLED, PROMPT[:-1])) == expected


def test_ends_are_not_drafted() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40)
    expected = decode(MODEL, cache_of(), PROMPT, params)
    end = expected[20]
    first = expected.index(end)
    runner, cache, counts = ModelRunner(MODEL), cache_of(), DecodeCounts()
    runner.drafting = Drafting(OpenGate(), Oracle([*PROMPT, *expected], 64))
    for _ in runner.prefill(cache, PROMPT[:-1]):
        pass
    tokens = runner.decode(cache, PROMPT[-1], params, PROMPT[:-1], ends=[end], counts=counts)
    for token in tokens:
        if token == end:
            break
    assert cache.tokens == [*PROMPT, *expected[: first + 1]]  # before anything is taken back
    tokens.close()
    assert cache.tokens == [*PROMPT, *expected[: first + 1]]


@pytest.mark.parametrize("call", range(2, 9))
def test_after_an_error_the_log_equals_the_cache(call: int) -> None:
    params = replace(SAMPLED, max_tokens=60)
    drafting, cache = oracle(params), cache_of()
    with pytest.raises(ValueError, match="no"):
        decode(Calls(error_at=call + 1), cache, PROMPT, params, drafting)
    cache.check_log()
    expected = decode(MODEL, cache_of(), PROMPT, params)
    assert cache.tokens == [*PROMPT, *expected][: cache.offset]
    cache.rewind(len(PROMPT) - 1)
    assert decode(MODEL, cache, PROMPT, params) == expected


# -- random keys ------------------------------------------------------------------------------------------------------


def positions(params: SamplingParams, sizes: Sequence[int], before: int = 0) -> list[int]:
    """Tokens drawn from fixed logits, in calls of these sizes of which all but the last token count."""
    logits = mx.random.normal((64, 50), key=mx.random.key(1))
    draws, out, at = Draws(params, [], before), [], before
    for size in sizes:
        if size == 1:
            out.append(int(draws.next(logits[at : at + 1], mx.array([0])).item()))  # type: ignore[arg-type]
        else:
            found: Any = draws.all(logits[at : at + size], [0] * size).tolist()
            draws.keep([0] * (size - 1))
            out += found[: size - 1]
        at += max(size - 1, 1)
    return out


@pytest.mark.parametrize("sizes", [[5, 5, 4], [2, 1, 9, 1, 1], [12]])
def test_each_position_has_its_key(sizes: list[int]) -> None:
    params = SamplingParams(temperature=1.0, top_p=1.0, seed=3)
    assert positions(params, sizes) == positions(params, [1] * 20)[: len(positions(params, sizes))]


def test_a_reply_to_continue_continues_the_numbering() -> None:
    params = SamplingParams(temperature=1.0, top_p=1.0, seed=3)
    whole = positions(params, [1] * 20)
    assert positions(params, [1] * 12, before=8) == whole[8:]
    assert len(set(whole)) > 10


def test_a_continued_generation_equals_one_that_was_not_cut() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token_ids = set()

    def generated(ids: Sequence[int], count: int, reply: Sequence[int] = ()) -> list[int]:
        params = SamplingParams(temperature=1.0, top_p=1.0, seed=9, max_tokens=count)
        run = Generation(ModelRunner(MODEL), tokenizer, cache_of(), ids, params, reply=(reply, "", ""))
        list(run.events())
        return run.generated

    whole = generated(PROMPT, 24)
    first = generated(PROMPT, 10)
    assert first + generated([*PROMPT, *first], 14, first) == whole


@pytest.mark.parametrize("drafting", [lambda: None, lambda: Drafting(OpenGate())])
def test_a_reply_takes_one_key_of_the_thread_however_long_it_is(drafting: Callable[[], Drafting | None]) -> None:
    """So that what follows it, and what runs beside it, is the same with and without drafts."""
    states = set()
    for count in (1, 5, 30):
        mx.random.seed(4)
        before = random_state()
        params = SamplingParams(temperature=1.0, max_tokens=count)
        decode(MODEL, cache_of(), PROMPT, params, drafting())
        states.add(random_state())
        assert before not in states
    assert len(states) == 1
    mx.random.seed(4)
    decode(MODEL, cache_of(), PROMPT, SamplingParams(temperature=0.0, max_tokens=5), drafting())
    assert random_state() == before


def test_replies_that_alternate_do_not_disturb_each_other() -> None:
    params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=20)
    mx.random.seed(4)
    alone = [decode(MODEL, cache_of(), PROMPT, params) for _ in range(2)]
    mx.random.seed(4)
    runner, replies = ModelRunner(MODEL), []
    for _ in range(2):
        cache = cache_of()
        for _ in runner.prefill(cache, PROMPT[:-1]):
            pass
        replies.append(runner.decode(cache, PROMPT[-1], params, PROMPT[:-1]))
    together = list(zip(*replies, strict=True))
    assert [[pair[i] for pair in together] for i in range(2)] == alone
    assert alone[0] != alone[1]


# -- figures ----------------------------------------------------------------------------------------------------------


def test_a_generation_counts_steps_and_drafts() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token_ids = set()
    params = SamplingParams(temperature=0.0, max_tokens=30)
    plain = Generation(ModelRunner(MODEL), tokenizer, cache_of(), PROMPT, params)
    list(plain.events())
    assert (plain.stats.decode_steps, plain.stats.drafted_tokens) == (30, 0)
    runner = ModelRunner(MODEL)
    runner.drafting = Drafting(OpenGate(), Oracle([*PROMPT, *plain.generated], 64))
    drafted = Generation(runner, tokenizer, cache_of(), PROMPT, params)
    list(drafted.events())
    stats = drafted.stats
    assert drafted.generated == plain.generated
    assert drafted.text == plain.text
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    assert stats.decode_steps + stats.accepted_tokens == stats.generated_tokens == 30
