"""Schemas: each token is the likeliest allowed, replies end where they may, drafts and batches change nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.errors import ArgumentError, ConfigError
from mlxkv.events import FinishReason
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.model import Model
from tests.chats import say
from tests.inference.drafting.helpers import OpenGate, Oracle
from tests.tokenizers import OPENING, STRIPPING, THINK, VOCAB, tiny_folder, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("uncompiled")

END = 2
WORDS = [a + b for a in ("ab", "abc", "b-") for b in ("", "01", "0123", "9.")]
PATTERN = re.compile("(ab|abc|b-)(01|0123|9[.])?")


def logits_of(model: Model, ids: list[int]) -> mx.array:
    return model.loaded.model(mx.array([ids]))[0, -1]


def test_each_token_is_the_likeliest_that_may_come(model: Model) -> None:
    """The end too, exactly where one of the words is complete; by going through all words."""
    prompt = "who is it? "
    ids: list[int] = list(model.tokenizer.encode(prompt))
    text, expected = "", list[int]()
    while END not in expected:
        may = {model.tokenizer.encode(word[len(text)])[0] for word in WORDS if word.startswith(text) and word != text}
        may |= {END} if text in WORDS else set()
        logits: Any = logits_of(model, ids).tolist()
        expected.append(max(may, key=lambda token: logits[token]))
        ids.append(expected[-1])
        text += "" if expected[-1] == END else model.tokenizer.decode(expected[-1:])
    result = model.generate(prompt, schema=PATTERN, temperature=0.0)
    assert list(result.tokens) == expected
    assert (result.text, result.stats.finish_reason) == (text, FinishReason.STOP)


def test_any_seed_gives_one_of_the_words_and_all_of_them_come(model: Model) -> None:
    results: Any = model.generate("x", n=60, schema=PATTERN, temperature=8.0, top_p=1.0, seed=1)
    assert {result.text for result in results} == set(WORDS)
    cut = model.generate("x", schema=re.compile("[a-c]{5,}"), max_tokens=4)
    assert re.fullmatch("[a-c]{4}", cut.text)
    assert cut.stats.finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize("text", [r"[a-z]{3}[.]( [a-z]{4,9}[.]){4}", "(aa|ab){30}"])
def test_drafts_change_nothing(model: Model, text: str) -> None:
    """Drafts have wrong tokens, of which some are not allowed; with the log-probabilities of those that count."""
    more: dict[str, Any] = {"schema": re.compile(text), "seed": 3, "temperature": 1.5, "logprobs": 2, "max_tokens": 50}
    plain = model.generate("once ", **more)
    before: list[int] = list(model.tokenizer.encode("once "))
    model.runner.drafting = Drafting(OpenGate(), Oracle([*before, *plain.tokens], VOCAB))
    drafted = model.generate("once ", **more)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted_tokens > drafted.stats.accepted_tokens > 0
    for told, as_drafted in zip(plain.logprobs, drafted.logprobs, strict=True):
        assert (told.token, told.logprob) == (as_drafted.token, pytest.approx(as_drafted.logprob, abs=1e-4))


def test_rows_of_a_batch_follow_it_each_for_itself(model: Model) -> None:
    texts, more = ["once", "b", "who is"], {"schema": PATTERN, "seed": 2, "temperature": 3.0}
    results = model.generate_batch(texts, **more)
    assert [result.tokens for result in results] == [model.generate(text, **more).tokens for text in texts]
    assert all(result.stats.batched for result in results)


@pytest.mark.parametrize("template", [STRIPPING, OPENING], ids=["written", "opened in the prompt"])
def test_reasoning_is_free_and_does_not_end_the_reply(template: str, tmp_path: Path) -> None:
    """A function prefers the end, then the next token of this reply: the end comes once the number is complete."""
    tokenizer = tiny_tokenizer(template, marks=THINK)
    tiny_folder(tmp_path / "m", tokenizer=tokenizer)
    model = mlxkv.load(str(tmp_path / "m"))
    vocab = tokenizer.get_vocab()
    told = [vocab[x] for x in ("<think>", "h", "m", "4", "</think>", "4", "2")][template == OPENING :]
    num_calls = 0

    def prefer(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal num_calls
        logits[:, END] += 2000
        logits[:, told[min(num_calls, len(told) - 1)]] += 1000
        num_calls += 1
        return logits

    schema = re.compile("[0-9]{2}")
    end = say(model.chat(max_tokens=20, temperature=0.0), "what is it?", schema=schema, processors=[prefer])
    assert (end.text, end.thinking, end.reason) == ("42", "hm4", FinishReason.STOP)
    assert num_calls in (len(told) + 1, len(told) + 2)  # one is computed ahead

    bias = {vocab["<think>"]: 3, vocab["</think>"]: 4}
    hot: dict[str, Any] = {"schema": re.compile("[0-9]{30}"), "temperature": 1.0, "logit_bias": bias}
    chat = model.chat()
    for hot["seed"] in range(30):
        chat = model.chat(max_tokens=90)
        end = say(chat, "what is it?", **hot)
        if end.thinking and end.reason == FinishReason.STOP:
            break
    assert end.thinking
    assert re.fullmatch("[0-9]{30}", end.text)
    model.runner.drafting = Drafting(OpenGate(), Oracle(chat.log, VOCAB))
    drafted = say(model.chat(max_tokens=90), "what is it?", **hot)
    assert (drafted.text, drafted.thinking) == (end.text, end.thinking)
    assert drafted.stats.accepted_tokens, "the answer is drafted"
    assert say(model.chat(max_tokens=60, think=False), "what is it?", schema=schema, temperature=0.0).text.isdigit()
    model.close()


def test_a_reply_is_continued_within_its_schema(model: Model) -> None:
    chat, schema = model.chat(max_tokens=3, seed=1), re.compile("a{5}[.]")
    assert say(chat, "hi", schema=schema).text == "aaa"
    *_, end = chat.continue_reply(schema=schema, max_tokens=9)
    assert end.text == "aaaaa."  # type: ignore[union-attr]
    say(chat, "hi", schema=schema)
    with pytest.raises(ConfigError, match=r"Token \d+ cannot be the next one"):
        list(chat.continue_reply(schema=re.compile("b*")))
    say(chat, "go on")  # the chat goes on


JSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Person:
    """Like a model of pydantic's, which the tests need not install."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return JSON


