"""Keeps the Mac awake while mlxkv works: a child process `caffeinate`, at most one, and none while nothing runs.

`-i` prevents idle sleep only, and `-w` ends it with this process, whatever ends that. Where there is no such program,
nothing happens. Any thread.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TYPE_CHECKING = False  # as in `typing`, without its import time
if TYPE_CHECKING:
    from subprocess import Popen


class KeepAwake:
    """Counts what runs. `enabled` False does nothing."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._lock = threading.Lock()
        self._num_running = 0
        self._is_set = False
        self._process: Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stay awake in the block, and while any other like it runs."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def set(self, is_running: bool) -> None:
        """Stay awake from a call with True until one with False, for an owner that sees its state now and then."""
        if is_running is not self._is_set:
            self._is_set = is_running
            self._add(1 if is_running else -1)

    def _add(self, change: int) -> None:
        with self._lock:
            self._num_running += change
            if self._enabled and self._num_running and self._process is None:
                self._process = _caffeinate()
            elif not self._num_running and self._process is not None:
                process, self._process = self._process, None
                process.kill()
                process.wait()  # at once; else a zombie stays


def _caffeinate() -> Popen[bytes] | None:
    from subprocess import DEVNULL, Popen

    if (program := shutil.which("caffeinate")) is None:
        return None
    command = [program, "-i", "-w", str(os.getpid())]
    try:  # in a session of its own: Ctrl+C is for this process
        return Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)
    except OSError:
        return None
