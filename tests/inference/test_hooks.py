"""Processors, samplers, penalties, XTC and log-probabilities, beside mlx-lm's own loop with the same functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mlxkv.cache.config import CacheConfig
from mlxkv.errors import ArgumentError, ConfigError
from mlxkv.events import RequestFailed, TextDelta, TokenLogprobs
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.generation import Generation
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.model import Model
from mlxkv.scheduler import Request
from tests.inference.batches import TOKENIZER, Sinks, cache_of, scheduler_of
from tests.inference.drafting.helpers import OpenGate, Oracle
from tests.reference import random_ids, tiny_llama

pytestmark = pytest.mark.usefixtures("uncompiled")

LLAMA, PROMPT = tiny_llama(), random_ids(20)
EVEN = mx.arange(64) % 2 == 0


def generation(params: SamplingParams, hooks: Hooks | None = None, drafting: Drafting | None = None) -> Generation:
    """A finished reply to PROMPT that no end token ends."""
    runner, tokenizer = ModelRunner(LLAMA), TOKENIZER
    runner.drafting = drafting
    made = Generation(runner, _endless(tokenizer), cache_of(LLAMA), PROMPT, params, hooks=hooks)
    assert list(made.events())
    return made


def _endless(tokenizer: Any) -> Any:
    class Endless:
        eos_token_ids = frozenset[int]()

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    return Endless()


def theirs(seed: int, **more: Any) -> list[Any]:
    """Tokens and log-probabilities of mlx-lm's loop."""
    mx.random.seed(seed)
    return list(generate_step(mx.array(PROMPT), LLAMA, max_tokens=24, **more))


BIAS = {5: 3.0, 9: -40.0}
SAMPLERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.8}, {"temp": 0.8}),
    ({"temperature": 0.0}, {"temp": 0.0}),
    (
        {"temperature": 1.0, "xtc_probability": 0.6, "xtc_threshold": 0.02, "min_p": 0.01},
        {"temp": 1.0, "xtc_probability": 0.6, "xtc_threshold": 0.02, "min_p": 0.01},
    ),
]
PROCESSORS: list[dict[str, Any]] = [
    {"logit_bias": BIAS},
    {"repetition_penalty": 1.4, "repetition_context_size": 3, "logit_bias": BIAS},
    {"presence_penalty": 2.0, "presence_context_size": 30, "frequency_penalty": 0.5, "frequency_context_size": 7},
]


@pytest.mark.parametrize("chosen", PROCESSORS, ids=str)
@pytest.mark.parametrize(("ours", "mlx_lm"), SAMPLERS, ids=["sampled", "greedy", "xtc"])
def test_tokens_equal_mlx_lms(ours: dict[str, Any], mlx_lm: dict[str, Any], chosen: dict[str, Any]) -> None:
    params = SamplingParams(**ours, **chosen, top_p=1.0, seed=4, max_tokens=24)
    spared = TOKENIZER.encode("\n", add_special_tokens=False)
    sampler = make_sampler(**mlx_lm, xtc_special_tokens=spared)
    expected = [t for t, _ in theirs(4, sampler=sampler, logits_processors=make_logits_processors(**chosen))]
    assert generation(params).generated == expected
    drafting = Drafting(OpenGate(), Oracle([*PROMPT, *expected], 64))
    drafted = generation(params, drafting=drafting)
    assert drafted.generated == expected
    assert drafted.stats.accepted_tokens


def test_functions_see_what_mlx_lms_see() -> None:
    seen: list[list[Any]] = [[], []]

    def functions(calls: list[Any]) -> dict[str, Any]:
        def odd(tokens: mx.array, logits: mx.array) -> mx.array:
            calls.append((tokens.tolist(), logits.shape))
            logits[:, 0] = -mx.inf  # in place, as mlx-lm's own do
            return mx.where(EVEN, -mx.inf, logits)

        return {"logits_processors": [odd], "sampler": lambda logprobs: mx.random.categorical(logprobs * 2)}

    expected = [t for t, _ in theirs(3, **functions(seen[0]))]
    mine = functions(seen[1])
    hooks = Hooks(tuple(mine["logits_processors"]), mine["sampler"])
    drafting = Drafting(OpenGate(), Oracle([*PROMPT, *expected], 64))
    run = generation(SamplingParams(seed=3, max_tokens=24, temperature=0.0), hooks, drafting)
    assert run.generated == expected
    assert all(token % 2 for token in expected)
    assert not run.stats.drafted_tokens, "nobody knows what a caller's function remembers"
    assert seen[1] == seen[0][: len(seen[1])]