@pytest.mark.slow
def test_json_of_a_model_that_prefers_blanks() -> None:
    """At any seed, from a mapping, from text and from a model of pydantic's; blanks end."""
    model = mlxkv.load("tutor")
    blanks = {i: 200.0 for i in range(1792) if not model.tokenizer.decode([i]).strip()}
    for schema in (JSON, json.dumps(JSON), Person):
        more: dict[str, Any] = {"n": 3, "schema": schema, "seed": 1, "temperature": 1.0, "logit_bias": blanks}
        results: Any = model.generate("A person as JSON:", **more, max_tokens=120)
        for result in results:
            found = json.loads(result.text)
            assert (len(found["name"]) <= 8, 0 <= found["age"] <= 99, len(found)) == (True, True, 2)
            assert result.stats.finish_reason == FinishReason.STOP
            assert re.search(r"\s", re.sub('"[^"]*"', "", result.text)), "the bias did nothing"
    model.close()


WRONG: list[tuple[Any, type[Exception], str]] = [
    ({"type": "objekt"}, ConfigError, "`schema` cannot be followed (Invalid type: objekt); change it."),
    ({"not": {}}, ConfigError, '`schema` cannot be followed (Unimplemented keys: ["not"]); change it.'),
    ("[a-z]", ConfigError, "`schema` is text that is not JSON ("),
    ("[1, 2]", ArgumentError, "`schema` is [1, 2]; it must be a JSON schema"),
    (7, ArgumentError, "`schema` is 7; it must be a JSON schema"),
    ({"const": {1, 2}}, ConfigError, "`schema` cannot be written as JSON ("),
    (re.compile(b"a"), ConfigError, "`schema` is a pattern of bytes"),
    (re.compile("(?=a)b"), ConfigError, "`schema` cannot be followed (look-around, including"),
    (re.compile("a", re.MULTILINE), ConfigError, "re.MULTILINE"),
]


@pytest.mark.parametrize(("schema", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_schema_is_one_sentence(model: Model, schema: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)) as caught:
        model.stream("a", schema=schema)  # at the call
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_without_llguidance_it_says_what_to_install(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'mlxkv[schema]'")):
        model.generate("a", schema=PATTERN)


def test_flags_of_a_pattern_count(model: Model) -> None:
    text = model.generate("x", schema=re.compile("a B # c", re.VERBOSE | re.IGNORECASE), temperature=0.0).text
    assert text.lower() == "ab"
