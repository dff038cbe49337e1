"""Saved chats, through the public API: they go on bit by bit, and what does not fit costs a notice and nothing more."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.cli import print_mode
from mlxkv.cli.start import model_name
from mlxkv.config import Folders, load_settings
from mlxkv.errors import SessionNotFoundError
from mlxkv.model import Model
from mlxkv.store.records import Restored
from tests.chats import CONFIG, GREEDY, new, say
from tests.tokenizers import tiny_folder


@pytest.mark.slow
def test_a_resumed_chat_goes_on_bit_by_bit_without_reading_anything_again(model: Model, tiny_path: Path) -> None:
    chat, straight = new(model, system="be"), new(model, system="be")
    for text in ("hi", "and you?"):
        say(chat, text)
        say(straight, text)
    session = chat.save(title="sky")
    shown = replace(say(chat, "go on").stats, disk_bytes=0, disk_written_bytes=0)
    say(straight, "go on")
    chat.close()
    again = mlxkv.load(str(tiny_path))
    resumed = again.resume("sky")
    assert resumed.restored is not None
    assert (resumed.restored.tokens, resumed.restored.notice) == (chat.cache.offset, None)
    assert resumed.messages == chat.messages
    assert resumed.messages[-1].stats == shown, "the same figures, seconds included"
    got, expected = say(resumed, "go on"), say(straight, "go on")
    assert got.text == expected.text
    assert got.stats.prefill_tokens == expected.stats.prefill_tokens
    assert got.stats.disk_written_bytes > 0
    resumed.close()
    again.close()
    assert session == resumed.session_id


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        {},
        {"dtype": mx.bfloat16},
        {"hidden": 128, "bits": 8},
        {"hidden": 128, "bits": (8, 4), "dtype": mx.bfloat16},
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 40},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ],
    ids=["float32", "bfloat16", "8 bits", "8 and 4 bits", "sliding", "yarn"],
)
def test_a_wrapped_chat_resumes_bit_by_bit(args: dict[str, Any], tmp_path: Path) -> None:
    bits = args.pop("bits", None)
    model = mlxkv.load(str(tiny_folder(tmp_path / "model", **args)))
    small = mlxkv.CacheConfig(window=128, block=16, sinks=4, bits=bits)
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


@pytest.mark.slow
def test_what_had_rotated_out_is_not_said_to_be_resumed(model: Model) -> None:
    """Wherever in a block the chat ends: at its end, the next token would evict one more."""
    for i in range(16):
        chat = model.chat(cache=mlxkv.CacheConfig(window=128, block=16, sinks=4), autosave=True, temperature=0.0)
        for _ in chat.send("a long one. " * 20 + "x" * i, max_tokens=1):
            pass
        kept, session = chat.cache.num_attended, chat.session_id
        assert session
        assert chat.cache.num_evicted
        chat.close()
        with model.resume(session) as again:
            assert again.restored
            assert again.restored.tokens - again.restored.evicted == kept
            assert f"restored {kept} tok + {again.restored.evicted} evicted in" in print_mode._restored(again)


def test_nothing_is_said_of_a_chat_of_which_nothing_came_back() -> None:
    def told(**back: Any) -> str:
        return print_mode._restored(cast("Any", SimpleNamespace(restored=Restored(0, 0, 0.0, **back))))

    assert told() == ""
    assert told(notice="Rows are damaged.") == "Rows are damaged."
    assert print_mode._restored(cast("Any", SimpleNamespace(restored=None))) == ""


def test_a_chat_saved_with_parameters_that_are_refused_now_is_resumed_without_them(model: Model) -> None:
    sampling = {"temperature": 0.5, "presence_penalty": 1e9, "top_p": "x", "another version's": 1}
    session = model.store.sessions.create("odd", model.identity, params={"sampling": sampling, "think": "maybe"})
    with model.resume(session) as chat:
        assert (chat._params, chat.thinking) == (mlxkv.SamplingParams(temperature=0.5), None)


@pytest.mark.slow
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
    chat.cancel(keep_message=True)  # what is on disk then is what a crash leaves
    list(events)
    assert [t.role for t in model.store.load(session).turns] == ["user"]
    chat.close()
    resumed = model.resume(session)
    say(resumed, "still there?")
    assert [m.role for m in resumed.messages] == ["user", "assistant", "user", "assistant"]
    resumed.close()


@pytest.mark.slow
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
    assert prompt == other._runtime.prompts.encode(
        other._runtime.prompts.render(resumed._history.messages(resumed.turns[:-1]))
    )
    resumed.close()
    back = other.resume("moved")
    assert back.restored is not None
    assert back.restored.tokens > 0  # it is the other model's session now
    back.close()
    other.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_model_that_moved_is_remembered(tmp_path: Path, is_gone: bool) -> None:
    old, here = tiny_folder(tmp_path / "old"), tmp_path / "new"
    model = mlxkv.load(str(old))
    chats = [new(model) for _ in range(3)]
    for chat, title in zip(chats, ("other", "copied", "last"), strict=True):
        say(chat, "hi")
        chat.save(title=title)
        chat.close()
    num_tokens = chats[2].cache.offset
    model.close()
    shutil.copytree(old, here)
    if is_gone:
        shutil.rmtree(old)
    moved = mlxkv.load(str(here))
    resumed = moved.resume("last")
    assert resumed.restored is not None
    assert (resumed.restored.tokens, resumed.restored.notice) == (num_tokens, None)
    resumed.close()
    names = {chat.title: chat.model for chat in moved.store.list()}
    moved.close()
    assert model_name(Folders.from_env(), load_settings(Folders.from_env()), None) == str(here)  # what `-c` loads
    others = str(here if is_gone else old)
    assert names == {"last": str(here), "copied": others, "other": others}


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
    reader = other.resume("mine")
    assert "is open in process" in (reader.read_only or "")
    reader.close()
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
