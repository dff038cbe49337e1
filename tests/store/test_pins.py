"""Rows that are to stay, and the removal of what nothing uses."""

from __future__ import annotations

import os
import time

import pytest

from mlxkv.config import Folders
from mlxkv.errors import SessionNotFoundError
from mlxkv.store.session_store import SessionStore
from tests.store.test_quota import LIMIT, back, feed, saved


@pytest.mark.slow
def test_rows_of_a_pinned_chat_outlast_those_of_newer_ones(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=LIMIT) as store:
        old, other = saved(store, "old", 500), saved(store, "other", 500)
        store.sessions.pin(old.id)
        for n in range(4):
            saved(store, f"new {n}", 500)
        assert (back(old), back(other)) == (500, 0)
        assert [chat.title for chat in store.list() if chat.pinned] == ["old"]
        fork = store.fork(old.id, 1)  # keeps what it shares and no more
        assert [chat.id for chat in store.list() if chat.pinned] == [old.id]
        store.delete(fork)
        store.sessions.pin(old.id, False)
        for n in range(4):
            saved(store, f"newer {n}", 500)
        assert back(old) == 0
        with pytest.raises(SessionNotFoundError):
            store.sessions.pin("nobody")


def test_collecting_frees_what_nothing_uses_and_nothing_else(folders: Folders) -> None:
    long_ago = time.time() - 7200
    with SessionStore.open(folders, disk_limit=None) as store:
        talk = saved(store, "talk", 400)
        feed(talk, 100)
        kv = folders.cache / "kv"
        leftovers = [kv / "tmp" / "left", kv / "quarantine" / "bad.1", kv / "aa" / f"{'a' * 32}.safetensors"]
        for path in leftovers:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * 50_000)
            os.utime(path, (long_ago, long_ago))
        before = store.disk_usage()
        freed = store.collect()
        assert freed >= 150_000
        assert before - store.disk_usage() == freed
        assert not any(path.exists() for path in leftovers)
        assert back(talk) == 500
        assert store.collect() == 0
