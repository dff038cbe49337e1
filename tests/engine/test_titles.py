"""Titles that the model writes: which answers are titles, and that the chat is as it was before the model was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxkv.engine.handlers import auto_title
from mlxkv.engine.handlers.auto_title import title_in
from mlxkv.events import PrefillProgress, TurnFinished
from mlxkv.inference.sampling import random_state
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.stats import TurnStats
from tests.engine.test_engine_chats import SETTINGS, Said
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_tokenizer

QUESTION = "How do sinks work in a rotating KV cache?"


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Attention sinks", "Attention sinks"),
        ('**"Attention Sinks Explained."**\n', "Attention Sinks Explained"),
        ("Title: Attention sinks", "Attention sinks"),
        ("「注意力汇点」", "注意力汇点"),
        ("\x1b]0;x\x07Sinks", "␛]0;x␇Sinks"),
        ("x" * 61, ""),
        ("S", ""),
        ("42", ""),
        ("", ""),
        ("Sinks\nand a second line", ""),
        ("I'm sorry, but I cannot", ""),
        ("Sure, a title", ""),
        ("A title for this conversation", ""),
        ("Reply with the title only.", ""),
        ("How do sinks work", ""),
    ],
)
def test_an_answer_is_a_title_or_dropped(answer: str, title: str) -> None:
    assert title_in(TurnFinished("stop", answer, TurnStats()), QUESTION) == title


def test_an_answer_that_was_cut_off_or_begins_with_reasoning_is_dropped() -> None:
    assert title_in(TurnFinished("length", "Attention sinks", TurnStats()), QUESTION) == ""
    assert title_in(TurnFinished("stop", "Attention sinks", TurnStats(), "Hm."), QUESTION) == ""


@pytest.fixture(params=["rows", "states"])
def folder(request: pytest.FixtureRequest, tiny_path: Path, tmp_path: Path) -> Path:
    if request.param == "rows":
        return tiny_path
    return hybrid_folder(tmp_path / "hybrid", "qwen3_next", tiny_tokenizer())


@pytest.fixture
def said(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """A chat of one turn with a model that counts as able and whose answer counts as a title."""
    monkeypatch.setattr(auto_title, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(auto_title, "title_in", lambda *_: "A name")
    said = Said(replace(SETTINGS, window=1024, temperature=1.5, max_tokens=8))
    said.one(cmd.LoadModel(str(folder)), ev.ModelReady)
    said.one(cmd.Send(QUESTION, 0.0), ev.TurnFinished)
    yield said
    said.context.close()


def titles(said: Said) -> list[ev.EngineEvent]:
    return [event for event in said.ask(cmd.SuggestTitle()) if isinstance(event, ev.ChatTitled)]


@pytest.mark.slow
def test_the_next_turn_is_that_of_a_chat_that_was_not_asked(said: Said) -> None:
    first = said.context.current_chat
    log, offset, turns = first.log, first.cache.offset, first.turns
    twin = first.fork()  # begins with the same random numbers below
    drawn = random_state()
    assert said.one(cmd.SuggestTitle(), ev.ChatTitled).title == "A name"
    assert random_state() == drawn
    assert (first.log, first.cache.offset, first.turns, first.title) == (log, offset, turns, "A name")
    seed: dict[str, Any] = {"seed": 7}
    expected = twin.ask("And then?", **seed)
    got = first.ask("And then?", **seed)
    assert got.text == expected.text
    assert (got.stats.prefill_tokens, got.stats.cached_tokens) == (
        expected.stats.prefill_tokens,
        expected.stats.cached_tokens,
    )
    twin.close()


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["rows"], indirect=True)
def test_a_command_that_arrives_stops_it_and_the_users_title_stays(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    context, chat = said.context, said.context.current_chat
    offset, steps = chat.cache.offset, list[Any]()
    real = chat.aside

    def watched(*args: Any, **more: Any) -> Iterator[Any]:
        for event in real(*args, **more):
            steps.append(event)
            context.num_submitted += isinstance(event, PrefillProgress)  # as Engine.submit does
            yield event

    monkeypatch.setattr(chat, "aside", watched)
    assert titles(said) == []
    assert (len(steps), context.wants_title, chat.cache.offset) == (1, True, offset)
    context.num_submitted = 0
    monkeypatch.undo()
    monkeypatch.setattr(auto_title, "MIN_PARAMETERS", 0)
    assert titles(said) == []  # no title in what the model says
    said.one(cmd.RenameChat("mine"), ev.ChatRenamed)
    monkeypatch.setattr(auto_title, "title_in", lambda *_: "A name")
    assert titles(said) == []
    assert chat.title == "mine"
    assert not chat.suggest_title("A name")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["rows"], indirect=True)
def test_small_models_and_full_windows_are_not_asked(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, model = said.context.current_chat, said.context.ready_model
    assert auto_title.is_due(chat)
    assert auto_title.is_able(model)
    monkeypatch.setattr(auto_title, "MAX_TOKENS", 1024)
    assert not auto_title.is_due(chat)
    monkeypatch.setattr(auto_title, "MIN_PARAMETERS", auto_title.num_parameters(model) + 1)
    assert not auto_title.is_able(model)
    monkeypatch.setattr(auto_title, "BUILT_IN", (model.name,))
    monkeypatch.setattr(auto_title, "MIN_PARAMETERS", 0)
    assert not auto_title.is_able(model)
