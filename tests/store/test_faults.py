"""Every file operation fails once, in every way: nothing acknowledged is lost, the user is told, the next save works.

In CI every second point fails in one way, the ways in turn; MLXKV_THOROUGH=1 tries every way at every point.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mlxkv.errors import StoreError
from mlxkv.store.files import Files
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model
from tests.store.harness import LIMIT, Ledger, Work, folders_in, judge
from tests.thorough import THOROUGH

WAYS = ["EIO", "ENOSPC", "EACCES", "short write", "crash before", "crash after"]


class Crash(BaseException):
    """The process ends here; nothing after it runs but what the kernel does."""


class Faulty(Files):
    """The n-th operation fails in one way. After a crash nothing reaches the disk any more."""

    def __init__(self, n: int, way: str) -> None:
        super().__init__(self.step)
        self.left, self.way = n, way
        self.hit: str | None = None
        self.is_dead = False

    def step(self, name: str) -> None:
        if self.is_dead:
            raise Crash
        self.left -= 1
        if self.left == 0:
            self.hit = name
            if self.way == "crash before":
                self.is_dead = True
                raise Crash
            if self.way in ("EIO", "ENOSPC", "EACCES") and name != "committed":  # which only crashes can follow
                number = getattr(errno, self.way)
                raise OSError(number, os.strerror(number))
        elif self.left == -1 and self.way == "crash after":
            self.is_dead = True
            raise Crash

    def _write(self, fd: int, part: bytes | memoryview) -> int:
        self.before("write")
        if self.left == 0 and self.way == "short write":
            os.write(fd, part[: len(part) // 3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = memoryview(part).cast("B")
        for start in range(0, len(view), 1000):  # the kernel may take less than it was given
            os.write(fd, view[start : start + 1000])
        return len(view)


def run(root: Path, n: int, way: str) -> tuple[str | None, Ledger]:
    """The workload with the n-th operation failing; which one it was, None if there are fewer."""
    files, ledger = Faulty(n, way), Ledger()
    try:
        with SessionStore.open(folders_in(root), disk_limit=LIMIT, files=files) as store:
            Work(store, ledger, carry_on=True).run()
    except Crash:
        pass
    except StoreError as error:  # the store could not be opened at all
        ledger.failures.append(str(error))
    return files.hit, ledger


def num_points(root: Path) -> int:
    files = Faulty(1 << 60, "EIO")
    with SessionStore.open(folders_in(root), disk_limit=LIMIT, files=files) as store:
        Work(store, Ledger()).run()
    return (1 << 60) - files.left


@pytest.mark.slow
def test_every_operation_fails_in_every_way(tmp_path: Path) -> None:
    points = num_points(tmp_path / "whole")
    tried: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for n in range(1, points + 1) if THOROUGH else range(2, points + 1, 2):
        for way in WAYS if THOROUGH else [WAYS[n // 2 % len(WAYS)]]:
            root = tmp_path / "one"
            hit, ledger = run(root, n, way)
            if hit is None:
                continue  # the writer thread took other turns
            wrong = judge(root, ledger, "c" if not ledger.failures and not ledger.told else None)
            assert wrong == [], f"operation {n} ({hit}), {way}"
            failed = way in ("EIO", "ENOSPC", "EACCES") and hit in ("create", "write", "fsync", "rename")
            if failed and ledger.rows.get("c") != 180:
                assert ledger.failures or ledger.told, f"operation {n} ({hit}), {way}: nobody was told"
            tried[way] += 1
            kinds[hit] += 1
            shutil.rmtree(root)
    print(f"{sum(tried.values())} faults at {points} points, {dict(tried)}, {dict(kinds)}: next save worked each time")
    assert sum(tried.values()) >= (5 if THOROUGH else 0.45) * points
    assert set(kinds) >= {"create", "write", "fsync", "rename", "fsync folder", "mkdir", "commit", "unlink", "backup"}


class FullDisk(Files):
    """A disk of so many bytes, over all files written."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def _write(self, fd: int, part: bytes | memoryview) -> int:
        if len(part) > self.room:
            os.write(fd, part[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(part)
        return super()._write(fd, part)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40 if THOROUGH else 10))
def test_a_disk_that_is_full_at_a_random_point_keeps_the_old_state_and_says_so(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    files, ledger = FullDisk(rng.randrange(500, 25_000)), Ledger()
    with SessionStore.open(folders_in(tmp_path), disk_limit=None, files=files) as store:
        Work(store, ledger, carry_on=True).run()
        notices = [text for text in (*ledger.told, *ledger.failures) if "No space left" in text]
        assert notices
        assert all(text.removesuffix(" The chat itself is saved.").count(". ") == 0 for text in notices)
        assert all(text.lower().count("the chat itself is saved") <= 1 for text in notices)
        files.room = 1 << 30  # somebody made room
        session = next(chat.id for chat in store.list() if chat.title == "c")
        record, cache = store.load(session), FakeCache(32)
        cache.feed(record.log)
        assert store.save_kv(session, cache, model()).pos == len(record.log)
        assert store.flush(session) is None
    assert judge(tmp_path, ledger) == []


def test_a_turn_that_cannot_be_saved_blocks_and_says_so(tmp_path: Path) -> None:
    armed = False

    def before(step: str) -> None:
        if armed and step == "commit":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with SessionStore.open(folders_in(tmp_path), before) as store:
        session = store.sessions.create("x", model())
        store.add_turn(session, TurnRecord("user", "one", (1,)))
        armed = True
        with pytest.raises(StoreError, match="No space left"):
            store.add_turn(session, TurnRecord("user", "two", (2,)))
        armed = False
        assert [turn.text for turn in store.load(session).turns] == ["one"]
        store.add_turn(session, TurnRecord("user", "two", (2,)))


@pytest.mark.slow
def test_the_kv_folder_deleted_before_every_step_loses_no_turn_and_gives_no_wrong_row(tmp_path: Path) -> None:
    points = num_points(tmp_path / "whole")
    stride = 1 if THOROUGH else 9
    runs = 0
    for n in range(1, points + 1, stride):
        root, left = tmp_path / "one", n
        ledger = Ledger()

        def before(step: str, root: Path = root) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                shutil.rmtree(root / "home" / "cache")

        with SessionStore.open(folders_in(root), before, disk_limit=LIMIT) as store:
            Work(store, ledger, carry_on=True).run()
        with SessionStore.open(folders_in(root)) as store:
            store.verify(repair=True)
        assert judge(root, ledger) == [], f"deleted before step {n}"
        shutil.rmtree(root)
        runs += 1
    print(f"the KV folder deleted at {runs} of {points} points: 0 turns lost, 0 wrong rows")
