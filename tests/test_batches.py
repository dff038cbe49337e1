"""Many prompts through the public API: `Model.generate_batch` and `stream_batch`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxkv
from mlxkv.chat import batches
from mlxkv.errors import ArgumentError, ConfigError, MismatchError, OutOfMemoryError, PromptError, WrongThreadError
from mlxkv.events import TurnFinished
from mlxkv.inference.runner import ModelRunner
from mlxkv.model import Model
from tests.chats import CONFIG, GREEDY, new, say
from tests.tokenizers import STRIPPING, THINK, tiny_folder, tiny_tokenizer

TEXTS = ["once upon a time", "the", "who are you? " * 9]


def test_results_are_those_of_generate_in_order(model: Model) -> None:
    results = model.generate_batch(TEXTS, cache=CONFIG, **GREEDY)
    expected = [model.generate(text, cache=CONFIG, **GREEDY) for text in TEXTS]
    assert [(r.text, r.tokens) for r in results] == [(e.text, e.tokens) for e in expected]
    assert all(r.stats.batched for r in results)
    assert [r.stats.finish_reason for r in results] == [e.stats.finish_reason for e in expected]
    assert model.generate_batch([]) == []
    assert model.generate_batch(iter(TEXTS[:1]), **GREEDY)[0].text == model.generate(TEXTS[0], **GREEDY).text


def test_a_prompt_cache_is_prefilled_once_and_not_changed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pc = model.prefill("a long book. " * 12, CONFIG)
    before, fed = pc.tokens, []
    feed = ModelRunner._feed
    monkeypatch.setattr(ModelRunner, "_feed", lambda *args: (fed.append(args[3]), feed(*args))[1])
    ids = model.tokenizer.encode("where?")
    prompts: list[Any] = ["who?", "a long book. " * 12 + "what?", ids, np.array([*before, *ids])]
    results = model.generate_batch(prompts, cache=pc, **GREEDY)
    num_fed = sum(r.stats.prefill_tokens for r in results)
    assert num_fed < 24  # and none of the book
    assert {r.stats.cached_tokens for r in results} == {len(before)}
    assert pc.tokens == before
    monkeypatch.undo()
    expected = [model.generate(text, cache=pc.fork(), **GREEDY).text for text in ("who?", "what?", "where?", "where?")]
    assert [r.text for r in results] == expected


def test_events_of_later_prompts_see_the_cache_of_the_call(model: Model) -> None:
    """Of 66 prompts the last ones are tokenized after the cache has changed."""
    pc, texts = model.prefill("a long book. ", CONFIG), [text[:9] for text in TEXTS] * 22
    expected = [r.tokens for r in model.generate_batch(texts, cache=pc, temperature=0.0, max_tokens=2)]
    stream = model.stream_batch(texts, cache=pc, temperature=0.0, max_tokens=2)
    next(stream)
    model.generate("something else", cache=pc, **GREEDY)
    ends = {e.index: e.event for e in stream if isinstance(e.event, mlxkv.ReplyFinished)}
    assert [ends[i].tokens for i in range(66)] == expected
    assert {end.stats.cached_tokens for end in ends.values()} == {len("a long book. ")}


def test_message_lists_are_chats(tiny_path: Path, model: Model) -> None:
    chat = new(model, system="be brief")
    first = say(chat, "hello")
    second = say(chat, "and now?")
    start: list[dict[str, str]] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    longer = [*start, {"role": "assistant", "content": first.text}, {"role": "user", "content": "and now?"}]
    results = model.generate_batch([start, longer], cache=CONFIG, **GREEDY)
    assert [r.text for r in results] == [first.text, second.text]
    pc = model.prefill("a book. ", CONFIG, system="be brief")
    from_cache = model.generate_batch([start[1:], "raw"], cache=pc, **GREEDY)
    chat = model.chat(cache=pc.fork(), **GREEDY)
    assert from_cache[0].text == say(chat, "hello").text
    assert from_cache[0].stats.cached_tokens >= pc.offset - 1


def test_reasoning_is_not_part_of_the_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(STRIPPING, marks=THINK)
    model = mlxkv.load(str(tiny_folder(tmp_path / "thinking", tokenizer=tokenizer)))
    think = [{"role": "user", "content": "hm"}]
    chats = [model.chat(cache=CONFIG, temperature=1.0, max_tokens=40, seed=seed) for seed in range(4)]
    replies = [say(chat, "hm") for chat in chats]
    for seed, reply in enumerate(replies):
        found = model.generate_batch([think, think], cache=CONFIG, temperature=1.0, max_tokens=40, seed=seed)
        assert {(r.text, r.thinking) for r in found} == {(reply.text, reply.thinking)}
    model.close()


BAD: list[tuple[Any, type[Exception], str]] = [
    ("", PromptError, r"prompts\[1\]: The prompt is empty"),
    ([], PromptError, r"prompts\[1\]: The prompt is empty"),
    ([3, 99_999], PromptError, r"prompts\[1\]: Token 1 of the prompt is 99999"),
    (["a", "b"], PromptError, r"prompts\[1\]: Token 0 of the prompt is 'a'"),
    (7, ArgumentError, r"prompts\[1\]: `prompt` is 7"),
    (None, ArgumentError, r"prompts\[1\]"),
    ([{"role": "robot", "content": "x"}], PromptError, r"prompts\[1\]: Message 0 is .* must have a `role`"),
    ([{"role": "user"}], PromptError, r"prompts\[1\]: Message 0"),
    ([{"role": "user", "content": "x"}, "y"], PromptError, r"prompts\[1\]: Message 1 is 'y'"),
    ([{"role": "assistant", "content": "x"}], PromptError, r"prompts\[1\]: The last message"),
    ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], PromptError, "only the first"),
]


@pytest.mark.parametrize(("bad", "kind", "text"), BAD)
def test_one_bad_prompt_is_an_error_before_anything_is_computed(
    model: Model, bad: Any, kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelRunner, "_feed", lambda *_: pytest.fail("it computes"))
    with pytest.raises(kind, match=text):
        model.generate_batch(["fine", bad, "fine"], **GREEDY)
    monkeypatch.undo()
    events = list(model.stream_batch(["fine", bad, "fine"], cache=CONFIG, **GREEDY))
    last = {event.index: event.event for event in events}
    assert isinstance(failed := last[1], mlxkv.RequestFailed)
    assert isinstance(failed.error, kind)
    for i in (0, 2):
        assert isinstance(end := last[i], TurnFinished)
        assert end.text == model.generate("fine", cache=CONFIG, **GREEDY).text


def test_arguments_are_checked_by_the_call(model: Model, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"prompts": "one text"}, ArgumentError, "a list of prompts"),
        ({"prompts": ["x"], "temperature": -1.0}, ConfigError, "temperature"),
        ({"prompts": ["x"], "tempo": 1}, ConfigError, "tempo"),
        ({"prompts": ["x"], "deadline": -1}, ConfigError, "deadline"),
        ({"prompts": ["x"], "cache": "file.kv"}, ConfigError, "load_cache"),
    ]
    for arguments, kind, text in wrong:
        for call in (model.generate_batch, model.stream_batch):
            with pytest.raises(kind, match=text):
                call(**arguments)
    other = mlxkv.load(str(tiny_folder(tmp_path / "other", seed=7)))
    with pytest.raises(MismatchError):
        model.generate_batch(["x"], cache=other.prefill("abc", CONFIG))
    other.close()


def test_a_prompt_that_does_not_fit_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OutOfMemoryError("it does not fit.")

    monkeypatch.setattr(model.runner, "_max_chunk", refuse)
    with pytest.raises(OutOfMemoryError, match=r"prompts\[0\]: it does not fit."):
        model.generate_batch(TEXTS, **GREEDY)


def test_closing_the_stream_stops_all_and_leaves_the_model_usable(model: Model) -> None:
    pc = model.prefill("a long book. ", CONFIG)
    stream: Any = model.stream_batch(TEXTS, cache=pc, **GREEDY)
    for _ in range(8):
        next(stream)
    stream.close()
    assert list(stream) == []
    assert model.generate("who?", cache=pc, **GREEDY).text


def test_a_deadline_of_nothing_answers_nothing(model: Model) -> None:
    results = model.generate_batch(TEXTS, deadline=0, **GREEDY)
    assert {(r.text, r.tokens, r.stats.finish_reason) for r in results} == {("", (), "deadline")}


def test_requests_are_asked_for_as_places_become_free(model: Model) -> None:
    asked: list[int] = []
    made = batches.BatchPrompts(model._runtime, CONFIG)
    params = mlxkv.SamplingParams(**GREEDY)

    def requests() -> Any:
        for i in range(40):
            asked.append(i)
            yield made.request(i, "hello", params)

    ahead = []
    for name, event in batches.events_of(model._runtime, requests(), max_waiting=4):
        if isinstance(event, TurnFinished):
            ahead.append(len(asked) - 1 - int(name))
    assert len(ahead) == 40
    assert max(ahead) < 40
    assert asked == list(range(40))


def test_another_thread_is_refused(model: Model) -> None:
    errors: list[Exception] = []

    def call() -> None:
        try:
            model.generate_batch(TEXTS)
        except WrongThreadError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert errors
