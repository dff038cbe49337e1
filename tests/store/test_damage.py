"""Damaged, missing and foreign files: fewer tokens, a notice and a quarantined file, never wrong rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.errors import ConfigError, CorruptError, MlxkvError, StoreError
from mlxkv.store.kv.chunk_format import verify_chunk
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model


def chunks(folders: Folders) -> list[Path]:
    return sorted((folders.cache / "kv").glob("??/*.safetensors"))


def flip(offset: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return change


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_first_row(path: Path) -> None:
    flip(8 + int.from_bytes(path.read_bytes()[:8], "little"))(path)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def link(path: Path) -> None:
    aside = path.with_suffix(".aside")
    path.rename(aside)
    path.symlink_to(aside)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "header length": flip(0),
    "header length, high byte": flip(7),
    "header text": flip(40),
    "data, first": flip_first_row,
    "data, last": flip(-1),
    "truncated": truncate,
    "empty": empty,
    "extended": extend,
    "link": link,
    "pipe": pipe,
    "folder": folder,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("window", [None, 64])
def test_every_damaged_chunk_costs_tokens_but_never_gives_other_rows(
    store: SessionStore, folders: Folders, damage: str, window: int | None
) -> None:
    talk = Talk(store, FakeCache(window))
    for _ in range(3):
        talk.turn(70)
    store.close()
    prefixes = set()
    for n, original in enumerate(chunks(folders)):
        root = folders.data.parent
        copy = Folders.from_env({"MLXKV_HOME": str(root.with_name(f"copy{n}"))})
        shutil.copytree(root, copy.data.parent)
        path = copy.cache / original.relative_to(folders.cache)
        DAMAGE[damage](path)
        with SessionStore.open(copy) as damaged:
            fresh = FakeCache(window, run=1)
            restored = damaged.restore_kv(talk.id, fresh, model(), talk.cache.tokens)
            prefixes.add(restored.tokens)
            uninterrupted = FakeCache(window)
            uninterrupted.feed(talk.cache.tokens[: restored.tokens])
            assert fresh.state() == uninterrupted.state()
            assert restored.tokens or not any(group.rows for group in fresh.groups)
            if restored.tokens < 210:
                assert restored.notice is not None
                assert f"{restored.tokens} of 210 tokens" in restored.notice
                assert not os.path.lexists(path)
                assert damage == "missing" or any((copy.cache / "kv" / "quarantine").iterdir())
            fresh.feed(talk.cache.tokens[restored.tokens :])
            assert damaged.commit_kv(talk.id, fresh, model()).pos == 210
            assert damaged.restore_kv(talk.id, FakeCache(window), model(), talk.cache.tokens).tokens == 210
    assert {0} < prefixes - {210}  # nothing, a part,
    assert (210 in prefixes) == (window is not None)  # and everything where the chunk was not needed any more


def test_a_chunk_under_another_chunks_name_is_refused(talk: Talk, folders: Folders) -> None:
    talk.turn(200)
    a, b = [path for path in chunks(folders) if path.stat().st_size > 3000][:2]
    a.write_bytes(b.read_bytes())
    fresh = FakeCache()
    restored = talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens)
    assert restored.tokens < 200
    assert restored.notice is not None


def test_a_database_that_points_to_the_wrong_chunk_is_noticed(talk: Talk, folders: Folders) -> None:
    """The chunk itself says which ids its rows were computed from."""
    other = Talk(talk.store, FakeCache())
    talk.turn(20)
    ids = tuple(range(500, 520))
    talk.store.add_turn(other.id, TurnRecord("user", "x", ids))
    other.cache.feed(ids)
    talk.store.commit_kv(other.id, other.cache, model())
    with sqlite3.connect(folders.data / "mlxkv.db") as db:
        db.execute("PRAGMA foreign_keys=0")
        mine, theirs = (
            [
                row[0]
                for row in db.execute(
                    "SELECT chunk FROM kv_ref JOIN kv_commit c ON c.id = kv_commit JOIN chunk k ON k.digest = chunk"
                    " WHERE session = ? ORDER BY grp, a",
                    (session,),
                )
            ]
            for session in (talk.id, other.id)
        )
        for wrong, right in zip(mine, theirs, strict=True):
            db.execute("UPDATE kv_ref SET chunk = ? WHERE chunk = ?", (right, wrong))
    db.close()
    assert talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 0
    with sqlite3.connect(folders.data / "mlxkv.db") as db:  # even when the key in the database agrees
        for wrong, right in zip(mine, theirs, strict=True):
            db.execute(
                "UPDATE chunk SET prefix_key = (SELECT prefix_key FROM chunk WHERE digest = ?) WHERE digest = ?",
                (wrong, right),
            )
    db.close()
    assert talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 0


@pytest.mark.slow
def test_verifying_a_chunk_needs_no_mlx(talk: Talk, folders: Folders) -> None:
    import subprocess
    import sys

    talk.turn(50)
    path = chunks(folders)[0]
    code = (
        "import sys; from pathlib import Path; import mlxkv.store.session_store; "
        "from mlxkv.store.kv.chunk_format import verify_chunk; "
        f"p = Path({str(path)!r}); verify_chunk(p, p.stem, p.stat().st_size); "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'textual')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    size = path.stat().st_size
    flip(-1)(path)
    with pytest.raises(CorruptError, match="checksum"):
        verify_chunk(path, path.stem, size)
    flip(-1)(path)
    verify_chunk(path, path.stem, size)
    link(path)
    with pytest.raises(CorruptError, match="cannot be opened"):
        verify_chunk(path, path.stem, size)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rng = x'07'", "pos = 39", "turn_digest = 'aa'", "spec_id = 'aa'", "model = 'aa'"])
def test_a_damaged_commit_is_not_used(talk: Talk, folders: Folders, change: str) -> None:
    talk.turn(40)
    db = sqlite3.connect(folders.data / "mlxkv.db")
    db.execute(f"UPDATE kv_commit SET {change}")
    db.commit()
    db.close()
    restored = talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens)
    assert (restored.tokens, restored.rng) == (0, None)


@pytest.mark.slow
def test_the_kv_folder_may_vanish_while_running(talk: Talk, folders: Folders) -> None:
    talk.turn(100)
    shutil.rmtree(folders.cache / "kv")
    talk.turn(50)  # saves everything that is still held
    fresh = FakeCache(run=1)
    assert talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens == 150
    assert fresh.state() == talk.cache.state()
    shutil.rmtree(folders.cache / "kv")
    restored = talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens)
    assert (restored.tokens, fresh.tokens) == (0, [])
    assert restored.notice is not None
    assert len(talk.store.load(talk.id).turns) == 4


def test_an_error_in_the_cache_itself_leaves_it_empty(talk: Talk) -> None:
    talk.turn(100)
    fresh = FakeCache()

    def fail() -> None:
        raise MemoryError

    fresh.finish_restore = fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens)
    assert not fresh.groups[0].rows


def test_damaged_turns_are_an_error_that_names_the_turn(talk: Talk, folders: Folders) -> None:
    talk.turn(20)
    talk.turn(20)
    for change in (
        "UPDATE turn SET text = 'forged' WHERE i = 2",
        "UPDATE turn SET ids = x'01000000' WHERE i = 2",
        "UPDATE turn SET start = 3 WHERE i = 2",
        "UPDATE turn SET stats = '{\"a\":1}' WHERE i = 2",
        "DELETE FROM turn WHERE i = 2",
        "UPDATE turn SET i = 9 WHERE i = 2",
    ):
        session = talk.store.fork(talk.id, 4)
        db = sqlite3.connect(folders.data / "mlxkv.db")
        db.execute(f"{change} AND session = ?", (session,))
        db.commit()
        db.close()
        with pytest.raises(CorruptError, match="Turn 3"):
            talk.store.load(session)
        with pytest.raises(CorruptError):
            talk.store.restore_kv(session, FakeCache(), model(), talk.cache.tokens)
    session = talk.store.fork(talk.id, 0)
    db = sqlite3.connect(folders.data / "mlxkv.db")
    db.execute("DELETE FROM turn WHERE i = 3 AND session = ?", (talk.id,))
    db.execute("UPDATE session SET system = 'forged' WHERE id = ?", (session,))
    db.commit()
    db.close()
    for damaged in (talk.id, session):
        with pytest.raises(CorruptError):
            talk.store.load(damaged)


def test_a_newer_or_foreign_database_is_refused(folders: Folders) -> None:
    SessionStore.open(folders).close()
    db = sqlite3.connect(folders.data / "mlxkv.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="99"):
        SessionStore.open(folders)
    db = sqlite3.connect(folders.data / "mlxkv.db")
    db.execute("PRAGMA user_version=1")
    db.execute("PRAGMA application_id=7")
    db.close()
    with pytest.raises(StoreError, match="0x7"):
        SessionStore.open(folders)


def test_a_store_whose_database_is_gone_is_not_a_first_start(folders: Folders) -> None:
    SessionStore.open(folders).close()
    path = folders.data / "mlxkv.db"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match=r"mlxkv\.db does not"):
        SessionStore.open(folders)
    assert not path.exists()
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match="empty"):
        SessionStore.open(folders)
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(CorruptError, match="damaged"):
        SessionStore.open(folders)
    path.write_bytes(data)
    (folders.data / "store.json").write_text('{"format": 1, "store": "other"}')
    with pytest.raises(StoreError, match=r"store\.json"):
        SessionStore.open(folders)
    for text in ("", "[]", '{"format": 2, "store": "x"}'):
        (folders.data / "store.json").write_text(text)
        with pytest.raises(StoreError, match=r"store\.json"):
            SessionStore.open(folders)
    (folders.data / "store.json").unlink()
    SessionStore.open(folders).close()
    assert (folders.data / "store.json").is_file()


def test_everything_on_disk_is_private(talk: Talk, folders: Folders) -> None:
    talk.turn(50)
    with talk.store.lock(talk.id):
        for root in (folders.data, folders.cache / "kv"):
            for path in [root, *root.rglob("*")]:
                assert path.stat().st_mode & 0o077 == 0, path
    folders.data.chmod(0o770)
    with pytest.raises(ConfigError, match="chmod"):
        SessionStore.open(folders)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["create", "write", "fsync", "rename", "fsync folder", "mkdir", "commit"])
@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
def test_a_failed_write_leaves_nothing_behind_and_the_next_one_works(
    folders: Folders, step: str, fails: OSError
) -> None:
    armed = False

    def before(found: str) -> None:
        if armed and found == step:
            raise fails

    with SessionStore.open(folders, before) as store:
        talk = Talk(store, FakeCache())
        talk.turn(40)
        store.add_turn(talk.id, TurnRecord("user", "more", tuple(range(100))))
        talk.cache.feed(range(100))
        armed = True
        if step == "mkdir":
            shutil.rmtree(folders.cache / "kv")
        with pytest.raises((StoreError, OSError)) as caught:
            store.commit_kv(talk.id, talk.cache, model())
        assert step == "commit" or isinstance(caught.value, MlxkvError)
        assert not list((folders.cache / "kv").glob("tmp/*"))
        armed = False
        assert store.commit_kv(talk.id, talk.cache, model()).pos == 140
        fresh = FakeCache(run=1)
        assert store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens == 140
        assert fresh.state() == talk.cache.state()


def test_old_leftovers_are_swept_and_new_ones_are_not(talk: Talk, folders: Folders) -> None:
    talk.turn(50)
    kv = folders.cache / "kv"
    for name in ("tmp", "ab"):
        (kv / name).mkdir(exist_ok=True)
    old = [kv / "tmp" / "old", kv / "ab" / f"{'ab' * 16}.safetensors"]
    new = [kv / "tmp" / "new", kv / "ab" / f"{'ac' * 16}.safetensors"]
    for path in (*old, *new):
        path.write_bytes(b"x")
    for path in (*old, *chunks(folders)):
        if path not in new:
            os.utime(path, (1, 1))
    SessionStore.open(folders).close()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in new)
    assert talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 50
