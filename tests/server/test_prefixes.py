"""What the endpoint prefills: only what is new, whoever asks in between, and after a restart; and its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.server.jobs import ChatMessage, Ended, Job
from mlxkv.store.records import Kind
from tests.server.local import SAMPLED, Local, messages
from tests.tokenizers import CHATML, real_tokenizer, tiny_folder

NEW = 26  # tokens that a short question and the marks around it take at most


@pytest.fixture(scope="module")
def words_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose sampled ids are seldom those of their text."""
    return tiny_folder(tmp_path_factory.mktemp("words") / "words", tokenizer=real_tokenizer("words", CHATML))


@pytest.fixture
def model(words_path: Path) -> Iterator[mlxkv.Model]:
    loaded = mlxkv.load(words_path)
    yield loaded
    loaded.close()


def prefilled(end: Ended) -> int:
    return end.stats.prompt_tokens - end.stats.cached_tokens


def turn(local: Local, said: list[ChatMessage], text: str, **more: Any) -> Ended:
    """One more turn of a client, who keeps only texts."""
    said.append(ChatMessage("user", text))
    wanted = local.alone(said)
    end = local.say(said, **more)
    if not more:
        assert end.text == wanted
    said.append(ChatMessage("assistant", end.text))
    return end


def test_ten_turns_prefill_only_the_new_one(model: mlxkv.Model) -> None:
    local, said = Local(model), list(messages(system="it is a test"))
    turn(local, said, "what is in this file? 0")
    for i in range(1, 10):
        end = turn(local, said, f"what is in this file? {i}")
        assert prefilled(end) <= NEW, i
        assert end.stats.cached_tokens > 30 * i


def test_conversations_alternate_also_more_than_there_are_slots(model: mlxkv.Model) -> None:
    local = Local(model, num_slots=2)
    several = [list(messages(system=f"the {name} dog")) for name in ("quick", "brown", "lazy")]
    for i in range(4):
        for said in several:
            end = turn(local, said, f"and the end? {i}")
            assert not i or prefilled(end) <= NEW


def test_an_edited_message_keeps_what_comes_before_it(model: mlxkv.Model) -> None:
    local, said = Local(model), list(messages())
    for i in range(3):
        turn(local, said, f"what is in this file? {i}")
    edited = [*said[:4], ChatMessage("user", "no: the lazy dog")]
    wanted = local.alone(edited)
    end = local.say(edited)
    assert end.text == wanted
    assert prefilled(end) <= NEW
    assert prefilled(turn(local, said, "and now?")) <= NEW  # the other branch is still there


@pytest.mark.parametrize("lost", [str.strip, lambda text: f" {text}\n"])
def test_blanks_around_a_reply_do_not_matter(model: mlxkv.Model, lost: Any) -> None:
    local, said = Local(model), list(messages())
    turn(local, said, "what is in this file?")
    said[-1] = ChatMessage("assistant", lost(said[-1].text))
    assert prefilled(turn(local, said, "and now?")) <= NEW


def test_a_reply_that_a_stop_string_ended_is_not_prefilled_again(model: mlxkv.Model) -> None:
    local, said = Local(model), list(messages())
    text = local.say([ChatMessage("user", "what is in this file?")]).text
    end = turn(local, said, "what is in this file?", stop=(text[len(text) // 2 :][:3],))
    assert end.reason == "stop"
    assert len(end.text) <= len(text) // 2
    assert prefilled(turn(local, said, "and now?")) <= NEW


def test_together_each_gets_its_own_answer_and_keeps_its_rows(model: mlxkv.Model) -> None:
    local = Local(model)
    several = [list(messages(system=f"the {name} dog")) for name in ("quick", "brown", "lazy")]
    for i in range(3):
        for said in several:
            said.append(ChatMessage("user", f"and the end? {i}"))
        wanted = [local.alone(said) for said in several]
        found = local.run(*(Job(tuple(said), sampling=SAMPLED) for said in several))
        assert [ends[0].text for ends in found] == wanted
        assert all(ends[0].stats.batched for ends in found)
        for said, (end,) in zip(several, found, strict=True):
            said.append(ChatMessage("assistant", end.text))
            assert not i or prefilled(end) <= NEW


def test_several_replies_prefill_the_prompt_once(model: mlxkv.Model) -> None:
    local = Local(model)
    job = Job(messages("what is in this file?"), sampling={"temperature": 1.0, "max_tokens": 8, "seed": 1}, n=3)
    first, *others = local.run(job)[0]
    assert first.index == 0
    assert [prefilled(end) for end in others] == [1, 1]  # its last token, for the logits
    assert len({end.text for end in (first, *others)}) == 3
    assert sorted(end.text for end in local.run(job)[0]) == sorted(end.text for end in (first, *others))


def test_conversations_are_found_after_a_restart_and_in_no_list(words_path: Path, home: Path) -> None:
    said, other = list(messages(system="it is a test")), list(messages("what is a dog?"))
    with_answers: list[Ended] = []
    for restart in range(3):
        model = mlxkv.load(words_path)
        local = Local(model)
        if restart == 1:
            with_answers.append(turn(local, other, "and a fox?"))
        for i in range(2):
            end = turn(local, said, f"what is in this file? {restart} {i}")
            assert not (restart or i) or prefilled(end) <= NEW
        store = model.store
        assert store.list() == ()
        assert store.sessions.latest() is None
        assert store.sessions.search("file") == ()
        ids = store.sessions.endpoint_ids()
        assert len(ids) == (1 if restart == 0 else 2)
        assert {store.load(i).kind for i in ids} == {Kind.ENDPOINT}
        model.close()  # without `Endpoint.close`, as after a kill
    assert len(said) == 13


def test_nothing_is_saved_with_no_save_and_forget_deletes(words_path: Path, home: Path) -> None:
    model = mlxkv.load(words_path)
    turn(Local(model, saves=False), list(messages()), "what is in this file?")
    assert not home.exists() or not (home / "data").exists()
    turn(Local(model), list(messages()), "what is in this file?")
    assert len(model.store.sessions.endpoint_ids()) == 1
    Local(model, forgets=True)
    assert model.store.sessions.endpoint_ids() == ()
    model.close()
