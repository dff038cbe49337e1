"""A workload that touches the disk in every way the store does, and a judge who knows what was acknowledged.

`work` runs it against a store; `Ledger` is told of each thing that counts as saved; `judge` opens what is left and says
what is wrong: an acknowledged turn lost, a row that differs, a reference to nothing, a store that cannot go on.
Used with SIGKILL (crash_driver), injected errors (test_faults) and lost power (test_power).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mlxkv.config import Folders
from mlxkv.errors import MlxkvError
from mlxkv.store.db import backup
from mlxkv.store.db import database as schema
from mlxkv.store.files import Files
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model

WINDOW = 32
LIMIT = 135_000  # bytes on disk: the third chat pushes out rows of the first


@contextmanager
def no_waiting_for_the_disk() -> Iterator[None]:
    """fsync does nothing: a killed process loses nothing that it wrote, and what a power cut takes is simulated."""
    real = schema.connect

    def connect(path: Path) -> sqlite3.Connection:
        db = real(path)
        db.execute("PRAGMA synchronous=OFF")
        return db

    with (
        mock.patch("mlxkv.store.files.sync", return_value=None),
        mock.patch("mlxkv.store.db.database.connect", connect),
        mock.patch("mlxkv.store.db.open.connect", connect),
    ):
        yield


@dataclass
class Ledger:
    """What was acknowledged. `turns`: per title the texts; `rows`: per title how many tokens came back as saved."""

    turns: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  # notices: what a user was told could not be saved


def folders_in(root: Path) -> Folders:
    return Folders.from_env({"MLXKV_HOME": str(root / "home")})


def ids_of(title: str, n: int, num: int) -> tuple[int, ...]:
    start = 1000 * n + 100_000 * (1 + "abcd".index(title))
    return tuple(range(start, start + num))


class Work:
    """The workload. With `carry_on` an error is written down and the next step is tried, as a window would."""

    def __init__(self, store: SessionStore, ledger: Ledger, carry_on: bool = False) -> None:
        self.store, self.ledger, self.carry_on = store, ledger, carry_on
        self.caches: dict[str, FakeCache] = {}
        self.ids: dict[str, str] = {}

    def run(self) -> None:
        self.chat("a", 1, 60, wait=True)
        self.chat("b", 1, 60, wait=False)
        self.chat("a", 1, 60, wait=False)
        self.attempt(lambda: self.fork_and_delete("b"))
        self.chat("c", 2, 90, wait=True)
        self.attempt(lambda: self.delete("b"))
        self.attempt(lambda: backup.make(self.store._database.db, self.store._database.path.parent, self.files))

    @property
    def files(self) -> Files:
        return self.store._chunks.files

    def attempt(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except MlxkvError as error:
            if not self.carry_on:
                raise
            self.ledger.failures.append(str(error))
            return False
        return True

    def chat(self, title: str, turns: int, num: int, wait: bool) -> None:
        if title not in self.ids and not self.attempt(lambda: self.begin(title)):
            return
        session = self.ids[title]
        try:
            with self.store.lock(session):
                for _ in range(turns):
                    if not self.attempt(lambda: self.turn(title, num, wait)):
                        return
                if notice := self.store.flush(session):
                    self.ledger.told.append(notice)
                elif not wait:
                    self.ledger.rows[title] = len(self.caches[title].log)
        except MlxkvError as error:  # the lock cannot be made
            if not self.carry_on:
                raise
            self.ledger.failures.append(str(error))

    def begin(self, title: str) -> None:
        self.ids[title] = self.store.sessions.create(title, model())
        self.ledger.turns[title] = []
        self.caches[title] = FakeCache(WINDOW)

    def turn(self, title: str, num: int, wait: bool) -> None:
        store, session, cache = self.store, self.ids[title], self.caches[title]
        said = self.ledger.turns[title]
        ids, half = ids_of(title, len(said), num), num // 2
        store.add_turn(session, TurnRecord("user", f"q{len(said)}", ids[:half]))
        said.append(f"q{len(said)}")
        cache.feed(ids[:half])
        store.add_turn(session, TurnRecord("assistant", "open", ids[half : half + 5], state="open"))
        store.update_open_turn(session, TurnRecord("assistant", f"a{len(said)}", ids[half:]))
        said.append(f"a{len(said)}")
        cache.feed(ids[half:])
        save = store.commit_kv if wait else store.save_kv
        if self.attempt(lambda: self.saved(save(session, cache, model(), rng=b"r").notice)) and wait:
            self.ledger.rows[title] = len(cache.log)

    def saved(self, notice: str | None) -> None:
        if notice:
            self.ledger.told.append(notice)

    def fork_and_delete(self, title: str) -> None:
        if title in self.ids:  # it could be begun
            self.store.delete(self.store.fork(self.ids[title], 2))

    def delete(self, title: str) -> None:
        self.ledger.deleted.add(title)  # from here on it may be gone
        if title in self.ids:
            self.store.delete(self.ids[title])


def judge(root: Path, ledger: Ledger, newest: str | None = None) -> list[str]:
    """What is wrong with the store that is left; [] if nothing is. `newest`: a chat whose rows are never evicted."""
    wrong: list[str] = []
    try:
        with SessionStore.open(folders_in(root), disk_limit=LIMIT) as store:
            report = store.verify()
            # Of chunks without a file too: nobody cleared the folder, so a reference to one came before the file.
            bad = [p for p in report.problems if p.is_serious or p.kind == "missing"]
            wrong += [f"{p.kind} {p.subject}: {p.text}" for p in bad]
            chats = {chat.title: chat.id for chat in store.list()}
            for title, said in ledger.turns.items():
                if title not in chats:
                    wrong += [f"chat {title} is lost"] if said and title not in ledger.deleted else []
                    continue
                wrong += _judge_chat(
                    store, chats[title], title, said, ledger.rows.get(title, 0) if title == newest else 0
                )
            fresh = store.sessions.create("d", model())
            store.add_turn(fresh, TurnRecord("user", "goes on", (1, 2)))
            if store.disk_usage() > LIMIT:
                wrong.append(f"{store.disk_usage()} bytes on disk, {LIMIT} allowed")
    except MlxkvError as error:
        wrong.append(f"the store cannot be used: {error}")
    return wrong


def _judge_chat(store: SessionStore, session: str, title: str, said: list[str], rows: int) -> list[str]:
    wrong = []
    record = store.load(session)
    found = [turn.text for turn in record.turns if turn.state == "done"]
    if found[: len(said)] != said or len(found) > len(said) + 1:
        wrong.append(f"chat {title} has {found}, acknowledged were {said}")
    cache = FakeCache(WINDOW, run=1)
    restored = store.restore_kv(session, cache, model(), record.log)
    straight = FakeCache(WINDOW)
    straight.feed(record.log[: restored.tokens])
    if cache.state() != straight.state():
        wrong.append(f"chat {title} got other rows back")
    if restored.tokens < rows:
        wrong.append(f"chat {title} got {restored.tokens} tokens back, {rows} were saved ({restored.notice})")
    if restored.tokens < len(record.log):
        cache = straight
        cache.feed(record.log[restored.tokens :])
    done = store.commit_kv(session, cache, model())
    if done.pos != len(record.log) and done.notice is None:
        wrong.append(f"chat {title} cannot be saved any more ({done})")
    return wrong
