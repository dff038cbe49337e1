"""Copies of the chats: one a day, one before a migration, and going back to one loses neither the old nor the new."""

from __future__ import annotations

import datetime
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.errors import CorruptError, StoreError
from mlxkv.store.db import backup
from mlxkv.store.files import Files
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model

DAY = datetime.date(2099, 3, 1)  # so that the copy of today, which opening makes, is not in the way


def say(folders: Folders, text: str) -> None:
    with SessionStore.open(folders) as store:
        session = store.sessions.latest() or store.sessions.create("talk", model())
        store.load(session)
        store.add_turn(session, TurnRecord("user", text, (1, 2)))


def texts(folders: Folders) -> list[str]:
    with SessionStore.open(folders) as store:
        return [turn.text for chat in store.list() for turn in store.load(chat.id).turns]


def copy_now(folders: Folders, day: datetime.date) -> Path:
    with SessionStore.open(folders) as store:
        return backup.make(store._database.db, folders.data, Files(), today=day)


def test_opening_makes_one_copy_a_day_if_something_changed(folders: Folders) -> None:
    SessionStore.open(folders).close()
    SessionStore.open(folders).close()
    assert backup.list_backups(folders.data) == ()  # no chats, nothing to keep
    say(folders, "one")
    SessionStore.open(folders).close()
    (found,) = backup.list_backups(folders.data)
    assert found.day == datetime.date.today().isoformat()
    assert found.num_chats == 1
    assert found.path.stat().st_mode & 0o777 == 0o600
    say(folders, "two")
    assert len(backup.list_backups(folders.data)) == 1
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)
    with SessionStore.open(folders) as store, store._database.reading() as db:
        assert backup.is_due(db, folders.data, tomorrow)
        found.path.touch()
        assert backup.is_due(db, folders.data, tomorrow)  # times of files say nothing


def test_a_folder_whose_name_is_no_text_is_backed_up_too(folders: Folders, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff#?")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    there = Folders(odd, odd, odd, odd)
    say(there, "hello")
    path = copy_now(there, DAY)
    assert [found.num_chats for found in backup.list_backups(odd) if found.path == path] == [1]


def test_a_window_left_open_overnight_makes_one_too(talk: Talk, folders: Folders) -> None:
    talk.turn(10)
    assert backup.list_backups(folders.data) == ()
    talk.store._daily.today = DAY
    talk.turn(10)
    talk.store.close()
    assert len(backup.list_backups(folders.data)) == 1


def test_the_newest_seven_are_kept_whatever_their_dates(folders: Folders) -> None:
    say(folders, "one")
    for n in range(10):
        copy_now(folders, DAY + datetime.timedelta(days=n))
    days = [b.day for b in backup.list_backups(folders.data)]
    assert days == [f"2099-03-{n:02}" for n in range(10, 3, -1)]
    copy_now(folders, DAY + datetime.timedelta(days=20))
    days = [b.day for b in backup.list_backups(folders.data)]
    assert days == ["2099-03-21", *(f"2099-03-{n:02}" for n in range(10, 4, -1))]


def test_going_back_and_forth_again(folders: Folders) -> None:
    say(folders, "one")
    copy = copy_now(folders, DAY)
    say(folders, "two")
    aside = backup.restore(folders, copy.stem)
    assert aside is not None
    assert texts(folders) == ["one"]
    backup.restore(folders, aside.stem)
    assert texts(folders) == ["one", "two"]
    for path in folders.data.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not list(folders.data.glob(".mlxkv-*"))


@pytest.mark.parametrize("damage", ["gone", "empty", "noise", "cut"])
def test_going_back_from_a_database_that_cannot_be_read(folders: Folders, damage: str) -> None:
    say(folders, "one")
    copy = copy_now(folders, DAY)
    path = folders.data / "mlxkv.db"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "noise": b"no database" * 999, "cut": data[: len(data) // 2]}[damage])

    def look() -> None:
        with SessionStore.open(folders) as store:
            store._database.integrity_check()

    with pytest.raises(StoreError, match="mlxkv chats backups") as caught:
        look()
    assert isinstance(caught.value, CorruptError) == (damage != "gone")
    aside = backup.restore(folders, copy.stem)
    assert (aside is None) == (damage == "gone")
    assert texts(folders) == ["one"]


def test_rows_of_the_chats_are_not_needed_to_go_back(folders: Folders) -> None:
    with SessionStore.open(folders) as store:
        talk = Talk(store, FakeCache())
        talk.turn(50)
        backup.make(store._database.db, folders.data, Files(), today=DAY)
        talk.turn(50)
    backup.restore(folders, "mlxkv-20990301")
    with SessionStore.open(folders) as store:
        record = store.load(talk.id)
        fresh = FakeCache(run=1)
        assert store.restore_kv(talk.id, fresh, model(), record.log).tokens == 50
        talk.store, talk.cache = store, FakeCache()
        talk.cache.feed(record.log)
        talk.turn(30)


def test_a_copy_that_is_not_sound_is_refused_and_nothing_moves(folders: Folders) -> None:
    say(folders, "one")
    copy = copy_now(folders, DAY)
    good = copy.read_bytes()
    db = sqlite3.connect(folders.data / "foreign.db")
    db.execute("CREATE TABLE t(x)")
    db.close()
    for bad in (b"", good[:5000], b"x" * 9999, (folders.data / "foreign.db").read_bytes()):
        copy.write_bytes(bad)
        with pytest.raises(StoreError):
            backup.restore(folders, copy.stem)
    copy.write_bytes(good)
    with sqlite3.connect(copy) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="99"):
        backup.restore(folders, copy.stem)
    for name in ("mlxkv-20980101", "../mlxkv", "/etc/passwd"):
        with pytest.raises(StoreError, match="no backup"):
            backup.restore(folders, name)
    assert texts(folders) == ["one"]


@pytest.mark.slow
def test_nobody_goes_back_under_an_open_chat(folders: Folders) -> None:
    say(folders, "one")
    copy = copy_now(folders, DAY)
    code = (
        "import sys; from mlxkv.config import Folders; from mlxkv.store.session_store import SessionStore\n"
        "with SessionStore.open(Folders.from_env()) as store:\n    print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="close it"):
            backup.restore(folders, copy.stem)
        child.kill()
    backup.restore(folders, copy.stem)


@pytest.mark.parametrize("step", ["backup", "fsync", "rename", "fsync folder"])
def test_a_copy_that_fails_leaves_nothing_and_harms_nothing(folders: Folders, step: str) -> None:
    say(folders, "one")

    def fail(found: str) -> None:
        if found == step:
            raise OSError(28, "No space left on device")

    with SessionStore.open(folders) as store, pytest.raises(StoreError, match="free some space"):
        backup.make(store._database.db, folders.data, Files(fail), today=DAY)
    names = [path.name for path in (folders.data / "backups").iterdir()]
    left = [name for name in names if "20990301" in name or name.startswith(".")]
    assert left == (["mlxkv-20990301.db"] if step == "fsync folder" else [])
    assert texts(folders) == ["one"]
