"""Chats through the public API, on a random chat model in a folder: nothing is read twice, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.device import Device
from mlxkv.errors import (
    ConfigError,
    CorruptError,
    MismatchError,
    OutOfMemoryError,
    PromptError,
    SessionLockedError,
    SessionNotFoundError,
)
from mlxkv.events import Notice, TextDelta, TurnFinished
from mlxkv.model import Model
from tests.tokenizers import FORGETFUL, tiny_folder

CONFIG = mlxkv.CacheConfig(window=512, block=64)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture
def model(tiny_path: Path) -> Iterator[Model]:
    loaded = mlxkv.load(str(tiny_path))
    yield loaded
    loaded.close()


def new(model: Model, **more: Any) -> mlxkv.Chat:
    return model.chat(cache=CONFIG, **{**GREEDY, **more})


def say(chat: mlxkv.Chat, text: str, **more: Any) -> TurnFinished:
    *_, last = chat.send(text, **more)
    assert isinstance(last, TurnFinished)
    return last


def test_a_later_turn_reads_only_the_new_message(model: Model) -> None:
    chat = new(model, system="be good")
    first = say(chat, "hi")
    second = say(chat, "and you?")
    s = second.stats
    assert s.cached_tokens + s.prefill_tokens == s.prompt_tokens
    assert s.cached_tokens >= first.stats.prompt_tokens + first.stats.generated_tokens - 1
    assert s.prefill_tokens < 40
    assert s.reuse_stopped_at is None
    assert [m.role for m in chat.messages] == ["user", "assistant", "user", "assistant"]


def test_a_template_that_rewrites_history_stops_the_reuse_there_and_says_so(tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "forgetful", template=FORGETFUL)))
    chat = new(model)
    first = say(chat, "hi")
    second = say(chat, "and you?")
    assert second.stats.cached_tokens == first.stats.prompt_tokens
    assert second.stats.reuse_stopped_at == first.stats.prompt_tokens
    assert "differs" in (second.stats.reuse_stopped_why or "")


def test_the_system_prompt_is_pinned(model: Model) -> None:
    system = "be good. " * 5
    chat = new(model, system=system)
    geometry = chat.cache.plan.geometry
    assert geometry is not None
    assert geometry.sinks == model._prompts.num_system_tokens(system)


def test_what_a_stop_string_cut_off_is_not_in_the_next_prompt(model: Model) -> None:
    free = say(new(model), "hi").text
    chat = new(model)
    stop = free[4:6]
    finished = say(chat, "hi", stop=[stop])
    assert finished.text == free[: free.index(stop)]
    say(chat, "and you?")
    prompt = model.tokenizer.decode(chat.cache.tokens)
    assert f"assistant\n{finished.text}<|im_end|>" in prompt


def test_cancel_keeps_what_was_said(model: Model) -> None:
    chat = new(model, max_tokens=400)
    text = ""
    for event in chat.send("hi"):
        if isinstance(event, TextDelta):
            text += event.text
            chat.cancel()
    assert chat.stats.finish_reason == "stopped"
    assert chat.messages[-1].text == text != ""
    assert say(chat, "on").stats.reuse_stopped_at is None


def test_walking_away_keeps_what_was_said(model: Model) -> None:
    chat = new(model, max_tokens=400)
    chat.save()
    first = next(e.text for e in chat.send("hi") if isinstance(e, TextDelta))
    assert chat.messages[-1].text == first
    chat.close()
    record = model.store.load(str(chat.session_id))
    assert [(t.role, t.state) for t in record.turns] == [("user", "done"), ("assistant", "stopped")]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused_and_changes_nothing(model: Model, text: str) -> None:
    chat = new(model)
    with pytest.raises(PromptError, match="empty"):
        chat.send(text)
    assert chat.messages == ()


# -- going back ------------------------------------------------------------------------------------------------------


def test_undo_forks_and_the_next_turn_is_as_if_it_had_never_been(model: Model) -> None:
    chat, straight = new(model), new(model)
    say(chat, "hi")
    say(straight, "hi")
    chat.save()
    before = chat.session_id
    say(chat, "to be forgotten")
    assert chat.undo() == "to be forgotten"
    assert chat.session_id != before
    chat.close()
    assert say(chat, "and you?").text == say(straight, "and you?").text
    assert len(model.store.load(str(before)).turns) == 4  # nothing was destroyed


def test_retry_keeps_the_old_reply_in_the_parent(model: Model) -> None:
    chat = new(model)
    chat.save()
    say(chat, "hi", seed=1, temperature=1.5)
    old = chat.session_id
    *_, last = chat.retry(seed=2, temperature=1.5)
    assert isinstance(last, TurnFinished)
    assert last.stats.prefill_tokens == 1  # the prompt is cached; its last token gives the logits
    assert [m.text for m in chat.messages] == ["hi", last.text]
    chat.close()
    assert model.store.load(str(old)).turns[1].text != last.text


def test_edit_goes_on_from_an_earlier_message(model: Model) -> None:
    chat = new(model)
    for text in ("one", "two", "three"):
        say(chat, text)
    list(chat.edit(2, "zwei"))
    assert [m.text for m in chat.messages if m.role == "user"] == ["one", "zwei"]
    with pytest.raises(ConfigError, match="Message 1 is not one of yours"):
        chat.edit(1, "x")


def test_going_back_further_than_the_cache_can_reads_rows_from_disk(model: Model) -> None:
    """The window has long wrapped: only the session's chunks still hold the old rows."""
    small = mlxkv.CacheConfig(window=128, block=16, slack=16, sinks=4)
    chat, straight = (model.chat(cache=small, **GREEDY) for _ in range(2))
    chat.save()
    say(chat, "one " * 10)
    say(straight, "one " * 10)
    for _ in range(4):
        say(chat, "more and more " * 6)
    assert chat.cache.num_evicted > 0
    list(chat.edit(2, "two"))
    chat.close()
    assert chat.stats.cached_tokens > 40
    assert chat.messages[-1].text == say(straight, "two").text


