"""Kill a writer with SIGKILL before its n-th step on disk, for each n until it gets through; judge each time.

Run by test_crash.py as a process of its own, which forks the writers: importing MLX once is enough. Prints one JSON
line at the end. Usage: python -m tests.store.crash_driver FOLDER STRIDE, which is 1 for every n
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from mlxkv.config import private_folder
from mlxkv.store.prompts.kv_file import read_prompt_file, write_prompt_file
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model
from tests.store.harness import LIMIT, WINDOW, Ledger, Work, folders_in, judge, no_waiting_for_the_disk

NEWEST = "c"  # its rows are never evicted


class LedgerOnDisk(Ledger):
    """Survives the writer."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self) -> None:
        line = json.dumps([self.turns, self.rows, sorted(self.deleted)])
        os.write(self._fd, f"{line}\n".encode())


def read_ledger(path: Path) -> Ledger:
    lines = path.read_text().splitlines() if path.exists() else []
    turns, rows, deleted = json.loads(lines[-1]) if lines else ({}, {}, [])
    return Ledger(turns, rows, set(deleted))


def write(root: Path, before: Callable[[str], None]) -> None:
    """The workload, and a named prompt cache that is written twice."""
    ledger = LedgerOnDisk(root / "ledger")

    def step(name: str) -> None:
        ledger.note()  # all that was acknowledged up to here
        before(name)

    with SessionStore.open(folders_in(root), step, disk_limit=LIMIT) as store:
        work = Work(store, ledger)
        work.run()
        for title in ("a", "c"):
            path = private_folder(book_in(root).parent) / "book.kv"
            with store.saving_named(path) as check_size:
                write_prompt_file(path, work.caches[title], model(), before=step, check_size=check_size)
            ledger.rows["book"] = len(work.caches[title].tokens)
    ledger.note()


def book_in(root: Path) -> Path:
    return folders_in(root).cache / "prompts" / "book.kv"


def check(root: Path) -> None:
    ledger = read_ledger(root / "ledger")
    if wrong := judge(root, ledger, NEWEST):
        raise AssertionError(wrong)
    if "book" in ledger.rows or book_in(root).exists():
        back = read_prompt_file(book_in(root), FakeCache(WINDOW), model())
        assert back.tokens >= ledger.rows.get("book", 0)


def in_child(work: Callable[[], None]) -> int:
    """The wait status of `work` in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main(folder: Path, stride: int) -> None:
    kills: list[str] = []
    while True:
        root = folder / str(len(kills))
        root.mkdir()
        number, log = (len(kills) + 1) * stride, root / "step"
        left = number

        def before(found: str, log: Path = log) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                log.write_text(found)
                os.kill(os.getpid(), signal.SIGKILL)

        status = in_child(lambda root=root, before=before: write(root, before))
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"the writer failed by itself before step {number}"
        step = log.read_text()
        assert in_child(lambda root=root: check(root)) == 0, f"killed before step {number}, {step!r}"
        kills.append(step)
        shutil.rmtree(root)
    print(json.dumps({"kills": len(kills), "steps": {step: kills.count(step) for step in sorted(set(kills))}}))


if __name__ == "__main__":
    with no_waiting_for_the_disk():
        main(Path(sys.argv[1]), int(sys.argv[2]))
