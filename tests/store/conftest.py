"""A store in the test's own home, and a chat on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model
from tests.store.harness import no_waiting_for_the_disk


@pytest.fixture
def real_disk() -> None:
    """For a test that wants fsync to happen."""


@pytest.fixture(autouse=True)
def no_waiting(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if "real_disk" in request.fixturenames else no_waiting_for_the_disk():
        yield


@pytest.fixture
def folders(home: Path) -> Folders:
    return Folders.from_env()


@pytest.fixture
def store(folders: Folders) -> Iterator[SessionStore]:
    with SessionStore.open(folders) as opened:
        yield opened


class Talk:
    """A session and its cache: `turn(n)` feeds n new tokens as a user's turn and a reply, and commits."""

    def __init__(self, store: SessionStore, cache: FakeCache, title: str = "talk") -> None:
        self.store, self.cache, self.title = store, cache, title
        self.id = store.sessions.create(title, model(), system="be brief")
        self.bytes_written = 0

    def turn(self, n: int, start: int | None = None) -> None:
        have = len(self.cache.tokens)
        ids = tuple(range(have * 7 + 1, have * 7 + 1 + n))
        self.store.add_turn(self.id, TurnRecord("user", f"question {have}", ids[: n // 2], start))
        self.store.add_turn(self.id, TurnRecord("assistant", f"answer {have}", ids[n // 2 :]))
        self.cache.feed(ids)
        done = self.store.commit_kv(self.id, self.cache, model(), rng=bytes([have % 256]))
        assert done.pos == len(self.cache.tokens)
        assert done.notice is None
        self.bytes_written += done.bytes_written


@pytest.fixture
def talk(store: SessionStore) -> Talk:
    return Talk(store, FakeCache())