def test_a_fork_shares_the_past_and_not_the_future(model: Model) -> None:
    chat = new(model)
    say(chat, "hi")
    chat.save()
    twin = chat.fork()
    a, b = say(chat, "left"), say(twin, "right")
    assert a.stats.cached_tokens == b.stats.cached_tokens > 0
    assert chat.session_id != twin.session_id
    assert chat.messages[:2] == twin.messages[:2]
    assert chat.messages[2].text != twin.messages[2].text
    for c in (chat, twin):
        c.close()


# -- sessions --------------------------------------------------------------------------------------------------------


def test_a_resumed_chat_goes_on_bit_by_bit_without_reading_anything_again(model: Model, tiny_path: Path) -> None:
    chat, straight = new(model, system="be"), new(model, system="be")
    for text in ("hi", "and you?"):
        say(chat, text)
        say(straight, text)
    session = chat.save(title="sky")
    chat.close()
    again = mlxkv.load(str(tiny_path))
    resumed = again.resume("sky")
    assert resumed.restored is not None
    assert (resumed.restored.tokens, resumed.restored.notice) == (chat.cache.offset, None)
    assert resumed.messages == chat.messages
    got, expected = say(resumed, "go on"), say(straight, "go on")
    assert got.text == expected.text
    assert got.stats.prefill_tokens == expected.stats.prefill_tokens
    assert got.stats.disk_written_bytes > 0
    resumed.close()
    again.close()
    assert session == resumed.session_id


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"dtype": mx.bfloat16},
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 40},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ],
    ids=["float32", "bfloat16", "sliding", "yarn"],
)
def test_a_wrapped_chat_resumes_bit_by_bit(args: dict[str, Any], tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "model", **args)))
    small = mlxkv.CacheConfig(window=128, block=16, sinks=4)
    chat, straight = (model.chat(cache=small, **GREEDY) for _ in range(2))
    chat.save(title="long")
    for _ in range(5):
        say(chat, "more and more " * 5)
        say(straight, "more and more " * 5)
    assert chat.cache.num_evicted > 128
    chat.close()
    resumed = model.resume("long")
    got, expected = say(resumed, "go on"), say(straight, "go on")
    resumed.close()
    assert (got.text, got.stats.cached_tokens) == (expected.text, expected.stats.cached_tokens)
    model.close()


