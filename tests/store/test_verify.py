"""`SessionStore.verify` finds every kind of damage, repairs what it can, and finds nothing in an intact store."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model
from tests.store.test_damage import DAMAGE, chunks


def sql(statement: str) -> Callable[[Folders], None]:
    def run(folders: Folders) -> None:
        db = sqlite3.connect(folders.data / "mlxkv.db")
        db.execute("PRAGMA foreign_keys=0")
        db.execute(statement)
        db.commit()
        db.close()

    return run


def leave(folders: Folders) -> None:
    (folders.cache / "kv" / "tmp" / "left").write_bytes(b"x")


def leave_chunk(folders: Folders) -> None:
    """Complete, but no transaction came to refer to it."""
    path = folders.cache / "kv" / "ab" / f"{'ab' * 16}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")


def test_a_sound_store_has_no_problems(talk: Talk) -> None:
    talk.turn(100)
    talk.turn(30)
    report = talk.store.verify()
    assert report.ok
    assert report.problems == ()
    assert (report.num_sessions, report.num_turns) == (1, 4)
    assert report.num_chunks == len(list((talk.store._chunks.root).glob("??/*")))
    assert report.num_bytes == talk.store.disk_bytes(talk.id)
    assert report.disk_bytes > report.num_bytes


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_found_and_let_go_of(talk: Talk, folders: Folders, damage: str) -> None:
    talk.turn(100)
    path = chunks(folders)[0]
    DAMAGE[damage](path)
    found = talk.store.verify()
    if damage == "missing":
        assert [(p.kind, p.subject, p.repaired) for p in found.problems] == [("missing", "kv", False)]
    else:
        assert [(p.kind, p.subject, p.repaired) for p in found.problems if p.is_serious] == [
            ("chunk", path.stem, False)
        ]
    assert found.ok == (damage == "missing")
    repaired = talk.store.verify(repair=True)
    assert repaired.ok
    assert talk.store.verify().problems == ()
    fresh = FakeCache(run=1)
    restored = talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens)
    uninterrupted = FakeCache()
    uninterrupted.feed(talk.cache.tokens[: restored.tokens])
    assert restored.tokens < 100
    assert fresh.state() == uninterrupted.state()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("turns", sql("UPDATE turn SET text = 'forged' WHERE i = 0")),
        ("turns", sql("UPDATE session SET system = 'forged'")),
        ("turns", sql("UPDATE session SET settings = '[]'")),
        ("turns", sql("UPDATE session SET params = 'x'")),
        ("turns", sql("UPDATE model SET json = '{}'")),
        ("turns", sql("UPDATE turn SET extra = '{}' WHERE i = 1")),
        ("commit", sql("UPDATE kv_commit SET pos = pos - 1")),
        ("chunk", sql("UPDATE chunk SET a = a + 1 WHERE rowid = 1")),
        ("chunk", sql("UPDATE chunk SET prefix_key = 'aa' WHERE rowid = 1")),
        ("search", sql("DELETE FROM turn_fts_data WHERE id > 100")),
        ("database", sql("UPDATE session SET parent = 'nobody'")),
        ("orphan", leave),
        ("orphan", leave_chunk),
    ],
)
def test_other_damage_is_found_and_mended_where_that_can_be(
    talk: Talk, folders: Folders, what: str, damage: Callable[[Folders], None]
) -> None:
    talk.turn(100)
    damage(folders)
    found = talk.store.verify()
    assert what in {p.kind for p in found.problems}
    assert found.ok == (what == "orphan")
    talk.store.verify(repair=True)
    again = talk.store.verify()
    lasting = {"turns", "database"} & {what}
    assert {p.kind for p in again.problems} == lasting
    assert again.ok == (not lasting)


@pytest.mark.parametrize("damage", ["truncated", "empty", "extended", "link", "pipe"])
def test_a_quick_look_reads_no_rows_but_sees_what_is_not_there(talk: Talk, folders: Folders, damage: str) -> None:
    talk.turn(100)
    sound = talk.store.verify(quick=True)
    assert sound.ok
    assert (sound.num_bytes, sound.num_turns, sound.num_chunks) == (0, 2, len(chunks(folders)))
    path = chunks(folders)[0]
    DAMAGE["data, last"](path)
    assert talk.store.verify(quick=True).ok
    DAMAGE[damage](path)
    found = talk.store.verify(quick=True)
    assert [(p.kind, p.subject) for p in found.problems if p.is_serious] == [("chunk", path.stem)]


@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_that_was_cleared_is_a_notice(talk: Talk, folders: Folders, quick: bool) -> None:
    """Deleting it is allowed: it costs time and no words. One line says so, whatever was in it."""
    talk.turn(100)
    num_chunks = len(chunks(folders))
    shutil.rmtree(folders.cache)
    report = talk.store.verify(quick=quick)
    assert report.ok
    (problem,) = report.problems
    assert f"{num_chunks} of {num_chunks} chunks" in problem.text
    assert (report.num_turns, report.disk_bytes) == (2, 0)
    assert talk.store.verify(repair=True, quick=quick).problems[0].repaired
    assert talk.store.verify().problems == ()


def test_repairing_never_touches_turns(talk: Talk, folders: Folders) -> None:
    talk.turn(60)
    before = talk.store.load(talk.id)
    for path in chunks(folders):
        DAMAGE["data, last"](path)
    (folders.cache / "kv" / "quarantine").mkdir(exist_ok=True)
    assert talk.store.verify(repair=True).ok
    assert talk.store.load(talk.id) == before
    assert chunks(folders) == []
    with SessionStore.open(folders) as again:
        assert again.load(talk.id) == before


def test_verifying_writes_nothing(talk: Talk, folders: Folders) -> None:
    talk.turn(60)
    DAMAGE["data, last"](chunks(folders)[0])

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (folders.cache / "kv").rglob("*")}

    before = state()
    talk.store.verify()
    assert state() == before
