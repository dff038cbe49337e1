"""Stores, chats and prompt caches of earlier versions (tests/fixtures/stores), opened by this one."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from mlxkv.cache.interchange import PromptText
from mlxkv.config import Folders
from mlxkv.errors import CorruptError, StoreError
from mlxkv.store.db import backup
from mlxkv.store.db import open as opening
from mlxkv.store.db.database import VERSION
from mlxkv.store.files import Files
from mlxkv.store.prompts.kv_file import read_prompt_file
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model

STORES = Path(__file__).parents[1] / "fixtures" / "stores"
OLD = [1, 2]


def unpacked(folders: Folders, version: int) -> Path:
    """An old store in this test's home; its database."""
    with tarfile.open(STORES / f"v{version}" / "store.tar.gz") as tar:
        tar.extractall(folders.data.parent, filter="data")
    for folder in (folders.data, folders.cache):
        folder.chmod(0o700)
    return folders.data / "mlxkv.db"


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return db.execute("PRAGMA user_version").fetchone()[0]


def schema_of(path: Path) -> dict[str, list[tuple[str, str, int, str]]]:
    """Tables with their columns: name, type, whether it may be NULL, default."""
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'index')")]
        return {
            name: sorted(tuple(row[1:5]) for row in db.execute(f"SELECT * FROM pragma_table_xinfo('{name}')"))
            for name in names
        }


def check(folders: Folders) -> None:
    """All that was in the old store."""
    with SessionStore.open(folders) as store:
        chats = {chat.title: chat.id for chat in store.list()}
        assert [chat.title for chat in store.list()] == ["empty", "the sky (2)", "the sky"]
        sky = store.load(chats["the sky"])
        texts = ["Why is the sky blue?", "Rayleigh.", "今天天气很好 ｶﾀｶﾅ", "한국어사전 and Python编程"]
        assert [turn.text for turn in sky.turns] == texts
        assert (sky.system, sky.params["sampling"], sky.turns[1].thinking) == ("be brief", {"temperature": 0.5}, "hm")
        assert (sky.kind, sky.clock, sky.settings, sky.preset) == ("chat", None, {}, None)
        assert (sky.origin, sky.seed) == (None, None)
        fork = store.load(chats["the sky (2)"])
        assert (fork.parent, fork.forked_at, fork.turns[-1].state) == (sky.id, 2, "open")
        assert store.list()[0].seq > store.list()[1].seq > store.list()[2].seq > 0
        assert {hit.turn for hit in store.sessions.search("カタカナ")} == {2}
        assert (
            {hit.turn for hit in store.sessions.search("python")}
            == {hit.turn for hit in store.sessions.search("사전")}
            == {3}
        )
        assert {hit.turn for hit in store.sessions.search("blue")} == {0}
        cache = FakeCache(64)
        restored = store.restore_kv(sky.id, cache, model(), sky.log)
        assert (restored.tokens, restored.rng, restored.notice) == (100, b"random", None)
        straight = FakeCache(64)
        straight.feed(sky.log)
        assert cache.state() == straight.state()
        assert store.verify().problems == ()
        with store._database.reading() as db:  # without the file's ctime nobody knows whether it is the same
            assert db.execute("SELECT count(*) FROM filehash").fetchone()[0] == 0
        store.add_turn(sky.id, TurnRecord("user", "more", (1,)))
        assert store.sessions.latest() == sky.id


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD)
def test_an_older_store_is_copied_then_migrated_and_nothing_is_lost(folders: Folders, version: int) -> None:
    path = unpacked(folders, version)
    assert version_of(path) == version
    check(folders)
    assert version_of(path) == VERSION
    (old,) = [b for b in backup.list_backups(folders.data) if b.name.endswith(f"-v{version}")]
    assert (old.num_chats, version_of(old.path)) == (3, version)
    fresh = Folders.from_env({"MLXKV_HOME": str(folders.data.parent / "fresh")})
    SessionStore.open(fresh).close()
    assert schema_of(path) == schema_of(fresh.data / "mlxkv.db")
    backup.restore(folders, old.name)
    assert version_of(path) == version
    check(folders)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["crash", "full disk"])