def test_sampling_goes_on_as_if_the_process_had_never_ended(model: Model) -> None:
    wild = {"temperature": 1.5, "max_tokens": 12}
    chat = model.chat(cache=CONFIG, **wild)
    chat.save(title="dice")
    say(chat, "hi", seed=3)
    chat.close()
    twin = model.resume("dice", fork=True)
    expected = say(twin, "go on").text
    twin.close()
    say(model.chat(cache=CONFIG), "something else", seed=11)
    resumed = model.resume(str(chat.session_id))
    assert say(resumed, "go on").text == expected
    resumed.close()


def test_the_users_turn_is_on_disk_before_the_first_token(model: Model) -> None:
    chat = new(model)
    session = chat.save()
    events = chat.send("hi")
    next(events)
    assert [t.text for t in model.store.load(session).turns] == ["hi"]
    list(events)
    chat.close()


def test_after_a_crash_before_any_reply_the_roles_still_alternate(model: Model) -> None:
    chat = new(model)
    session = chat.save(title="crash")
    events = chat.send("hi")
    next(events)  # the process "dies" here: nothing is finished or closed in order
    chat.close()
    resumed = model.resume(session)
    say(resumed, "still there?")
    assert [m.role for m in resumed.messages] == ["user", "assistant", "user", "assistant"]
    resumed.close()
    del events


def test_another_model_is_a_notice_in_a_chat_and_nothing_is_lost(model: Model, tmp_path: Path) -> None:
    chat = new(model)
    say(chat, "hi")
    chat.save(title="moved")
    chat.close()
    other = mlxkv.load(str(tiny_folder(tmp_path / "other", seed=7, reverse=True)))
    resumed = other.resume("moved")
    assert resumed.restored is not None
    assert resumed.restored.tokens == 0
    assert "model" in (resumed.restored.notice or "")
    finished = say(resumed, "and you?")
    assert finished.stats.cached_tokens == 0
    assert [m.text for m in resumed.messages][:1] == ["hi"]
    # The ids that the first model sampled mean nothing to this one: its own tokenizer read the whole chat.
    prompt = resumed.cache.tokens[: finished.stats.prompt_tokens]
    assert prompt == other._prompts.encode(other._prompts.render(resumed._as_messages(resumed._said.turns[:-1])))
    resumed.close()
    back = other.resume("moved")
    assert back.restored is not None
    assert back.restored.tokens > 0  # it is the other model's session now
    back.close()
    other.close()


def test_another_window_is_read_again_with_a_notice_that_names_it(model: Model) -> None:
    chat = new(model)
    say(chat, "hi")
    chat.save(title="wide")
    chat.close()
    resumed = model.resume("wide", cache=replace(CONFIG, window=256))
    assert resumed.restored is not None
    assert resumed.restored.tokens == 0
    assert "window" in (resumed.restored.notice or "")
    resumed.close()


def test_one_session_is_open_once(model: Model, tiny_path: Path) -> None:
    chat = new(model)
    chat.save(title="mine")
    other = mlxkv.load(str(tiny_path))
    with pytest.raises(SessionLockedError):
        other.resume("mine")
    chat.close()
    other.resume("mine").close()
    other.close()


def test_an_unknown_session_lists_the_ones_there_are(model: Model) -> None:
    chat = new(model)
    chat.save(title="sky")
    chat.close()
    with pytest.raises(SessionNotFoundError, match="sky"):
        model.resume("earth")


