"""A disk that is full costs no reply: that is told once, and what is said is saved as soon as there is room."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.cli import print_mode
from mlxkv.cli import start as cli_start
from mlxkv.cli.app import main
from mlxkv.config import Folders, load_settings
from mlxkv.errors import DiskError
from mlxkv.events import MEANWHILE, Notice, NotSaved, PrefillProgress, TurnEvent, TurnFinished
from mlxkv.model import Model
from mlxkv.store.db.database import Database
from mlxkv.store.session_store import SessionStore
from tests.chats import CONFIG, GREEDY


class Disk:
    """Is full from the `n`-th of these steps on, until there is `room`."""

    def __init__(self, steps: tuple[str, ...] = ("commit",)) -> None:
        self.steps, self.left, self.refused = steps, 1 << 30, 0

    def before(self, step: str) -> None:
        if step in self.steps:
            self.left -= 1
            if self.left < 0:
                self.refused += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(self, after: int = 0) -> None:
        self.left = after

    def room(self) -> None:
        self.left = 1 << 30


@pytest.fixture
def disk(model: Model) -> Disk:
    disk = Disk()
    model._runtime.close_store()
    model._runtime._store = SessionStore.open(Folders.from_env(), disk.before)
    return disk


def say(chat: mlxkv.Chat, text: str) -> list[Notice]:
    *events, finished = chat.send(text)
    assert isinstance(finished, TurnFinished)
    assert finished.text
    return [event for event in events if isinstance(event, Notice) and "saved" in event.text]


def texts(model: Model, chat: mlxkv.Chat) -> list[str]:
    return [turn.text for turn in model.store.load(str(chat.session_id)).turns]


@pytest.mark.slow
@pytest.mark.parametrize("after", range(5))
def test_wherever_the_disk_is_full_there_is_a_reply_and_nothing_is_lost(model: Model, disk: Disk, after: int) -> None:
    straight = model.chat(cache=CONFIG, autosave=False, **GREEDY)
    chat = model.chat(cache=CONFIG, autosave=True, **GREEDY)
    disk.fill(after)
    told = [notice for text in ("one", "two", "three") for notice in say(chat, text)]
    assert disk.refused
    assert [type(notice) for notice in told] == [NotSaved]
    assert "No space left" in told[0].text
    assert "stay in memory" in told[0].text
    assert chat.is_behind
    assert len(chat.turns) == 6
    disk.room()
    (notice,) = say(chat, "four")
    assert "has space again" in notice.text
    assert not chat.is_behind
    for text in ("one", "two", "three", "four"):
        say(straight, text)
    assert [m.text for m in chat.messages] == [m.text for m in straight.messages] == texts(model, chat)
    chat.close()
    resumed = model.resume(str(chat.session_id))
    assert resumed.restored is not None
    assert resumed.restored.tokens == chat.cache.offset  # rows were saved too
    assert say(resumed, "five") == []
    resumed.close()


LONG = " ".join(f"word {i}" for i in range(30))


def stop(disk: Disk, chat: mlxkv.Chat, events: Iterator[TurnEvent]) -> None:
    """Stop a turn before its reply begins, when its message is on the disk, which is full by now."""
    if chat.session_id is not None:
        chat.save()
    finished: TurnEvent | None = None
    for finished in events:
        if isinstance(finished, PrefillProgress):
            disk.fill()
            chat.cancel()
    assert isinstance(finished, TurnFinished)
    assert finished.unanswered
    assert disk.refused


@pytest.mark.slow
@pytest.mark.parametrize("until", ["the next message", "the next but one", "the end"])
def test_a_message_that_was_taken_back_does_not_come_back_with_room(model: Model, disk: Disk, until: str) -> None:
    chat = model.chat(cache=CONFIG, autosave=True, **GREEDY)
    say(chat, "one")
    stop(disk, chat, chat.send(LONG))
    assert len(chat.turns) == 2
    assert texts(model, chat)[2:] == [LONG]  # the disk refused to forget it
    if until == "the next but one":
        say(chat, "three")
    disk.room()
    if until != "the end":
        say(chat, "four")
    assert chat.close() is None
    assert LONG not in texts(model, chat)
    resumed = model.resume(str(chat.session_id))
    assert [m.text for m in resumed.messages] == [m.text for m in chat.messages]
    say(resumed, "five")
    resumed.close()
    assert len(model.store.list()) == 1


def test_the_first_message_of_a_chat_is_taken_back_too(model: Model, disk: Disk) -> None:
    chat = model.chat(cache=CONFIG, autosave=True, **GREEDY)
    stop(disk, chat, chat.send(LONG))
    assert chat.messages == ()
    disk.room()
    say(chat, "one")
    assert chat.close() is None
    assert [m.text for m in chat.messages] == texts(model, chat)
    assert [c.title for c in model.store.list()] == ["one"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["retry", "edit"])
def test_a_retry_or_an_edit_that_was_stopped_gives_the_old_reply_back(model: Model, disk: Disk, how: str) -> None:
    chat = model.chat(cache=CONFIG, autosave=True, **GREEDY)
    for text in (LONG, "two"):
        say(chat, text)
    before, session = chat.messages, chat.session_id
    chat.cache.reset()  # else next to nothing would be prefilled
    stop(disk, chat, chat.retry(0) if how == "retry" else chat.edit(0, f"{LONG} and more"))
    assert (chat.messages, chat.session_id) == (before, session)
    disk.room()
    say(chat, "three")
    assert chat.close() is None
    assert [m.text for m in chat.messages] == texts(model, chat)


@pytest.mark.slow
def test_closing_saves_what_there_is_room_for_and_says_what_there_is_not(model: Model, disk: Disk) -> None:
    chats = [model.chat(cache=CONFIG, autosave=True, **GREEDY) for _ in range(2)]
    for chat in chats:
        say(chat, "one")
        chat.save()  # its rows were on their way
    disk.fill()
    for chat in chats:
        say(chat, "two")
    with pytest.raises(DiskError, match="free space"):
        chats[0].undo()
    with pytest.raises(DiskError, match="free space"):
        chats[0].fork()
    assert "not saved" in (chats[0].close() or "")
    disk.room()
    assert chats[1].close() is None
    assert [len(texts(model, chat)) for chat in chats] == [2, 4]


@pytest.mark.slow
def test_sqlite_itself_has_no_page_left(model: Model, disk: Disk) -> None:
    chat = model.chat(cache=CONFIG, autosave=True, **GREEDY)
    say(chat, "one")
    db = model.store._database.db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count={pages}")
    (notice,) = say(chat, "a long message " * 60)
    assert "full" in notice.text
    db.execute("PRAGMA max_page_count=1000000")
    (notice,) = say(chat, "two")
    assert len(texts(model, chat)) == 6
    chat.close()


def refuse(*_: object, **__: object) -> None:
    raise DiskError("The chat database cannot be used (no space left on the disk); make room.")


@pytest.mark.slow
def test_a_store_that_cannot_even_be_opened(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model._runtime.close_store()
    with monkeypatch.context() as full:
        full.setattr(SessionStore, "open", refuse)
        chat = model.chat(cache=CONFIG, autosave=True, **GREEDY)
        assert [type(n) for n in (*say(chat, "one"), *say(chat, "two"))] == [NotSaved]
        assert cli_start.model_name(Folders.from_env(), load_settings(Folders.from_env()), None) is None
        assert cli_start.session_id_of(Folders.from_env(), None, False) is None
    say(chat, "three")
    assert len(texts(model, chat)) == 6
    chat.close()


CODES = {
    "SQLITE_FULL": lambda db: db.execute("PRAGMA max_page_count=1").fetchone(),
    "SQLITE_READONLY": lambda db: db.execute("PRAGMA query_only=1"),
}


@pytest.mark.parametrize("arm", CODES.values(), ids=CODES)
def test_what_sqlite_calls_it_is_one_error(model: Model, disk: Disk, arm: Callable[..., object]) -> None:
    database: Database = model.store._database
    arm(database.db)
    with pytest.raises(DiskError), database.writing() as db:
        db.execute("CREATE TABLE t AS SELECT zeroblob(10000000)")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is left: SQLite can make no file beside the database."""
    connect = sqlite3.connect

    def without_room(database: str, *args: Any, **more: Any) -> sqlite3.Connection:
        if "mode=" in database and "immutable" not in database:
            raise Full("disk I/O error")
        return connect(database, *args, **more)

    monkeypatch.setattr(sqlite3, "connect", without_room)
    nothing_free = type(shutil.disk_usage("."))(1, 1, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nothing_free)


