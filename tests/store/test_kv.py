"""Saving and restoring rows: bit equality, only new rows written, forks, rewritten histories."""

from __future__ import annotations

import random

import pytest

from mlxkv.config import Folders
from mlxkv.errors import SessionChangedError
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model


def chunk_files(folders: Folders) -> set[str]:
    return {path.name for path in (folders.cache / "kv").glob("??/*.safetensors")}


@pytest.mark.parametrize("window", [None, 64, 128])
def test_a_session_resumes_with_the_very_same_rows(folders: Folders, window: int | None) -> None:
    with SessionStore.open(folders) as store:
        talk = Talk(store, FakeCache(window))
        for n in (30, 3, 90, 41, 1, 200):
            talk.turn(n)
    with SessionStore.open(folders) as store:
        record = store.load(talk.id)
        assert list(record.log) == talk.cache.tokens
        fresh = FakeCache(window, run=1)
        restored = store.restore_kv(talk.id, fresh, model(), record.log)
    assert restored.tokens == 365
    assert restored.notice is None
    assert restored.rng == bytes([365 - 200])
    assert fresh.state() == talk.cache.state()


def test_evicted_blocks_come_back_when_they_are_at_hand(store: SessionStore) -> None:
    talk = Talk(store, FakeCache(64))
    for _ in range(8):
        talk.turn(40)
    fresh = FakeCache(64)
    store.restore_kv(talk.id, fresh, model(), fresh_ids := talk.cache.tokens)
    group = fresh.groups[0]
    for a, b in group.optional(len(fresh_ids)):
        assert all(p in group.rows for p in range(a, b))
    assert group.imports == sorted(group.imports)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "block"), [(None, 16), (None, 256), (1024, 64), (2048, 256)])
def test_a_row_is_written_once(store: SessionStore, window: int | None, block: int) -> None:
    """50 turns of 40 to 400 tokens write at most 1.25 times the rows' bytes, headers included."""
    cache = FakeCache(window, block=block, dim=16)
    talk, rng = Talk(store, cache), random.Random(1)
    for _ in range(50):
        talk.turn(rng.randint(40, 400))
    seen = len(cache.tokens) * sum(group.row_bytes for group in cache.groups)
    assert 0.95 * seen < talk.bytes_written <= 1.25 * seen
    assert store.num_bytes_written(talk.id) == talk.bytes_written
    assert store.disk_bytes(talk.id) <= talk.bytes_written


@pytest.mark.slow
def test_short_saves_write_what_is_new_until_eight_of_them_become_one(talk: Talk) -> None:
    talk.turn(100)
    row_bytes = sum(group.row_bytes for group in talk.cache.groups)
    written, files = [], []
    for _ in range(16):
        before = talk.bytes_written
        talk.turn(5)
        written.append((talk.bytes_written - before) / row_bytes)
        restored = talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens)
        assert restored.tokens == len(talk.cache.tokens)
        files.append(restored.bytes)
    headers = 12  # rows' worth of bytes, of one file for each of the two groups
    rows = [5] * 7 + [40] + [5] * 6 + [40 + 35] + [5]
    assert all(r < w < r + headers for w, r in zip(written, rows, strict=True))
    assert files[7] < files[6]  # fewer headers


def test_a_second_commit_writes_nothing(talk: Talk) -> None:
    talk.turn(100)
    assert talk.store.commit_kv(talk.id, talk.cache, model(), b"new").bytes_written == 0
    restored = talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens)
    assert restored.rng == b"new"


def test_the_sinks_are_a_chunk_that_another_session_shares(store: SessionStore, folders: Folders) -> None:
    first = Talk(store, FakeCache(sinks=8, block=16))
    first.turn(40)
    second = Talk(store, FakeCache(sinks=8, block=16))
    second.turn(40)
    assert second.bytes_written == 0
    store.delete(first.id)
    restored = store.restore_kv(second.id, FakeCache(sinks=8, block=16), model(), second.cache.tokens)
    assert restored.tokens == 40
    store.delete(second.id)
    assert chunk_files(folders) == set()


def test_a_fork_writes_no_rows_and_resumes_where_it_was_cut(store: SessionStore, folders: Folders) -> None:
    talk = Talk(store, FakeCache(64))
    for _ in range(6):
        talk.turn(50)
    before = chunk_files(folders)
    fork = store.fork(talk.id, 5)  # the third user turn has no reply: the newest commit lies before it
    assert chunk_files(folders) == before
    assert store.num_bytes_written(fork) == 0
    record = store.load(fork)
    assert (record.parent, record.forked_at, len(record.turns), record.title) == (talk.id, 5, 5, "talk (2)")
    assert store.load(store.fork(fork, 2)).title == "talk (3)"
    fresh = FakeCache(64, run=1)
    restored = store.restore_kv(fork, fresh, model(), record.log)
    assert (restored.tokens, restored.notice) == (100, None)
    uninterrupted = FakeCache(64)
    uninterrupted.feed(talk.cache.tokens[:100])
    assert fresh.state() == uninterrupted.state()
    store.delete(talk.id)
    assert store.restore_kv(fork, FakeCache(64), model(), record.log).tokens == 100


def test_a_prompt_that_leaves_the_log_gets_the_common_prefix(talk: Talk) -> None:
    for _ in range(3):
        talk.turn(60)
    ids = [*talk.cache.tokens[:130], 9, 9, 9]
    fresh = FakeCache(run=1)
    restored = talk.store.restore_kv(talk.id, fresh, model(), ids)
    assert (restored.tokens, restored.notice, restored.rng) == (130, None, None)
    uninterrupted = FakeCache()
    uninterrupted.feed(ids[:130])
    assert fresh.state() == uninterrupted.state()


