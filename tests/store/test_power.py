"""Lost power before any step, and five bugs put in on purpose, each of which this must notice.

The judge (harness.py) is the same for both: without a bug it finds nothing at any step; with one it finds something.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mlxkv.errors import StoreError
from mlxkv.store import files
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.files import Files
from mlxkv.store.kv.quota import Quota
from mlxkv.store.session_store import SessionStore
from tests.store.harness import LIMIT, Ledger, Work, folders_in, judge, no_waiting_for_the_disk
from tests.store.power import Disk, PowerCut
from tests.thorough import THOROUGH


def cut(root: Path, n: int, rng: random.Random) -> tuple[bool, Ledger]:
    """The workload with the power lost before step n; whether there was such a step."""
    disk, ledger = Disk(root), Ledger()
    left = n

    def before(step: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise PowerCut

    with (
        no_waiting_for_the_disk(),
        mock.patch("mlxkv.store.files.sync", lambda fd: disk.sync(fd)),
        suppress(PowerCut),
        SessionStore.open(folders_in(root), before, disk_limit=LIMIT) as store,
    ):
        Work(store, ledger).run()
    disk.lose_power(rng)
    return left <= 0, ledger


def check(root: Path, ledger: Ledger) -> list[str]:
    """Judged twice: what a save finds lying about must not become part of it."""
    with no_waiting_for_the_disk():
        wrong = judge(root, ledger, "c")
        try:
            with SessionStore.open(folders_in(root), disk_limit=LIMIT) as store:
                wrong += [problem.text for problem in store.verify().problems if problem.is_serious]
        except StoreError as error:
            wrong.append(str(error))
    return wrong


def sweep(root: Path, stride: int, first: int = 1) -> tuple[int, list[str]]:
    """Lose power before every `stride`-th step until something is wrong; the cuts made, and what is wrong."""
    cuts, n = 0, first
    while True:
        rng = random.Random(n)
        one = root / "one"
        was_cut, ledger = cut(one, n, rng)
        if not was_cut:
            return cuts, []
        cuts, n = cuts + 1, n + stride
        if wrong := check(one, ledger):
            return cuts, [f"before step {n - stride}: {text}" for text in wrong]
        shutil.rmtree(one)


@pytest.mark.slow
def test_lost_power_before_any_step_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    cuts, wrong = sweep(tmp_path, 1 if THOROUGH else 4)
    print(f"{cuts} power cuts, {len(wrong)} violations")
    assert wrong == []
    assert cuts >= 40


# -- bugs on purpose -------------------------------------------------------------------------------------------------


@contextmanager
def no_fsync() -> Iterator[None]:
    def sync(self: Disk, fd: int) -> None:
        pass

    with mock.patch.object(Disk, "sync", sync):
        yield


@contextmanager
def chunk_at_its_final_name() -> Iterator[None]:
    def write(self: Files, path: Path, parts: Any, tmp: Path) -> int:
        self.make_folder(path.parent)
        self.before("create")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            size = 0
            for part in parts:
                size += self._write(fd, part)
            self.before("fsync")
            files.sync(fd)
        finally:
            os.close(fd)
        self.sync_folder(path.parent)
        return size

    with mock.patch.object(Files, "write", write):
        yield


@contextmanager
def unlink_before_commit() -> Iterator[None]:
    real = Quota._candidates

    def candidates(self: Quota, *args: Any) -> list[Any]:
        found = real(self, *args)
        for chunk in found:
            if not chunk.is_locked:
                self.space.chunks.files.remove(self.space.chunks.path(chunk.digest))
                break
        return found

    with mock.patch.object(Quota, "_candidates", candidates):
        yield


@contextmanager
def head_in_a_second_transaction() -> Iterator[None]:
    real = Sessions.add_turn

    def add_turn(self: Sessions, session_id: str, turn: Any, head: str | None = None) -> str:
        old = self.known_heads[session_id]
        new = real(self, session_id, turn, head)
        self.database.db.execute("UPDATE session SET head = ? WHERE id = ?", (old, session_id))
        with self.database.writing() as db:
            db.execute("UPDATE session SET head = ? WHERE id = ?", (new, session_id))
        return new

    with mock.patch.object(Sessions, "add_turn", add_turn):
        yield


BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no fsync": no_fsync,
    "chunk at its final name": chunk_at_its_final_name,
    "unlink before commit": unlink_before_commit,
    "head in a second transaction": head_in_a_second_transaction,
}
"""The fifth, no checksum compare, is one that damage shows, not lost power: see test_corruption.py."""


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_put_in_on_purpose_is_noticed(tmp_path: Path, bug: str) -> None:
    with BUGS[bug]():
        cuts, wrong = sweep(tmp_path, 1, 130 if bug == "unlink before commit" else 30)
    print(f"{bug}: noticed at the {cuts}. cut: {wrong[:1]}")
    assert wrong


def test_the_judge_itself_finds_nothing_wrong_with_a_whole_run(tmp_path: Path) -> None:
    was_cut, ledger = cut(tmp_path, 1 << 30, random.Random(0))
    assert not was_cut
    assert check(tmp_path, ledger) == []