@pytest.mark.parametrize("drafts", [False, True])
def test_logprobs_are_the_models_own(drafts: bool) -> None:
    """Of a full computation, whatever sampling does; in the events, too."""
    params = SamplingParams(temperature=0.9, seed=2, max_tokens=20, logprobs=3, logit_bias=BIAS, top_k=9)
    plain = generation(params)
    drafting = Drafting(OpenGate(), Oracle([*PROMPT, *plain.generated], 64)) if drafts else None
    runner = ModelRunner(LLAMA)
    run = Generation(runner, _endless(TOKENIZER), cache_of(LLAMA), PROMPT, params)
    runner.drafting = drafting
    events = list(run.events())
    assert run.generated == plain.generated
    ids = [*PROMPT, *run.generated]
    all_logprobs = nn.log_softmax(LLAMA(mx.array([ids]))[0], axis=-1)
    for i, told in enumerate(run.logprobs):
        row = all_logprobs[len(PROMPT) - 1 + i]
        order: Any = mx.argsort(-row)[:3].tolist()
        assert told.token == run.generated[i]
        assert told.logprob == pytest.approx(row[told.token].item(), abs=1e-4)
        assert [token for token, _ in told.top] == order
        assert [value for _, value in told.top] == pytest.approx(row[mx.array(order)].tolist(), abs=1e-4)
    shown = [told for event in events if isinstance(event, TextDelta) for told in event.logprobs]
    assert shown == run.logprobs[: len(shown)]
    assert events[-1].logprobs == tuple(run.logprobs)  # type: ignore[union-attr]
    assert len(run.logprobs) == 20