def test_rewritten_history_uses_only_the_rows_before_the_change(store: SessionStore) -> None:
    talk = Talk(store, FakeCache())
    talk.turn(100)
    talk.turn(100)
    cache = FakeCache()
    cache.feed([*talk.cache.tokens[:150], *range(9000, 9050)])
    store.add_turn(talk.id, TurnRecord("user", "rewritten", tuple(range(9000, 9050)), start=150))
    fresh = FakeCache(run=1)
    record = store.load(talk.id)
    assert list(record.log) == cache.tokens
    assert store.restore_kv(talk.id, fresh, model(), record.log).tokens == 150
    done = store.commit_kv(talk.id, cache, model())
    assert done.pos == 200
    assert 0 < done.bytes_written < 1.5 * 50 * sum(g.row_bytes for g in cache.groups)
    restored = store.restore_kv(talk.id, fresh, model(), record.log)
    assert (restored.tokens, restored.notice) == (200, None)
    assert fresh.state() == cache.state()
    fresh.feed([1, 2, 3])
    cache.feed([1, 2, 3])
    assert fresh.tokens == cache.tokens


def test_rows_evicted_within_one_turn_leave_a_gap_that_does_not_matter(store: SessionStore) -> None:
    talk = Talk(store, FakeCache(64))
    talk.turn(20)
    talk.turn(500)
    fresh = FakeCache(64, run=1)
    assert store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens == 520
    assert fresh.state() == talk.cache.state()


def test_a_log_that_the_wrapped_ring_has_left_is_not_saved(store: SessionStore) -> None:
    talk = Talk(store, FakeCache(64))
    talk.cache.feed(range(300))
    store.add_turn(talk.id, TurnRecord("user", "short", tuple(range(40))))
    done = store.commit_kv(talk.id, talk.cache, model())
    assert (done.pos, done.bytes_written) == (0, 0)
    assert done.notice is not None
    assert "40" in done.notice


def test_the_log_may_be_a_token_longer_than_the_cache(store: SessionStore) -> None:
    talk = Talk(store, FakeCache())
    talk.cache.feed(range(50))
    store.add_turn(talk.id, TurnRecord("user", "x", tuple(range(51))))
    assert store.commit_kv(talk.id, talk.cache, model()).pos == 50
    assert store.restore_kv(talk.id, FakeCache(), model(), list(range(51))).tokens == 50


@pytest.mark.parametrize(
    ("other", "settings", "field"),
    [
        (model(**{"config.hidden": "16"}), {}, "config.hidden"),
        (model(**{"file.model.safetensors": "1:cd"}), {}, "file.model.safetensors"),
        (model(**{"code.llama": "ff"}), {}, "code.llama"),
        (model(), {"sinks": 8}, "sinks"),
        (model(), {"window": 64}, "window"),
    ],
)
def test_another_model_or_layout_costs_tokens_and_a_notice_names_the_field(
    talk: Talk, other: object, settings: dict[str, int], field: str
) -> None:
    talk.turn(100)
    fresh = FakeCache(**settings)
    restored = talk.store.restore_kv(talk.id, fresh, other, talk.cache.tokens)  # type: ignore[arg-type]
    assert (restored.tokens, fresh.tokens) == (0, [])
    assert restored.notice is not None
    assert f"`{field}`" in restored.notice
    assert talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 100


def test_a_template_alone_does_not_matter(talk: Talk) -> None:
    talk.turn(100)
    other = model(**{"template.tokenizer.json": "x"})
    assert talk.store.restore_kv(talk.id, FakeCache(), other, talk.cache.tokens).tokens == 100


@pytest.mark.parametrize("what", ["adds a turn", "replaces the reply", "deletes the chat"])
def test_rows_are_only_committed_on_the_history_they_were_computed_from(
    folders: Folders, talk: Talk, what: str
) -> None:
    talk.turn(100)
    before = chunk_files(folders)
    talk.store.add_turn(talk.id, TurnRecord("assistant", "more", (1, 2), state="open"))
    talk.cache.feed([1, 2])
    export = talk.cache.groups[0].export_rows

    def other_process_writes(a: int, b: int) -> dict:
        with SessionStore.open(folders) as other:
            other.load(talk.id)
            if what == "adds a turn":
                other.add_turn(talk.id, TurnRecord("user", "from elsewhere", (3,)))
            elif what == "replaces the reply":
                other.update_open_turn(talk.id, TurnRecord("assistant", "other", (7, 8)))
            else:
                other.delete(talk.id)
        return export(a, b)

    talk.cache.groups[0].export_rows = other_process_writes  # type: ignore[method-assign]
    if what == "adds a turn":  # they are rows of the beginning still
        assert talk.store.commit_kv(talk.id, talk.cache, model()).pos == 102
        fresh, ids = FakeCache(run=1), talk.store.load(talk.id).log
        assert talk.store.restore_kv(talk.id, fresh, model(), ids).tokens == 102
        assert fresh.state() == talk.cache.state()
        return
    with pytest.raises(SessionChangedError):
        talk.store.commit_kv(talk.id, talk.cache, model())
    assert chunk_files(folders) == (set() if what == "deletes the chat" else before)


def test_a_session_that_was_never_saved_restores_nothing_silently(store: SessionStore) -> None:
    session = store.sessions.create("x", model())
    assert store.restore_kv(session, FakeCache(), model(), [1, 2]).notice is None
