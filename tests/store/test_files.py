"""The order of steps by which a file is either whole or absent, also after the power fails."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.errors import StoreError
from mlxkv.store.files import Files
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import ChunkHead, encode_chunk
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model


def test_bytes_are_synced_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def sync(fd: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")

    monkeypatch.setattr("mlxkv.store.files.sync", sync)
    (tmp_path / "tmp").mkdir()
    files = Files(lambda step: seen.append(f"({step})"))
    assert files.write(tmp_path / "x", [b"abc", b"de"], tmp_path / "tmp") == 5
    steps = ["(create)", "(write)", "(write)", "(fsync)", "file of 5", "(rename)", "(fsync folder)", "folder"]
    assert seen == steps
    assert (tmp_path / "x").read_bytes() == b"abcde"


def test_the_first_file_of_a_folder_makes_the_folders_name_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a process was killed after it had made the folder, or named the file, and before it synced that."""
    synced: list[str] = []

    def sync(fd: int) -> None:
        inode = os.fstat(fd).st_ino
        synced.append(next(path.name for path in tmp_path.rglob("*") if path.lstat().st_ino == inode))

    monkeypatch.setattr("mlxkv.store.files.sync", sync)
    files = Files()
    chunks = ChunkFiles(tmp_path / "kv", files)

    def folders_synced(path: Path) -> list[str]:
        synced.clear()
        files.write(path, [b"x"], tmp_path / "tmp")
        return [name for name in synced if not name.startswith(".mlxkv")]

    (tmp_path / "tmp").mkdir()
    assert folders_synced(tmp_path / "kv" / "ab" / "1") == ["ab", "kv"]
    assert folders_synced(tmp_path / "kv" / "ab" / "2") == ["ab"]
    (tmp_path / "kv" / "cd").mkdir()
    assert folders_synced(tmp_path / "kv" / "cd" / "1") == ["cd", "kv"]
    chunk = encode_chunk(ChunkHead("full", 0, 1, "ab"), {"0.k": ((1,), "U8")}, {"0.k": [b"x"]})
    assert chunks.put(chunk) == chunk.size
    synced.clear()
    assert chunks.put(chunk) == 0
    assert synced == [chunk.digest[:2], "kv"]


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    (tmp_path / "x").symlink_to(target)
    Files().write(tmp_path / "x", [b"new"], tmp_path)
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "x").is_symlink()


def test_a_chunk_that_vanishes_before_it_is_referred_to_is_written_again(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may sweep an unused chunk between our finding it and our transaction."""
    files, lost = talk.store._chunks, []
    put = files.put

    def put_and_lose(chunk: object) -> int:
        written = put(chunk)  # type: ignore[arg-type]
        if not lost:
            lost.append(chunk)
            files.files.remove(files.path(chunk.digest))  # type: ignore[attr-defined]
        return written

    monkeypatch.setattr(files, "put", put_and_lose)
    talk.turn(100)
    assert lost
    assert talk.store.num_bytes_written(talk.id) == talk.bytes_written > talk.store.disk_bytes(talk.id)
    assert talk.store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 100


def test_only_what_need_not_last_is_not_synced(folders: Folders, real_disk: None) -> None:
    with SessionStore.open(folders) as store:
        database = store._database

        def level() -> int:
            return database.db.execute("PRAGMA synchronous").fetchone()[0]

        with database.writing():
            assert level() == 2  # FULL: every commit is synced
        with database.writing(lasting=False):
            assert level() == 1
        assert level() == 2
        with pytest.raises(StoreError, match="No space"), database.writing(lasting=False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert level() == 2