def test_rows_of_a_batch_have_their_own_history() -> None:
    """Each as alone, though the functions of two look at all tokens before; an error ends its row alone."""

    def few(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits - 5 * (mx.arange(64)[:, None] == tokens[-12:]).sum(axis=1)

    def fails(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size > 25:
            raise ConfigError("no more.")
        return logits

    params = SamplingParams(temperature=0.7, seed=5, max_tokens=16, logprobs=1)
    kinds = [Hooks((few,)), Hooks((fails,)), Hooks(), Hooks(sampler=lambda x: mx.random.categorical(x))]
    scheduler, sinks, cache = scheduler_of(LLAMA), Sinks(), cache_of(LLAMA)
    for i, hooks in enumerate(kinds):
        scheduler.submit(Request(i, PROMPT, params, cache, hooks=hooks), sinks.of(i))
    scheduler.run()
    failed = sinks.events[1][-1]
    assert isinstance(failed, RequestFailed)
    assert str(failed.error) == "no more."
    for i in (0, 2, 3):
        run = Generation(ModelRunner(LLAMA), TOKENIZER, cache_of(LLAMA), PROMPT, params, hooks=kinds[i])
        list(run.events())
        end = sinks.end(i)
        assert list(end.tokens) == run.generated
        assert [round(told.logprob, 3) for told in end.logprobs] == [round(told.logprob, 3) for told in run.logprobs]
        assert end.stats.batched is (i != 3)
    assert sinks.end(0).tokens != sinks.end(2).tokens


@pytest.mark.parametrize("turns", [False, True])
def test_an_error_of_a_function_ends_its_own_request(turns: bool) -> None:
    """In a batch, and where requests take turns."""

    def fail(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size > len(PROMPT) + 2:
            raise ZeroDivisionError("mine")
        return logits

    params, sinks, hooks = SamplingParams(temperature=0.0, max_tokens=12), Sinks(), Hooks((fail,))
    scheduler = scheduler_of(LLAMA)
    cache = cache_of(LLAMA, CacheConfig(window=24 if turns else 256, block=8, sinks=0))  # a batch evicts nothing
    for name, own in (("a", Hooks()), ("b", hooks), ("c", Hooks())):
        scheduler.submit(Request(name, PROMPT, params, cache, hooks=own), sinks.of(name))
    scheduler.run()
    failed = sinks.events["b"][-1]
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, ZeroDivisionError)
    assert sinks.end("a").stats.batched is not turns
    assert len(sinks.end("a").tokens) == 12
    assert sinks.end("a").tokens == sinks.end("c").tokens


# -- through the model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [0, 1, 4])
def test_after_an_error_of_a_function_the_cache_equals_its_log(model: Model, call: int) -> None:
    calls: list[int] = []

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        calls.append(tokens.size)
        if len(calls) > call:
            raise ZeroDivisionError("mine")
        return logits

    pc = model.prefill("once upon a time", CacheConfig(window=64))
    with pytest.raises(ZeroDivisionError, match="mine"):
        model.generate(" there", cache=pc, processors=[processor], max_tokens=8, temperature=0)
    pc.check_log()
    held = pc.tokens
    text = model.generate(" was", cache=pc, max_tokens=6, temperature=0).text
    again = model.prefill(held, CacheConfig(window=64))
    assert model.generate(" was", cache=again, max_tokens=6, temperature=0).text == text
    with pytest.raises(ZeroDivisionError):
        model.generate_batch(["a", "bc"], processors=[processor], max_tokens=8)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"processors": [3]}, ArgumentError, "`processors` has 3"),
    ({"sampler": "greedy"}, ArgumentError, "`sampler` is 'greedy'"),
    ({"processors": [lambda tokens, logits: None]}, ConfigError, "returned None; it must return logits of shape"),
    ({"sampler": lambda logprobs: logprobs}, ConfigError, "`sampler` returned"),
    ({"logit_bias": {64_000: 1}}, ConfigError, "`logit_bias` has the token 64,000; this model's tokens are below"),
    ({"logit_bias": {"a": 1}}, ArgumentError, "`logit_bias` has the key 'a'"),
    ({"logit_bias": {1: 1001}}, ConfigError, "`logit_bias[1]` is 1001; it must be a number from -1,000.0 to"),
    ({"logit_bias": [1]}, ArgumentError, "`logit_bias` is [1]; it must be numbers by token id"),
    ({"xtc_threshold": 0.6}, ConfigError, "`xtc_threshold` is 0.6"),
    ({"presence_context_size": 0}, ConfigError, "`presence_context_size` is 0"),
    ({"logprobs": True}, ArgumentError, "`logprobs` is True"),
]


@pytest.mark.parametrize(("given", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_what_is_wrong_is_one_sentence(model: Model, given: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)) as caught:
        model.generate("a", max_tokens=2, **given)
    assert str(caught.value).endswith(".")
    chat = model.chat(max_tokens=2)
    with pytest.raises(kind, match=re.escape(text)):
        list(chat.send("a", **given))


def test_every_way_to_sample_takes_hooks(model: Model) -> None:
    """A reply of dots, and what it was."""
    dot = model.tokenizer.encode(".", add_special_tokens=False)[0]
    hooks: dict[str, Any] = {"processors": [lambda _, x: x + 1000 * (mx.arange(64) == dot)], "sampler": mx.argmax}
    more: dict[str, Any] = {**hooks, "max_tokens": 3, "logprobs": 0}
    chat = model.chat()
    ends = [list(chat.send("a", **more))[-1], list(chat.retry(**more))[-1], list(chat.aside("b", **more))[-1]]
    ends += [model.generate("a", **more), *model.generate("a", n=2, **more), list(model.stream("a", **more))[-1]]
    ends += [*model.generate_batch(["a", "b"], **more), list(chat.edit(0, "c", **more))[-1]]
    assert {end.text for end in ends} == {"..."}  # type: ignore[union-attr]
    told: Sequence[TokenLogprobs]
    for told in (end.logprobs for end in ends):  # type: ignore[union-attr]
        assert [each.token for each in told] == [dot] * 3
    assert [end.text for end in [list(chat.continue_reply(**more))[-1]]] == ["......"]  # type: ignore[union-attr]
