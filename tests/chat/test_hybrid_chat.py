"""Chats with recurrent layers: going back, forking and resuming as with any model; figures say what was read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mlxkv
from mlxkv.cache.recurrent.spacing import SLACK
from mlxkv.events import TurnFinished
from mlxkv.model import Model
from tests.chats import new, say
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hybrid_folder(tmp_path_factory.mktemp("models") / "hybrid", "granitemoehybrid", tiny_tokenizer())


@pytest.fixture
def model(folder: Path) -> Iterator[Model]:
    loaded = mlxkv.load(str(folder))
    yield loaded
    loaded.close()


def end_of(chat: mlxkv.Chat) -> int:
    return len(chat.log)


def test_a_later_turn_reads_only_the_new_message(model: Model) -> None:
    chat = new(model, system="be good")
    say(chat, "hi")
    end = chat.cache.offset
    stats = say(chat, "and you?").stats
    assert (stats.cached_tokens, stats.cached_tokens + stats.prefill_tokens) == (end, stats.prompt_tokens)
    assert stats.reuse_stopped_at is None


def test_a_retry_reads_one_token(model: Model) -> None:
    chat, straight = new(model), new(model)
    say(chat, "hi")
    expected = say(straight, "hi")
    *_, last = chat.retry()
    assert isinstance(last, TurnFinished)
    assert (last.stats.prefill_tokens, last.text) == (1, expected.text)


def test_undo_goes_back_to_the_end_of_the_reply_before(model: Model) -> None:
    chat, straight = new(model), new(model)
    say(chat, "hi")
    say(straight, "hi")
    end = chat.cache.offset
    say(chat, "to be forgotten")
    chat.undo()
    again, expected = say(chat, "and you?"), say(straight, "and you?")
    assert again.stats.cached_tokens == end
    assert again.text == expected.text
    assert "recurrent" in str(again.stats.reuse_stopped_why)


def test_a_fork_goes_on_beside_its_origin(model: Model) -> None:
    chat, straight = new(model), new(model)
    for c in (chat, straight):
        say(c, "hi")
    twin = chat.fork()
    say(twin, "somewhere else")
    assert say(chat, "and you?").text == say(straight, "and you?").text


@pytest.mark.slow
@pytest.mark.parametrize("back", [1, 2])
def test_a_resumed_chat_goes_on_and_goes_back_with_states_from_disk(model: Model, back: int) -> None:
    chat, straight = new(model), new(model)
    chat.save(title="long")
    ends = []
    for text in ("one", "two", "three", "four")[: 4 - back]:
        say(straight, text)
    for text in ("one", "two", "three", "four"):
        say(chat, text)
        ends.append(chat.cache.offset)
    chat.close()
    resumed = model.resume("long")
    assert resumed.restored is not None
    assert (resumed.restored.tokens, resumed.restored.notice) == (ends[-1], None)
    for _ in range(back):
        resumed.undo()
    got, expected = say(resumed, "else"), say(straight, "else")
    assert got.text == expected.text
    target = ends[3 - back]
    assert target - got.stats.cached_tokens <= (ends[3] - target) / 2 + SLACK
    resumed.close()


@pytest.mark.slow
def test_a_prompt_cache_is_saved_loaded_and_asked_twice(model: Model, tmp_path: Path) -> None:
    book = model.prefill("once upon a time there was a cache " * 3)
    size = book.save(tmp_path / "book.kv")
    loaded = model.load_cache(tmp_path / "book.kv")
    assert loaded.tokens == book.tokens
    answers = [model.generate("who?", cache=pc.fork(), temperature=0.0, max_tokens=8) for pc in (book, loaded, loaded)]
    assert len({(a.text, a.stats.cached_tokens) for a in answers}) == 1
    assert answers[0].stats.cached_tokens == len(book.tokens)
    assert size < 3 * book.live_nbytes