def test_an_unsaved_chat_leaves_nothing_on_disk(model: Model, home: Path) -> None:
    say(new(model), "hi")
    assert not home.exists() or not any(home.rglob("*"))


# -- raw text and prompt caches --------------------------------------------------------------------------------------


def test_generate_equals_stream_and_counts(model: Model) -> None:
    result = model.generate("once upon", cache=CONFIG, **GREEDY)
    streamed = "".join(e.text for e in model.stream("once upon", cache=CONFIG, **GREEDY) if isinstance(e, TextDelta))
    assert result.text == streamed
    assert result.stats.generated_tokens == len(result.tokens)
    with pytest.raises(PromptError):
        model.generate("")
    with pytest.raises(ConfigError, match="temperature"):
        model.generate("x", temperature=-1.0)
    with pytest.raises(ConfigError, match="tempo"):
        model.generate("x", tempo=1)


def test_a_prompt_cache_is_read_once_saved_and_loaded(model: Model, tiny_path: Path, tmp_path: Path) -> None:
    pc = model.prefill("a long book. " * 12, CONFIG)
    straight = model.generate("who?", cache=pc.fork(), **GREEDY)
    assert straight.stats.cached_tokens == pc.offset
    assert straight.stats.prefill_tokens == 4
    pc.save(tmp_path / "book.kv")
    other = mlxkv.load(str(tiny_path))
    loaded = other.load_cache(tmp_path / "book.kv")
    assert loaded.tokens == pc.tokens
    again = other.generate("who?", cache=loaded, **GREEDY)
    assert (again.text, again.stats.cached_tokens) == (straight.text, straight.stats.cached_tokens)
    other.close()


def test_a_prompt_cache_of_another_model_or_a_damaged_one_is_an_error(model: Model, tmp_path: Path) -> None:
    model.prefill("a long book. " * 12, CONFIG).save(tmp_path / "book.kv")
    other = mlxkv.load(str(tiny_folder(tmp_path / "other", seed=7)))
    with pytest.raises(MismatchError) as error:
        other.load_cache(tmp_path / "book.kv")
    assert error.value.field
    other.close()
    whole = (tmp_path / "book.kv").read_bytes()
    (tmp_path / "cut.kv").write_bytes(whole[:-100])
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    (tmp_path / "flipped.kv").write_bytes(flipped)
    for name in ("cut.kv", "flipped.kv"):
        with pytest.raises(CorruptError):
            model.load_cache(tmp_path / name)


def test_a_window_that_does_not_fit_is_refused_before_anything_is_allocated(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("fake", False, 20_000_000, 20_000_000, False)
    monkeypatch.setattr("mlxkv.model.current_device", lambda: small)

    with pytest.raises(OutOfMemoryError, match="would fit"):
        model.chat(cache=mlxkv.CacheConfig(window=2**16))


def test_the_estimate_is_what_is_then_allocated(model: Model, tiny_path: Path) -> None:
    e = mlxkv.estimate(str(tiny_path), CONFIG)
    result = model.generate("once upon", cache=CONFIG, **GREEDY)
    assert e.cache_bytes == result.stats.cache_bytes
    assert e.weight_bytes == model.loaded.weight_bytes
    assert e.fits


def test_what_the_user_should_know_of_the_cache_is_said_once(model: Model) -> None:
    chat = model.chat(cache=mlxkv.CacheConfig(window=100, block=16), **GREEDY)
    notices = [e.text for turn in ("hi", "and?") for e in chat.send(turn) if isinstance(e, Notice)]
    assert notices == ["The window of 100 is rounded up to 112, whole blocks of 16."]


def test_a_long_prompt_goes_through_the_ring_with_one_notice(model: Model) -> None:
    chat = model.chat(cache=mlxkv.CacheConfig(window=64, block=16), **GREEDY)
    events = list(chat.send("much " * 60))
    assert len([e for e in events if isinstance(e, Notice)]) == 1
    assert chat.stats.evicted_tokens > 0
