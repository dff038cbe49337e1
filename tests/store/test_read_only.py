"""A home in which nothing can be written: all that is there is read, nothing is changed, and a chat says so once."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.cli.app import main
from mlxkv.config import Folders
from mlxkv.engine import Dispatcher
from mlxkv.errors import ConfigError, ReadOnlyError, StoreError
from mlxkv.events import Notice, TextDelta, TurnFinished
from mlxkv.protocol.events import ChatOpened, EngineEvent
from mlxkv.protocol.status import SessionStatus
from mlxkv.settings.schema import Settings
from mlxkv.store.db import read_only
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model
from tests.store.test_migration import unpacked

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture
def frozen(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, bytes]]:
    """Call it to make `home` a read-only disk, for root too; returns what is there, each time it is called."""

    def is_below(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(home)

    def refusing(name: str) -> None:
        there = getattr(os, name)

        def call(path: Any, *args: Any, **more: Any) -> Any:
            may_open = name == "open" and not (args[0] & WRITES)
            if is_below(path) and not may_open and not (name == "mkdir" and os.path.isdir(path)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
            return there(path, *args, **more)

        monkeypatch.setattr(os, name, call)

    connect = sqlite3.connect

    def connect_to_read(database: str, *args: Any, **more: Any) -> sqlite3.Connection:
        """As SQLite does where it cannot make its -shm file."""
        if "mode=" in database and str(home) in database and "immutable" not in database:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(database, *args, **more)

    def freeze() -> dict[str, bytes]:
        if sqlite3.connect is connect:
            for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "truncate", "chmod"):
                refusing(name)
            monkeypatch.setattr(sqlite3, "connect", connect_to_read)
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in home.rglob("*")}

    return freeze


Freeze = Callable[[], dict[str, bytes]]


@pytest.fixture
def chats(folders: Folders) -> str:
    """Two chats with rows; the id of one."""
    with SessionStore.open(folders) as store:
        talk = Talk(store, FakeCache(), "the sky")
        talk.turn(40)
        Talk(store, FakeCache(), "the sea").turn(8)
    return talk.id


def test_everything_is_read_and_nothing_changed(folders: Folders, chats: str, frozen: Freeze, tmp_path: Path) -> None:
    before = frozen()
    with SessionStore.open(folders) as store:
        assert "Read-only file system" in (store.read_only or "")
        assert str(folders.data) in (store.read_only or "")
        assert {chat.title for chat in store.list()} == {"the sky", "the sea"}
        assert store.sessions.find("the sky") == chats
        record = store.load(chats)
        assert len(record.turns) == 2
        assert {hit.session_id for hit in store.sessions.search("question")} >= {chats}
        assert store.disk_usage() > 0
        assert store.verify().ok
        assert store.verify(quick=True).ok
        assert store.export_chat(chats, tmp_path / "sky.mlxkv") > 0
        assert store.borrow_kv(FakeCache(), model(), record.log).tokens == 40
        assert store.file_hashes.get("x", os.stat(tmp_path)) is None
        store.file_hashes.put("x", os.stat(tmp_path), "0" * 64)
    assert frozen() == before


CHANGES: dict[str, Callable[[SessionStore, str], object]] = {
    "create": lambda store, chat: store.sessions.create("new", model()),
    "rename": lambda store, chat: store.sessions.rename(chat, "other"),
    "fork": lambda store, chat: store.fork(chat),
    "delete": lambda store, chat: store.delete(chat),
    "pin": lambda store, chat: store.sessions.pin(chat),
    "lock": lambda store, chat: store.lock(chat).__enter__(),
    "collect": lambda store, chat: store.collect(),
    "repair": lambda store, chat: store.verify(repair=True),
    "set_model": lambda store, chat: store.sessions.set_model(chat, model()),
    "saving_named": lambda store, chat: store.saving_named(store.space.prompts / "a.kv").__enter__(),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_in_one_sentence(change: str, folders: Folders, chats: str, frozen: Freeze) -> None:
    before = frozen()
    with SessionStore.open(folders) as store, pytest.raises(ReadOnlyError, match="cannot be written to"):
        CHANGES[change](store, chats)
    assert frozen() == before


def nothing(folders: Folders) -> None:
    pass


def never_used(folders: Folders) -> None:
    shutil.rmtree(folders.data.parent)


def an_empty_file(folders: Folders) -> None:
    """As a crash leaves it before the first transaction."""
    never_used(folders)
    folders.data.mkdir(parents=True, mode=0o700)
    (folders.data / "mlxkv.db").touch(0o600)


def a_log(folders: Folders) -> None:
    """A crash left the last turns in the log, and the file that goes with it is gone."""
    kept = folders.data.parent / "kept"
    with SessionStore.open(folders) as store:
        store.sessions.rename(store.sessions.find("the sea"), "the lake")
        shutil.copytree(folders.data, kept)
    for name in ("mlxkv.db", "mlxkv.db-wal"):
        shutil.copyfile(kept / name, folders.data / name)
    shutil.rmtree(kept)


def an_older_format(folders: Folders) -> None:
    never_used(folders)
    unpacked(folders, 1)


HOMES: dict[str, tuple[Callable[[Folders], None], set[str]]] = {
    "as it was closed": (nothing, {"the sky", "the sea"}),
    "with a log": (a_log, {"the sky", "the lake"}),
    "of an older format": (an_older_format, {"empty", "the sky (2)", "the sky"}),
    "never used": (never_used, set()),
    "an empty file": (an_empty_file, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOMES)
def test_whatever_state_it_is_in(
    name: str, folders: Folders, chats: str, frozen: Freeze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, titles = HOMES[name]
    make(folders)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = frozen()
    with SessionStore.open(folders) as store:
        assert {chat.title for chat in store.list()} == titles
        for chat in store.list():
            store.load(chat.id)
        with pytest.raises(ReadOnlyError):
            store.sessions.create("new", model())
    assert frozen() == before
    assert not list(temporary.iterdir())


def test_without_room_for_a_copy_that_is_said(
    folders: Folders, chats: str, frozen: Freeze, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_older_format(folders)
    monkeypatch.setattr("tempfile.tempdir", str(home))
    frozen()
    with pytest.raises(StoreError, match=r"cannot be copied .* TMPDIR"):
        SessionStore.open(folders)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_counts_as_not_being_able_to_write(code: int, tmp_path: Path) -> None:
    error = StoreError("no")
    error.__cause__ = OSError(code, os.strerror(code))
    assert os.strerror(code) in str(read_only.read_only_reason(error, tmp_path))


@pytest.mark.parametrize("cause", [OSError(errno.ENOTDIR, "x"), OSError(errno.ELOOP, "x"), ValueError(), None])
def test_what_does_not(cause: Exception | None, tmp_path: Path) -> None:
    error = ConfigError("no")
    error.__cause__ = cause
    assert read_only.read_only_reason(error, tmp_path) is None


def test_damage_is_damage(folders: Folders, chats: str, frozen: Freeze) -> None:
    (folders.data / "mlxkv.db").write_bytes(b"no database" * 1000)
    frozen()
    with pytest.raises(StoreError, match="damaged"):
        SessionStore.open(folders)


# -- chats ---------------------------------------------------------------------------------------------------------


def test_a_chat_replies_and_says_once_that_it_is_not_saved(model: mlxkv.Model, frozen: Freeze) -> None:
    frozen()
    chat = model.chat(autosave=True, max_tokens=4, temperature=0.0)
    first, second = list(chat.send("hello")), list(chat.send("and you"))
    told = [event.text for event in (*first, *second) if isinstance(event, Notice)]
    assert len([text for text in told if "nothing is saved" in text]) == 1
    assert isinstance(second[-1], TurnFinished)
    assert chat.session_id is None
    with pytest.raises(ReadOnlyError):
        chat.save()
    assert chat.close() is None


@pytest.mark.slow
def test_a_saved_chat_continues_unsaved(model: mlxkv.Model, frozen: Freeze, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxkv.store.identity.RACY_NS", 0)  # the model's files may have been written just now
    with model.chat(autosave=True, max_tokens=4, temperature=0.0) as chat:
        list(chat.send("hello " * 80))
        session, turns, log = chat.session_id, chat.turns, chat.log
    model._runtime.close_store()
    before = frozen()
    for fork in (False, True):
        chat = model.resume(str(session), fork=fork)
        assert [turn.text for turn in chat.turns] == [turn.text for turn in turns]
        events = list(chat.send("and you"))
        assert any(isinstance(event, Notice) and "nothing is saved" in event.text for event in events)
        assert chat.stats.cached_tokens >= len(log) - 1  # its rows came from disk
        assert chat.session_id is None
        chat.close()
    model.close()
    assert frozen() == before


def test_the_window_says_it_too(tiny_path: Path, folders: Folders, frozen: Freeze) -> None:
    from mlxkv.protocol import commands as cmd

    frozen()
    told: list[EngineEvent] = []
    dispatcher = Dispatcher(folders, Settings(max_tokens=4), told.append)
    for command in (
        cmd.LoadModel(str(tiny_path)),
        cmd.NewChat(),
        cmd.ListChats(),
        cmd.Send("hello", 0.0),
        cmd.ShowStats(),
    ):
        dispatcher.handle(command)
    dispatcher.context.close()
    assert any(isinstance(event, TextDelta) for event in told)
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert [text for text in notices if "nothing is saved" in text] == notices
    assert len(notices) == 1
    assert [event for event in told if isinstance(event, SessionStatus)][-1].saved == "off"
    assert any(isinstance(event, ChatOpened) for event in told)


COMMANDS = {
    "chats ls": "hello",
    "chats ls --json": "hello",
    "chats show hello": "## user",
    "chats search hello": "#1 user:",
    "chats export hello": "# hello",
    "chats export hello --format json": '"turns"',
    "chats backups": "",
    "cache ls": "",
    "cache verify": "1 chat",
    "models ls": "download",
    "models info tutor": "architecture",
    "path": "config",
    "-p hello --max-tokens 4": "",
    "-c -p hello --max-tokens 4": "",
    "-c --fork -p hello --max-tokens 4": "",
    "-p hello --max-tokens 4 --no-save": "",
}


@pytest.fixture
def said(tiny_path: Path, home: Path) -> None:
    """A chat of an earlier run."""
    loaded = mlxkv.load(str(tiny_path))
    with loaded.chat(autosave=True, max_tokens=4) as chat:
        list(chat.send("hello"))
    loaded.close()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_read(
    command: str, said: None, frozen: Freeze, tiny_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MLXKV_MODEL", str(tiny_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    before = frozen()
    with pytest.raises(SystemExit) as end:
        main(command.split())
    out = capsys.readouterr()
    assert end.value.code in (0, None)
    assert COMMANDS[command] in out.out
    tells = "-p" in command and "--no-save" not in command
    assert out.err.count("nothing is saved") == tells
    assert frozen() == before


@pytest.mark.slow
def test_doctor_reads_the_chats_and_says_what_is_wrong(
    said: None, frozen: Freeze, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))
    before = frozen()
    with pytest.raises(SystemExit):
        main(["doctor"])
    out = capsys.readouterr().out
    assert "ok  sessions         1 chat," in out
    assert "cannot be written to: saved chats can be read, nothing is saved." in out
    assert frozen() == before


def test_a_database_that_may_only_be_read(folders: Folders, chats: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that may be written to SQLite opens it without a word, and the first message fails."""
    access = os.access

    def refuse(path: Any, mode: int) -> bool:
        return not (str(path) == str(folders.data / "mlxkv.db") and mode & os.W_OK) and access(path, mode)

    monkeypatch.setattr(os, "access", refuse)
    with SessionStore.open(folders) as store:
        assert "Permission denied" in (store.read_only or "")
        assert len(store.list()) == 2


def test_a_cache_folder_that_cannot_be_made_costs_rows_alone(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def refuse(path: Any, *mode: int) -> None:
        if str(path).startswith(str(folders.cache)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *mode)

    monkeypatch.setattr(os, "mkdir", refuse)
    with SessionStore.open(folders) as store:
        assert store.read_only is None
        talk = store.sessions.create("kept", model())
        cache = FakeCache()
        record = TurnRecord("user", "hi", tuple(range(8)))
        store.add_turn(talk, record)
        cache.feed(record.ids)
        store.save_kv(talk, cache, model())
        assert "Read-only file system" in (store.flush(talk) or "")
    with SessionStore.open(folders) as store:
        assert len(store.load(talk).turns) == 1
