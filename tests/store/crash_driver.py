"""Kill a writer with SIGKILL before its n-th step on disk, for n = 1, 2, ... until it gets through; check each time.

Run by test_crash.py as a process of its own, which forks the writers: importing MLX once is enough. Prints one JSON
line at the end. Usage: python -m tests.store.crash_driver FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from mlxkv.config import Folders
from mlxkv.store import SessionStore, TurnRecord, read_prompt_file, write_prompt_file
from tests.store.fake import FakeCache, model

WINDOW = 32


def write(root: Path, before: Callable[[str], None]) -> None:
    """The writer: two turns with an open reply, commits, a fork that is deleted, a prompt file written twice."""
    acks = os.open(root / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def ack(what: str) -> None:
        os.write(acks, f"{what}\n".encode())

    with SessionStore.open(folders(root), before) as store:
        session = store.create("talk", model())
        cache = FakeCache(WINDOW)
        for n in range(2):
            ids = tuple(range(100 * n, 100 * n + 40))
            store.add_turn(session, TurnRecord("user", f"q{n}", ids[:20]))
            ack(f"turn q{n}")
            cache.feed(ids[:20])
            store.add_turn(session, TurnRecord("assistant", "open", ids[20:25], state="open"))
            cache.feed(ids[20:])
            store.update_open_turn(session, TurnRecord("assistant", f"a{n}", ids[20:]))
            ack(f"turn a{n}")
            store.commit_kv(session, cache, model(), rng=b"r")
            ack(f"kv {len(cache.tokens)}")
            write_prompt_file(root / "book.kv", cache, model(), before=before)
            ack(f"file {len(cache.tokens)}")
            if n == 0:
                fork = store.fork(session, 2)
                store.delete(fork)
    ack("through")


def check(root: Path) -> None:
    """What was acknowledged is there; what is there is right."""
    acks = (root / "acks").read_text().splitlines() if (root / "acks").exists() else []
    turns = [ack.split()[1] for ack in acks if ack.startswith("turn")]
    rows = max([int(ack.split()[1]) for ack in acks if ack.startswith("kv")], default=0)
    in_file = max([int(ack.split()[1]) for ack in acks if ack.startswith("file")], default=0)
    with SessionStore.open(folders(root)) as store:
        sessions = [chat for chat in store.list() if chat.title == "talk"]
        if not sessions:
            assert not turns
            return
        record = store.load(sessions[0].id)
        found = [turn.text for turn in record.turns if turn.state == "done"]
        assert found[: len(turns)] == turns, (found, turns)
        assert len(found) <= len(turns) + 1
        cache = FakeCache(WINDOW)
        restored = store.restore_kv(record.id, cache, model(), record.log)
        assert restored.notice is None, restored.notice
        assert rows <= restored.tokens <= len(record.log), (rows, restored.tokens)
        uninterrupted = FakeCache(WINDOW)
        uninterrupted.feed(record.log[: restored.tokens])
        assert cache.state() == uninterrupted.state()
        cache.feed(record.log[restored.tokens :])
        assert store.commit_kv(record.id, cache, model()).pos == len(record.log)
        store.add_turn(record.id, TurnRecord("user", "goes on", (1, 2)))
    if in_file or (root / "book.kv").exists():
        assert read_prompt_file(root / "book.kv", FakeCache(WINDOW), model()).tokens >= in_file


def folders(root: Path) -> Folders:
    return Folders.from_env({"MLXKV_HOME": str(root / "home")})


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


def main(folder: Path) -> None:
    kills = []
    while True:
        root = folder / str(len(kills))
        root.mkdir()
        left, step = len(kills) + 1, ""
        log = root / "step"

        def before(found: str, log: Path = log) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                log.write_text(found)
                os.kill(os.getpid(), signal.SIGKILL)

        status = in_child(lambda root=root, before=before: write(root, before))
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"the writer failed by itself before step {len(kills) + 1}"
        step = log.read_text()
        assert in_child(lambda root=root: check(root)) == 0, f"killed before step {len(kills) + 1}, {step!r}"
        kills.append(step)
        shutil.rmtree(root)
    print(json.dumps({"kills": len(kills), "steps": sorted(set(kills))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
