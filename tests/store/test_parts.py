"""Processes that share a model restore together: what the others answer decides how much, and none waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.errors import SessionNotFoundError
from mlxkv.store.kv.restorer import Outcome
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model

IDS = tuple(range(300))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(Folders.from_env({"MLXKV_HOME": str(tmp_path / "home")})) as opened:
        yield opened


@pytest.fixture
def session_id(store: SessionStore) -> str:
    """A session of three turns, whose rows were saved after each."""
    session_id, cache = store.sessions.create("", model()), FakeCache()
    for a in range(0, 300, 100):
        store.add_turn(session_id, TurnRecord("user", "", ids=IDS[a : a + 100]))
        cache.feed(IDS[a : a + 100])
        store.commit_kv(session_id, cache, model())
    return session_id


class Answers:
    """Another process, which answers so each time it is asked; -1: the same as this one."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.asked = list(numbers), list[int]()

    def __call__(self, own: int) -> tuple[int, ...]:
        self.asked.append(own)
        other = self.numbers.pop(0)
        return own, own if other < 0 else other


@pytest.mark.parametrize(
    ("answers", "asked", "tokens"),
    [
        ((-1, -1), (300, Outcome.LOADED), 300),
        ((250, 220, -1, -1), (300, 250, 220, Outcome.LOADED), 220),
        ((0,), (300,), 0),
        ((-1, Outcome.BAD, 100, 100, -1), (300, Outcome.LOADED, 300, 100, Outcome.LOADED), 100),
        ((-1, Outcome.ENDED), (300, Outcome.LOADED), 0),
    ],
)
def test_the_smallest_answer_decides(
    store: SessionStore, session_id: str, answers: tuple[int, ...], asked: tuple[int, ...], tokens: int
) -> None:
    other, cache = Answers(*answers), FakeCache()
    restored = store.restore_kv(session_id, cache, model(), IDS, agree=other)
    assert (restored.tokens, tuple(cache.log), other.asked) == (tokens, IDS[:tokens], list(asked))


def test_damage_here_is_told(store: SessionStore, session_id: str, tmp_path: Path) -> None:
    newest = max((tmp_path / "home/cache/kv").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    other, cache = Answers(-1, Outcome.LOADED, -1, -1), FakeCache()
    restored = store.restore_kv(session_id, cache, model(), IDS, agree=other)
    assert other.asked == [300, Outcome.BAD, 200, Outcome.LOADED]
    assert (restored.tokens, len(cache.log)) == (200, 200)


def test_an_error_here_lets_the_others_go(store: SessionStore, session_id: str) -> None:
    other = Answers(-1)
    with pytest.raises(SessionNotFoundError):
        store.restore_kv(session_id[:-1] + "0", FakeCache(), model(), IDS, agree=other)
    assert other.asked == [0]
