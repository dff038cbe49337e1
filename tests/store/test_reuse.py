"""Rows of another session: a prompt that begins alike starts from them, and never from anything else's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model
from tests.store.test_damage import chunks, flip_first_row

DOCUMENT = tuple(range(5000, 5300))


def told(
    store: SessionStore, ids: tuple[int, ...], cache: FakeCache, identity: ModelIdentity | None = None, more: int = 0
) -> str:
    """A saved session in which `ids` were said, and then `more` others."""
    session = store.sessions.create("told", identity or model())
    for part in (ids, tuple(range(more))):
        if part:
            store.add_turn(session, TurnRecord("user", "x", part))
            cache.feed(part)
            store.commit_kv(session, cache, identity or model())
    return session


def asked(store: SessionStore, ids: tuple[int, ...], identity: ModelIdentity | None = None) -> str:
    """A new session with a prompt that nothing was computed of."""
    session = store.sessions.create("asked", identity or model())
    store.add_turn(session, TurnRecord("user", "x", ids))
    return session


@pytest.mark.parametrize("window", [None, 64, 512])
def test_a_new_session_starts_from_the_rows_of_one_that_began_alike(store: SessionStore, window: int | None) -> None:
    told(store, DOCUMENT, FakeCache(window), more=50)
    prompt = (*DOCUMENT, 77, 78, 79)
    session = asked(store, prompt)
    fresh, straight = FakeCache(window, run=1), FakeCache(window)
    restored = store.restore_kv(session, fresh, model(), prompt)
    straight.feed(prompt[: restored.tokens])
    assert fresh.state() == straight.state()
    assert (restored.tokens, restored.shared, restored.notice, restored.rng) == (300, 300, None, None)


def test_the_longest_common_beginning_counts(store: SessionStore) -> None:
    told(store, (*DOCUMENT[:100], 1, 2, 3), FakeCache())
    told(store, (*DOCUMENT[:250], 1, 2, 3), FakeCache())
    told(store, (*DOCUMENT[:40], 1, 2, 3), FakeCache())
    session = asked(store, DOCUMENT)
    assert store.restore_kv(session, FakeCache(), model(), DOCUMENT).tokens == 250


def test_what_was_taken_over_is_not_written_again_and_outlives_its_first_owner(
    store: SessionStore, folders: Folders
) -> None:
    first = told(store, DOCUMENT, FakeCache())
    prompt = (*DOCUMENT, *range(40))
    session = asked(store, prompt)
    cache = FakeCache(run=1)
    store.restore_kv(session, cache, model(), prompt)
    cache.feed(prompt[len(cache.tokens) :])
    assert store.commit_kv(session, cache, model()).bytes_written < 80 * sum(g.row_bytes for g in cache.groups)
    store.delete(first)
    fresh = FakeCache(run=2)
    restored = store.restore_kv(session, fresh, model(), prompt)
    assert (restored.tokens, restored.shared, restored.notice) == (len(prompt), 0, None)
    assert fresh.state() == cache.state()
    store.delete(session)
    assert chunks(folders) == []


def test_a_session_whose_rows_are_gone_takes_those_of_its_like(store: SessionStore, folders: Folders) -> None:
    one = told(store, DOCUMENT, FakeCache())
    for path in chunks(folders):
        path.unlink()
    assert store.restore_kv(one, FakeCache(), model(), DOCUMENT).tokens == 0
    told(store, DOCUMENT, FakeCache())
    restored = store.restore_kv(one, FakeCache(), model(), DOCUMENT)
    assert (restored.tokens, restored.shared) == (300, 300)


@pytest.mark.parametrize(
    ("identity", "settings"),
    [
        (model(**{"config.hidden": "16"}), {}),
        (model(**{"code.llama": "ff"}), {}),
        (model(), {"sinks": 8}),
        (model(), {"window": 512}),
    ],
)
def test_never_across_models_or_layouts(store: SessionStore, identity: ModelIdentity, settings: dict[str, int]) -> None:
    told(store, DOCUMENT, FakeCache(**settings), identity)
    session = asked(store, DOCUMENT)
    assert store.restore_kv(session, FakeCache(), model(), DOCUMENT).tokens == 0


@pytest.mark.parametrize("window", [None, 512])
def test_of_a_session_with_two_layouts_only_the_rows_of_this_one_are_taken(
    store: SessionStore, window: int | None
) -> None:
    caches = {None: FakeCache(), 512: FakeCache(512, run=7)}
    other = told(store, DOCUMENT, caches[None])
    caches[512].feed(DOCUMENT)
    store.commit_kv(other, caches[512], model())
    fresh = FakeCache(window, run=9)
    assert store.restore_kv(asked(store, DOCUMENT), fresh, model(), DOCUMENT).tokens == 300
    assert fresh.state() == caches[window].state()


def test_ids_are_compared_as_well_as_keys(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every key collided: what decides is the ids."""
    told(store, tuple(range(300)), FakeCache())
    store._database.db.execute("UPDATE chunk SET prefix_key = '00'")
    monkeypatch.setattr("mlxkv.store.kv.chunk_format.PrefixKeys.key", lambda *args: "00")
    session = asked(store, DOCUMENT)
    assert store.restore_kv(session, FakeCache(), model(), DOCUMENT).tokens == 0


