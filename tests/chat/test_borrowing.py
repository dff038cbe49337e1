"""Chats with saving off, and prompt caches, start from the rows of a saved chat that began alike and leave no trace."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

import mlxkv
from mlxkv.config import Folders
from mlxkv.errors import StoreError
from mlxkv.events import Notice
from mlxkv.model import Model
from mlxkv.store.borrow import MIN_NEW_TOKENS, Borrower
from mlxkv.store.identity import sha256_of
from mlxkv.store.records import Restored
from mlxkv.store.session_store import SessionStore
from tests.chats import CONFIG, GREEDY, say
from tests.store.fake import model as identity
from tests.store.test_damage import flip_first_row

BOOK = "a long book. " * 24


@pytest.fixture
def told(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the model answered about the book in a chat that was saved; its process has ended."""
    monkeypatch.setattr("mlxkv.store.identity.RACY_NS", 0)  # the model's files may be of this very second
    model = mlxkv.load(str(tiny_path))
    chat = model.chat("be brief", CONFIG, autosave=True, **GREEDY)
    text = say(chat, f"{BOOK}\n\nwho?").text
    chat.close()
    model.close()
    SessionStore.open(Folders.from_env()).close()  # the daily copy
    return text


def contents(home: Path) -> dict[str, str]:
    """Everything on disk, of the database its rows: whoever opens it may move what its log holds."""
    with closing(sqlite3.connect(home / "data" / "mlxkv.db")) as db:
        rows = "\n".join(db.iterdump())
    files = [p for p in home.rglob("*") if p.is_file() and not p.name.startswith("mlxkv.db")]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files} | {"rows": rows}


@pytest.mark.slow
def test_a_chat_that_is_not_saved_starts_from_one_that_was(told: str, tiny_path: Path, home: Path) -> None:
    before = contents(home)
    model = mlxkv.load(str(tiny_path))
    chat = model.chat("be brief", CONFIG, **GREEDY)
    *events, done = chat.send(f"{BOOK}\n\nwho?")
    assert isinstance(done, mlxkv.TurnFinished)
    assert done.text == told
    assert done.stats.cached_tokens > 300
    assert done.stats.prefill_tokens < 20
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices == [f"Reused {done.stats.cached_tokens} tokens of an earlier chat with the same prefix."]
    assert say(chat, "and?").stats.cached_tokens > done.stats.cached_tokens
    assert chat.session_id is None
    chat.close()
    model.close()
    assert contents(home) == before


@pytest.mark.slow
def test_a_prompt_cache_starts_from_a_chat_and_a_fork_of_it_says_the_same(told: str, tiny_path: Path) -> None:
    model = mlxkv.load(str(tiny_path))
    seen: list[tuple[int, int]] = []
    pc = model.prefill(BOOK, CONFIG, system="be brief", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(pc.offset, pc.offset)]
    assert model.store.disk_usage() > 0
    chat = model.chat(cache=pc.fork(), **GREEDY)
    assert say(chat, "who?").text == told
    other = model.prefill("another " + BOOK, CONFIG, system="be brief")
    assert len(other.tokens) > 300
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("bound", [mlxkv.CacheConfig(window=256, block=64), mlxkv.CacheConfig(window=512, sinks=4)])
def test_rows_of_other_bounds_are_not_taken(told: str, tiny_path: Path, bound: mlxkv.CacheConfig) -> None:
    model = mlxkv.load(str(tiny_path))
    chat = model.chat("be brief", bound, **GREEDY)
    assert say(chat, f"{BOOK}\n\nwho?").stats.cached_tokens == 0
    model.close()


