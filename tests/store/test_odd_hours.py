"""The disk limit in odd hours: files that cannot be removed, a limit that was lowered, a chat about to be resumed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxkv.cli.start import session_id_of
from mlxkv.config import Folders
from mlxkv.errors import StoreError
from mlxkv.store.files import Files
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache
from tests.store.test_quota import back, du, feed, saved


class Stuck(Files):
    """Files that `is_stuck` names cannot be removed."""

    def __init__(self, is_stuck: Callable[[Path], bool]) -> None:
        super().__init__()
        self.is_stuck = is_stuck

    def remove(self, path: Path) -> None:
        if self.is_stuck(path):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        super().remove(path)


WHICH = {
    "all": lambda path: path.suffix == ".safetensors",
    "half of them": lambda path: path.suffix == ".safetensors" and path.name < "8",
    "none": lambda path: False,
}


@pytest.mark.slow
@pytest.mark.parametrize("which", WHICH)
def test_only_what_was_removed_is_forgotten(folders: Folders, which: str) -> None:
    with SessionStore.open(folders, disk_limit=None) as store:
        talks = [saved(store, f"chat {n}", 300) for n in range(4)]
    files = {path.stem for path in (folders.cache / "kv").glob("??/*.safetensors")}
    limit = du(folders) // 2
    with SessionStore.open(folders, disk_limit=limit, files=Stuck(WHICH[which])) as store:
        with store._database.reading() as db:
            known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
        left = {path.stem for path in (folders.cache / "kv").glob("??/*.safetensors")}
        assert known == left
        if which == "all":
            assert left == files
            assert [back(_in(store, talk)) for talk in talks] == [300] * 4  # all rows are still of use
        said = _failure(Talk(store, FakeCache(), "new"))
        assert ("cannot be removed" in said) == (which != "none")
        assert "open chats" not in said
    with SessionStore.open(folders, disk_limit=limit) as store:  # somebody has mended the folder
        assert du(folders) <= limit
        assert store.verify().problems == ()


def _in(store: SessionStore, talk: Talk) -> Talk:
    talk.store = store
    return talk


def _failure(talk: Talk) -> str:
    """What is said of a save that needs room."""
    try:
        return feed(talk, 300) or ""
    except StoreError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("named", ["oldest", "middle", "newest", None, "-c"])
def test_a_start_goes_by_the_limit_but_not_at_the_cost_of_the_chat_it_resumes(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    titles = ("oldest", "middle", "newest")
    with SessionStore.open(folders, disk_limit=None) as store:
        ids = {title: saved(store, title, 4000).id for title in titles}
        sizes = {title: store.disk_bytes(ids[title]) for title in titles}
        used = store.disk_usage()
    monkeypatch.setenv("MLXKV_DISK_LIMIT", str(used * 0.45 / 1e9))
    found = session_id_of(folders, None if named == "-c" else named, named == "-c")
    meant = {"-c": "newest", None: "newest"}.get(named, named)
    assert found == (None if named is None else ids[str(meant)])
    with SessionStore.open(folders, enforce=False) as store:
        assert du(folders) <= used * 0.45
        assert store.disk_bytes(ids[str(meant)]) == sizes[str(meant)]
        assert sum(store.disk_bytes(id) for id in ids.values()) < sum(sizes.values())
        with store.lock(ids[str(meant)]):
            store.enforce_limit()
        assert store.disk_bytes(ids[str(meant)]) == sizes[str(meant)]


def test_a_chat_larger_than_the_lowered_limit_is_resumed_whole(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(folders, disk_limit=None) as store:
        talk = saved(store, "large", 4000)
        size = store.disk_bytes(talk.id)
    monkeypatch.setenv("MLXKV_DISK_LIMIT", str(size / 2 / 1e9))
    assert session_id_of(folders, "large", False) == talk.id
    with SessionStore.open(folders, enforce=False) as store:
        assert store.disk_bytes(talk.id) == size


def test_figures_say_what_is_there_after_somebody_cleared_the_folder(folders: Folders) -> None:
    with SessionStore.open(folders) as store:
        ids = [saved(store, f"chat {n}", 300).id for n in range(2)]
        before = {c.id: c.kv_bytes for c in store.list()}
        assert all(before[id] == store.disk_bytes(id) for id in ids)
        first, *_ = sorted((folders.cache / "kv").glob("??/*.safetensors"))
        size = first.stat().st_size
        first.unlink()
        after = {c.id: c.kv_bytes for c in store.list()}
        assert sum(before.values()) - sum(after.values()) == size
        shutil.rmtree(folders.cache / "kv")
        assert [c.kv_bytes for c in store.list()] == [0, 0]
        assert store.disk_usage() == du(folders)