def test_a_damaged_chunk_of_another_session_is_set_aside(store: SessionStore, folders: Folders) -> None:
    told(store, DOCUMENT, FakeCache())
    for path in chunks(folders):
        flip_first_row(path)
    session = asked(store, DOCUMENT)
    fresh = FakeCache()
    restored = store.restore_kv(session, fresh, model(), DOCUMENT)
    assert (restored.tokens, fresh.tokens) == (0, [])
    assert "damaged" in (restored.notice or "")
    assert list((folders.cache / "kv" / "quarantine").iterdir())


def test_a_damaged_session_lends_nothing(store: SessionStore) -> None:
    other = told(store, DOCUMENT, FakeCache())
    store._database.db.execute("UPDATE turn SET text = 'y' WHERE session = ?", (other,))
    session = asked(store, DOCUMENT)
    assert store.restore_kv(session, FakeCache(), model(), DOCUMENT).tokens == 0


def test_what_is_in_memory_is_not_read_again(talk: Talk) -> None:
    talk.turn(100)
    before = list(talk.cache.tokens)
    restored = talk.store.restore_kv(talk.id, talk.cache, model(), [*before, 1, 2, 3], held=100)
    assert (restored.tokens, restored.bytes, restored.notice) == (0, 0, None)
    assert talk.cache.tokens == before


def test_a_vanished_folder_is_no_error(store: SessionStore, folders: Folders) -> None:
    told(store, DOCUMENT, FakeCache())
    shutil.rmtree(folders.cache / "kv")
    Path(folders.cache / "kv").mkdir(mode=0o700)
    session = asked(store, DOCUMENT)
    assert store.restore_kv(session, FakeCache(), model(), DOCUMENT).tokens == 0


def test_what_is_saved_nowhere_borrows_and_writes_nothing(store: SessionStore, folders: Folders) -> None:
    told(store, DOCUMENT, FakeCache(), more=50)
    prompt = (*DOCUMENT, 77, 78, 79)
    db = store._database.db

    def state() -> list[object]:
        tables = [db.execute(f"SELECT * FROM {name}").fetchall() for name in ("session", "chunk", "kv_ref", "meta")]
        return [tables, {path: path.stat().st_mtime_ns for path in folders.cache.rglob("*")}]

    before = state()
    fresh, straight = FakeCache(run=1), FakeCache()
    borrowed = store.borrow_kv(fresh, model(), prompt)
    straight.feed(DOCUMENT)
    assert fresh.state() == straight.state()
    assert (borrowed.tokens, borrowed.shared, borrowed.notice, borrowed.rng) == (300, 300, None, None)
    assert store.borrow_kv(FakeCache(run=1), model(), (1, *prompt)).tokens == 0
    assert store.borrow_kv(FakeCache(run=1), model(**{"file.model.safetensors": "2:cd"}), prompt).tokens == 0
    assert state() == before


def test_a_damaged_chunk_is_passed_over_and_left_to_its_owner(store: SessionStore, folders: Folders) -> None:
    session = told(store, DOCUMENT, FakeCache())
    for path in chunks(folders):
        flip_first_row(path)
    there = chunks(folders)
    fresh = FakeCache(run=1)
    borrowed = store.borrow_kv(fresh, model(), DOCUMENT)
    assert (borrowed.tokens, borrowed.notice) == (0, None)
    assert not any(group.rows for group in fresh.groups)
    assert chunks(folders) == there
    assert "damaged" in str(store.restore_kv(session, fresh, model(), DOCUMENT).notice)


def test_what_the_cache_holds_already_is_kept_where_nobody_has_more(store: SessionStore) -> None:
    told(store, DOCUMENT[:100], FakeCache())
    cache = FakeCache()
    cache.feed(DOCUMENT[:200])
    assert store.borrow_kv(cache, model(), DOCUMENT, held=200).tokens == 0
    assert cache.tokens == list(DOCUMENT[:200])