class Full(sqlite3.OperationalError):
    sqlite_errorcode = sqlite3.SQLITE_IOERR


READING = {
    "chats ls": "hello",
    "chats show hello": "## user",
    "chats search hello": "#1 user:",
    "chats export hello": "# hello",
    "doctor": "1 chat",
    "-c -p hello --max-tokens 4": "",
    "-r hello -p hello --max-tokens 4": "",
    "-c --fork -p hello --max-tokens 4": "",
    "chats rm --yes hello": "",
}


@pytest.fixture
def said(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat of an earlier run."""
    monkeypatch.setenv("MLXKV_MODEL", str(tiny_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    loaded = mlxkv.load(str(tiny_path))
    with loaded.chat(autosave=True, **GREEDY) as chat:
        say(chat, "hello")
    loaded.close()


@pytest.mark.slow
@pytest.mark.parametrize("command", READING)
def test_reading_takes_no_room(said: None, full: None, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(command.split())
    out = capsys.readouterr()
    assert READING[command] in out.out
    assert (end.value.code == 1) == (command in ("doctor", "chats rm --yes hello"))
    assert out.err.count("is full, so nothing is saved; free some space") == ("-p" in command or "rm" in command)


def test_a_reply_that_is_printed_promises_no_later() -> None:
    """The process ends before there is room."""
    event = print_mode._worded(NotSaved(f"Not saved: the disk is full.{MEANWHILE}"))
    assert event == NotSaved("Not saved: the disk is full.")