@pytest.mark.parametrize("version", OLD)
def test_a_failure_at_any_step_of_a_migration_leaves_one_version_whole(
    folders: Folders, version: int, way: str
) -> None:
    path, steps = unpacked(folders, version), 0
    original = folders.data.parent.with_name("original")
    shutil.copytree(folders.data.parent, original)

    class Crash(BaseException):
        pass

    failure = (Crash if way == "crash" else StoreError,)
    while True:
        steps += 1
        left = steps

        def before(step: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash if way == "crash" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            SessionStore.open(folders, before).close()
        except failure:
            assert version_of(path) in range(version, VERSION + 1)
            with sqlite3.connect(path) as db:
                assert db.execute("SELECT count(*) FROM turn").fetchone()[0] == 8
            db.close()
            check(folders)
        else:
            break
        shutil.rmtree(folders.data.parent)
        shutil.copytree(original, folders.data.parent)
    print(f"{steps - 1} crashes")
    assert steps > 20


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["migrate", "commit", "committed"])
def test_a_kill_in_the_middle_of_a_migration_does_too(folders: Folders, kill: str) -> None:
    path = unpacked(folders, 2)
    code = (
        "import os, signal, sys; from mlxkv.config import Folders; from mlxkv.store.session_store import SessionStore\n"
        "left = 9\n"
        "def before(step):\n"
        "    global left\n"
        "    left -= step == 'migrate'\n"
        "    if step == sys.argv[1] and left < 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "SessionStore.open(Folders.from_env(), before)"
    )
    done = subprocess.run([sys.executable, "-c", code, kill], env=os.environ, check=False)
    assert done.returncode == -9
    assert version_of(path) == (3 if kill == "committed" else 2)
    check(folders)


def test_no_store_is_migrated_under_an_older_mlxkv(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has it open would write rows of the old format into the new one."""
    path = unpacked(folders, 2)
    monkeypatch.setattr(opening, "PAUSE", 0)
    code = (
        "import sys; from pathlib import Path; from mlxkv.store.locks import store_lock\n"
        "with store_lock(Path(sys.argv[1])):\n    print('open', flush=True); sys.stdin.read()"
    )
    locks = folders.data / "locks"
    locks.mkdir(0o700)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(locks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="of an older version, has the chats open; close it"):
            SessionStore.open(folders)
        assert version_of(path) == 2
        child.kill()
    check(folders)


def test_a_damaged_database_is_said_to_be_so_and_not_migrated(folders: Folders) -> None:
    path = unpacked(folders, 2)
    with closing(sqlite3.connect(path)) as db:
        (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'session'").fetchone()
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'session'", (sql.replace("STRICT", ""),))
        db.execute("PRAGMA writable_schema=RESET")
        db.execute("UPDATE session SET forked_at = 'x'")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'session'", (sql,))
        db.commit()
    with pytest.raises(CorruptError, match="mlxkv chats backups"):
        SessionStore.open(folders)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 2


@pytest.mark.parametrize("name", ["chat.json", "chat.mlxkv"])
def test_chats_that_older_versions_exported_are_imported(folders: Folders, name: str) -> None:
    with SessionStore.open(folders) as store:
        done = store.import_chat(STORES / "v2" / name, trust_kv=name.endswith("mlxkv"))
        assert (done.title, done.num_turns, done.num_tokens, done.notice) == ("the sky", 4, 100, None)
        assert done.kv_tokens == (100 if name.endswith("mlxkv") else 0)
        record = store.load(done.session_id)
        assert (record.kind, record.clock, record.origin, record.seed) == ("chat", None, None, None)
        cache = FakeCache(64)
        assert store.restore_kv(record.id, cache, model(), record.log).tokens == done.kv_tokens


def test_prompt_caches_of_older_versions_are_read() -> None:
    cache = FakeCache(64)
    found = read_prompt_file(STORES / "v2" / "book.kv", cache, model())
    assert (found.tokens, found.prompt) == (100, PromptText("be brief", "a book", "<s>be brief a book", 100, None))
    straight = FakeCache(64)
    straight.feed(cache.tokens)
    assert cache.state() == straight.state()


def newer(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("kind", ["store", "marker", "backup", "document", "archive", "prompt cache"])
def test_what_a_newer_version_wrote_is_refused_in_one_sentence(folders: Folders, tmp_path: Path, kind: str) -> None:
    with SessionStore.open(folders) as store:
        store.sessions.create("x", model())
        copy = backup.make(store._database.db, folders.data, Files())
    files = {name: tmp_path / name for name in ("chat.json", "chat.mlxkv", "book.kv")}
    for name, path in files.items():
        shutil.copy(STORES / "v2" / name, path)

    def use() -> None:
        if kind == "store":
            with sqlite3.connect(folders.data / "mlxkv.db") as db:
                db.execute("PRAGMA user_version=4")
            db.close()
        elif kind == "backup":
            with sqlite3.connect(copy) as db:
                db.execute("PRAGMA user_version=4")
            db.close()
            backup.restore(folders, copy.stem)
        elif kind == "marker":
            newer(folders.data / "store.json", b'"format": 1', b'"format": 2')
        elif kind == "document":
            newer(files["chat.json"], b"mlxkv chat 1", b"mlxkv chat 3")
        elif kind == "archive":
            newer(files["chat.mlxkv"], b'"chat 1"', b'"chat 2"')
        else:
            newer(files["book.kv"], b"prompt-cache 1", b"prompt-cache 3")
            read_prompt_file(files["book.kv"], FakeCache(64), model())
        with SessionStore.open(folders) as store:
            store.import_chat(files["chat.json" if kind == "document" else "chat.mlxkv"])

    with pytest.raises(StoreError, match=r"newer mlxkv .*; update mlxkv\.$") as caught:
        use()
    assert "\n" not in str(caught.value)
    print(caught.value)
