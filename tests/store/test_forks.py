"""Going back to any message of a chat whose window has long wrapped: exact, from disk, without reading it again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.cache.recurrent.spacing import SLACK
from mlxkv.config import Folders
from mlxkv.model import Model
from tests.chats import GREEDY, say
from tests.hybrids import hybrid_folder
from tests.store.test_damage import chunks
from tests.tokenizers import tiny_folder, tiny_tokenizer

TEXTS = ("one " * 9, "two and some more " * 4, "three " * 11, "four, at last " * 3, "five " * 8)


def rows(chat: mlxkv.Chat) -> list[mx.array]:
    """Everything that a continuation reads."""
    cache = chat.cache
    return [
        x
        for group in cache.groups
        for a, b in group.required(cache.offset)
        for _, x in sorted(group.export_rows(a, b).items())
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [{}, {"hidden": 128, "bits": 4}, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 40}],
    ids=["wrapped", "4 bits", "sliding"],
)
def test_every_message_can_be_gone_back_to_exactly(args: dict[str, Any], tmp_path: Path) -> None:
    bits = args.pop("bits", None)
    model = mlxkv.load(str(tiny_folder(tmp_path / "model", **args)))
    small = mlxkv.CacheConfig(window=128, block=16, slack=16, sinks=4, bits=bits)
    chat = model.chat(cache=small, **GREEDY)
    session = chat.save()
    for text in TEXTS:
        say(chat, text)
    assert chat.cache.num_evicted > 128
    chat.close()
    written = model.store.num_bytes_written()
    read = []
    for i in range(len(TEXTS)):
        back = model.resume(session, fork=True)
        assert back.rewind(2 * i) == TEXTS[i]
        straight = model.chat(cache=small, **GREEDY)
        for text in TEXTS[:i]:
            say(straight, text)
        got, expected = say(back, "again?"), say(straight, "again?")
        assert got.text == expected.text
        assert got.stats.prefill_tokens <= max(expected.stats.prefill_tokens, 1)
        assert all(mx.array_equal(a, b).item() for a, b in zip(rows(back), rows(straight), strict=True))
        read.append(got.stats.prefill_tokens)
        back.close()
    model.close()
    print(f"read again at each of {len(read)} messages: {read} tokens; {written:,} bytes were saved before")


@pytest.mark.slow
def test_hybrids_go_back_to_the_beginning_of_a_turn(tmp_path: Path) -> None:
    """Recurrent layers stand where a snapshot was kept: where the last turns began, and before their replies."""
    model = mlxkv.load(str(hybrid_folder(tmp_path / "jamba", "jamba", tiny_tokenizer())))
    chat, straight = (model.chat(cache=mlxkv.CacheConfig(window=512), **GREEDY) for _ in range(2))
    session = chat.save()
    for text in TEXTS[:3]:
        say(chat, text)
    for text in TEXTS[:2]:
        say(straight, text)
    end, target = chat.cache.offset, straight.cache.offset
    chat.close()
    back = model.resume(session, fork=True)
    assert back.rewind(4) == TEXTS[2]
    got, expected = say(back, "again?"), say(straight, "again?")
    back.close()
    model.close()
    assert got.text == expected.text
    assert target - got.stats.cached_tokens <= (end - target) / 2 + SLACK
    assert all(mx.array_equal(a, b).item() for a, b in zip(rows(back), rows(straight), strict=True))


@pytest.mark.slow
def test_where_the_rows_are_gone_only_what_is_missing_is_read(model: Model, folders: Folders) -> None:
    small = mlxkv.CacheConfig(window=128, block=16, slack=16, sinks=4)
    chat = model.chat(cache=small, **GREEDY)
    chat.save()
    kept = []
    for text in TEXTS:
        say(chat, text)
        chat.save()
        kept.append(set(chunks(folders)))
    for path in kept[2] - kept[1]:  # what the third exchange added
        path.unlink()
    straight = model.chat(cache=small, **GREEDY)
    for text in TEXTS[:3]:
        say(straight, text)
    chat.rewind(6)
    got, expected = say(chat, "again?"), say(straight, "again?")
    chat.close()
    assert got.text == expected.text
    assert expected.stats.prefill_tokens < got.stats.prefill_tokens < got.stats.prompt_tokens


@pytest.mark.slow
def test_a_fork_of_a_long_chat_writes_no_rows(model: Model, folders: Folders) -> None:
    chat = model.chat(cache=mlxkv.CacheConfig(window=2048), **GREEDY)
    for n in range(5):
        say(chat, f"{n} " + "x" * 380)
    chat.save()
    assert chat.cache.offset > 2000
    files, written, usage = set(chunks(folders)), model.store.num_bytes_written(), model.store.disk_usage()
    cpu, wall = [], []
    for turn in (None, 7, 0):
        begun, started = time.process_time(), time.perf_counter()
        twin = chat.fork(turn)
        cpu.append(time.process_time() - begun)
        wall.append(time.perf_counter() - started)
        twin.close()
    print(f"fork at {chat.cache.offset:,} tokens: {[f'{s * 1e3:.0f}' for s in cpu]} ms CPU (target 50),"
          f" {[f'{s * 1e3:.0f}' for s in wall]} ms, 0 bytes")  # fmt: skip
    assert set(chunks(folders)) == files
    assert (model.store.num_bytes_written(), model.store.disk_usage()) == (written, usage)
    chat.close()


def test_a_new_chat_starts_from_the_system_prompt_of_another(model: Model) -> None:
    system = "be good. " * 40
    config = mlxkv.CacheConfig(window=2048, block=64)
    first = model.chat(system, config, autosave=True, **GREEDY)
    say(first, "hi")
    first.close()
    second, straight = model.chat(system, config, autosave=True, **GREEDY), model.chat(system, config, **GREEDY)
    *events, got = second.send("hello")
    expected = say(straight, "hello")
    assert isinstance(got, mlxkv.TurnFinished)
    assert got.text == expected.text
    assert got.stats.cached_tokens >= 360
    assert got.stats.prefill_tokens < 40
    notices = [e.text for e in events if isinstance(e, mlxkv.Notice)]
    assert [n for n in notices if "earlier chat" in n] == [
        f"Reused {got.stats.cached_tokens:,} tokens of an earlier chat with the same prefix."
    ]
    second.close()
    first_id = str(first.session_id)
    model.store.delete(first_id)
    again = model.resume(str(second.session_id))
    assert again.restored is not None
    assert (again.restored.tokens, again.restored.notice) == (second.cache.offset, None)
    again.close()


@pytest.fixture
def folders(home: Path) -> Folders:
    return Folders.from_env()
