"""Values of the wrong type or size in the database, as a damaged page may hold them: never a traceback, never wrong
rows, and no path that a digest leads out of the KV folder."""

from __future__ import annotations

import datetime
import os
import shutil
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from mlxkv.errors import CorruptError, MlxkvError
from mlxkv.protocol.status import ChatSummary
from mlxkv.store.files import Files
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model
from tests.store.harness import folders_in
from tests.store.test_corruption import Original
from tests.thorough import part

NUMBERS = (None, -1, 1 << 62, 2.5, "x", b"\0\xff")
VALUES: dict[str, tuple[Any, ...]] = {  # by declared type; where text is declared, a number becomes text, too
    "INTEGER": NUMBERS,
    "REAL": NUMBERS,
    "TEXT": (None, -1, "x", "a\0b", "../../../../precious", b"\0\xff"),
    "BLOB": (None, -1, 2.5, "x", b"", b"\0\xff"),
    "": (None, -1, 2.5, "x", "a\0b", b"\0\xff"),
}
COLUMNS = {
    "chunk": ("digest", "size", "grp", "a", "b", "prefix_key", "spec_id", "last_used"),
    "kv_commit": ("pos", "turn_digest", "model", "spec_id", "rng", "digest"),
    "session": (
        "updated", "params", "parent", "forked_at", "flags", "kv_written", "needed", "system", "title", "kind", "clock",
        "settings", "preset", "origin", "seed", "seq",
    ),
    "kv_ref": ("kept_for",),
    "filehash": ("dev", "ino", "size", "mtime_ns", "ctime_ns", "sha256"),
    "turn_fts_content": ("c0", "c1"),
    "model": ("name", "model_id", "json"),
    "spec": ("json",),
    "meta": ("value",),
    "turn": ("i", "role", "text", "start", "ids", "stats", "prev", "digest", "extra"),
}  # fmt: skip


def put(path: Path, table: str, column: str, value: Any) -> None:
    """Into the newest row, past every rule of the table."""
    with closing(sqlite3.connect(path)) as db:
        (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        db.execute("PRAGMA writable_schema=ON")
        lax = sql.replace("STRICT", "").rstrip().rstrip(",").replace(" NOT NULL", "")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (lax, table))
        db.execute("PRAGMA writable_schema=RESET")
        db.commit()
        key = "kv_commit" if table == "kv_ref" else "rowid"
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = (SELECT max({key}) FROM {table})", (value,))
        db.commit()
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
        db.execute("PRAGMA writable_schema=RESET")
        db.commit()


def values(path: Path, table: str, column: str) -> tuple[Any, ...]:
    with closing(sqlite3.connect(path)) as db:
        (declared,) = db.execute("SELECT type FROM pragma_table_info(?) WHERE name = ?", (table, column)).fetchone()
    return VALUES[declared]


def use(root: Path) -> None:
    """Everything that reads those tables; our own errors are all right."""
    with suppress(MlxkvError), SessionStore.open(folders_in(root)) as store:
        for work in (
            lambda: [check(chat) for chat in store.list()],
            lambda: store.sessions.find("talk"),
            lambda: store.sessions.search("talk"),
            lambda: store.verify(),
            lambda: [again(store, chat.id) for chat in store.list()],
            lambda: store.borrow_kv(FakeCache(), model(), range(100)),
            lambda: check_hash(store.file_hashes.get(__file__, os.stat(__file__))),
            lambda: store.collect(),
            lambda: store.verify(repair=True),
            lambda: [store.delete(chat.id) for chat in store.list()],
        ):
            with suppress(MlxkvError):
                work()


def check(chat: ChatSummary) -> None:
    """What a list prints of it."""
    assert isinstance(chat.title + chat.model + (chat.parent or ""), str)
    assert isinstance(chat.kv_bytes, int)
    datetime.datetime.fromtimestamp(chat.updated)


def check_hash(found: str | None) -> None:
    assert found in (None, "ab" * 32)


def again(store: SessionStore, session: str) -> None:
    """Go on with a chat, so that its rows are saved, and others may have to go for them."""
    cache, record = FakeCache(), store.load(session)
    restored = store.restore_kv(session, cache, model(), record.log)
    store.add_turn(session, TurnRecord("user", "more", (1, 2, 3)))
    cache.feed([*record.log[restored.tokens :], 1, 2, 3])
    store.commit_kv(session, cache, model())
    store.fork(session, 1)


@pytest.mark.slow
@pytest.mark.parametrize("table", part(COLUMNS, 3))
def test_no_value_gives_a_traceback_or_wrong_rows(table: str, tmp_path: Path) -> None:
    original = Original(tmp_path / "original")
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"not ours")
    with SessionStore.open(folders_in(original.root)) as store:
        store.file_hashes.put(__file__, os.stat(__file__), "ab" * 32)
    found: Counter[str] = Counter()
    for column in COLUMNS[table]:
        for value in values(next((original.root / "home").rglob("mlxkv.db")), table, column):
            root = tmp_path / "one"
            shutil.copytree(original.root, root)
            with suppress(sqlite3.IntegrityError):
                put(next((root / "home").rglob("mlxkv.db")), table, column, value)
            outcome = original.judge(root)
            assert not outcome.startswith("WRONG"), (column, value, outcome)
            found[outcome] += 1
            use(root)
            shutil.rmtree(root)
    assert precious.exists()
    print(f"{table}: {sum(found.values())} values: {dict(found)}")


@pytest.mark.parametrize("digest", ["../../x", "", "A" * 32, "a" * 31, "a" * 32 + "\n", None, b"a" * 32])
def test_what_is_no_digest_leads_nowhere(digest: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="no checksum"):
        ChunkFiles(tmp_path, Files()).path(digest)


def test_verify_finds_such_an_entry_and_repair_removes_it(tmp_path: Path) -> None:
    original = Original(tmp_path)
    put(next((tmp_path / "home").rglob("mlxkv.db")), "chunk", "digest", "../../x")
    with SessionStore.open(folders_in(tmp_path)) as store:
        found = [p.text for p in store.verify().problems if p.kind == "chunk"]
        assert found == ["An entry about saved rows of the KV cache is damaged; they are prefilled again."]
        store.verify(repair=True)
        assert [p for p in store.verify().problems if p.kind == "chunk"] == []
    assert original.judge(tmp_path) == "shorter"