@pytest.mark.slow
def test_nothing_is_made_or_hashed_for_it(tiny_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no chat was saved there is no store to ask; where none was with this model, its weights stay unread."""
    hashed: list[str] = []

    def counting(file: Path, remember: object = None) -> str:
        hashed.append(file.name)
        return sha256_of(file, remember)  # type: ignore[arg-type]

    monkeypatch.setattr("mlxkv.store.identity.sha256_of", counting)
    model = mlxkv.load(str(tiny_path))
    say(model.chat("be brief", CONFIG, **GREEDY), f"{BOOK}\n\nwho?")
    model.prefill(BOOK, CONFIG)
    assert not (home / "data").exists()
    assert hashed == []
    assert model.store.list() == ()  # now there is one
    say(model.chat("be brief", CONFIG, **GREEDY), f"{BOOK}\n\nwho?")
    with model.store._database.reading() as db:
        assert db.execute("SELECT count(*) FROM filehash").fetchone()[0] == 0
    model.close()


def test_a_store_that_cannot_be_opened_is_nothing_to_it(told: str, tiny_path: Path, home: Path) -> None:
    (home / "data" / "mlxkv.db").write_bytes(b"no database" * 1000)
    model = mlxkv.load(str(tiny_path))
    done = say(model.chat("be brief", CONFIG, **GREEDY), f"{BOOK}\n\nwho?")
    assert (done.text, done.stats.cached_tokens) == (told, 0)
    with pytest.raises(StoreError):
        model.chat("be brief", CONFIG, **GREEDY).save()
    model.close()


@pytest.mark.slow
def test_an_imported_cache_is_never_given_up_for_rows_of_a_chat(told: str, model: Model, tmp_path: Path) -> None:
    """Nobody knows which ids its first tokens were: what is forgotten of it cannot be read again."""
    model.prefill("an", CONFIG, chat=True).export_mlx_lm(tmp_path / "x.safetensors")
    pc = model.import_mlx_lm(tmp_path / "x.safetensors", CONFIG)
    offset = pc.offset
    assert say(model.chat(cache=pc, **GREEDY), BOOK).stats.cached_tokens == offset


def test_whom_it_asks_and_for_what(home: Path) -> None:
    """Few new tokens, ids nobody knows and caches that no session can hold are not worth a look at the disk."""
    (home / "data").mkdir(mode=0o700, parents=True)
    (home / "data" / "mlxkv.db").touch()
    asked: list[tuple[int, int]] = []

    class Store:
        file_hashes = None

        def borrow_kv(self, cache: object, identity: object, ids: Sequence[int], held: int) -> Restored:
            asked.append((len(ids), held))
            return Restored(held, 0, 0.0)

    class Cache:
        can_save = True

    borrower: Any = Borrower(Folders.from_env(), lambda: cast(SessionStore, Store()), lambda hashes: identity())
    assert borrower.borrow(Cache(), range(MIN_NEW_TOKENS)) is None
    assert borrower.borrow(Cache(), range(MIN_NEW_TOKENS + 100), 100) is None
    assert borrower.borrow(Cache(), [-1, *range(MIN_NEW_TOKENS)]) is None
    bound = Cache()
    bound.can_save = False
    assert borrower.borrow(bound, range(MIN_NEW_TOKENS + 1)) is None
    assert asked == []
    assert borrower.borrow(Cache(), range(MIN_NEW_TOKENS + 101), 100).tokens == 100
    assert borrower.borrow(Cache(), range(MIN_NEW_TOKENS + 1)).tokens == 0
    assert asked == [(MIN_NEW_TOKENS + 101, 100), (MIN_NEW_TOKENS + 1, 0)]


@pytest.mark.slow
def test_a_damaged_chunk_is_passed_over_and_left_where_it_is(told: str, tiny_path: Path, home: Path) -> None:
    for path in (home / "cache" / "kv").glob("??/*.safetensors"):
        flip_first_row(path)
    before = contents(home)
    model = mlxkv.load(str(tiny_path))
    done = say(model.chat("be brief", CONFIG, **GREEDY), f"{BOOK}\n\nwho?")
    assert (done.text, done.stats.cached_tokens) == (told, 0)
    model.close()
    assert contents(home) == before
