"""A process that rank 0 started with `--hosts`: reads its place in the group from its pipe, and ends with it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlxkv.distributed.control import ALIVE, READY, SIGN_OF_LIFE_SECONDS, temporary
from mlxkv.distributed.doorkeeper import doorkeeper
from mlxkv.errors import MlxkvError


def main() -> None:
    """Follow until the pipe closes. Its errors are for rank 0, which shows the last one."""
    table = json.loads(_line())
    os.environ.update(table["environ"], **{name: temporary(text) for name, text in table["files"].items()})
    calls = threading.Semaphore(0)  # rank 0 may call again before this process has slept
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    threading.Thread(target=_tell, daemon=True).start()
    from mlxkv.distributed.start import follow_by_table, joined  # takes seconds, in which rank 0 may end

    @contextmanager
    def joining() -> Iterator[None]:
        os.write(1, READY)
        calls.acquire()  # until all are ready: whoever joins can be ended only from outside
        with doorkeeper([os.dup(0)], ()):
            yield

    def sleep() -> bool:
        calls.acquire()
        return True

    try:
        link = joined(joining())
        assert link is not None
        follow_by_table(link, sleep)
    except MlxkvError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _line() -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        if not (piece := os.read(0, 1)):
            sys.exit(1)
        found += piece
    return found


def _listen(calls: threading.Semaphore) -> None:
    while os.read(0, 1):
        calls.release()
    os._exit(1)


def _tell() -> None:
    while True:
        try:
            os.write(1, ALIVE)
        except OSError:
            os._exit(1)
        time.sleep(SIGN_OF_LIFE_SECONDS)


if __name__ == "__main__":
    main()
