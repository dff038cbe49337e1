"""The child's side of `supervisor`: it ends with its parent, receives keys from it and reports to it. Any thread.

While a tokenizer or a chat template holds the interpreter, the window can neither read keys nor end. So the parent
reads unread keys, watches for a quit among them, and sends them here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn

from mlxkv.system.supervisor import (
    ALIVE,
    DONE,
    ENDED_AT_ONCE,
    PARENT_PIPE_ENV,
    POLL_SECONDS,
    QUITTING,
    TERMINAL_GONE,
    WINDOW_PAUSED,
    WINDOW_READS,
)

_FOREIGN = ("mlxkv.tokenizer.tokens", "mlxkv.tokenizer.chat_template")  # modules that call a model's own code


class SupervisorLink:
    """The window's link to its parent.

    Args:
        keys: a pipe from the parent, which closes when the parent is gone.
        reports: a pipe to the parent.

    Attributes:
        keys: bytes that the parent read from the terminal, oldest first.
    """

    def __init__(self, keys: int, reports: int) -> None:
        self.keys: deque[bytes] = deque()
        self._reports = reports
        self._is_quitting = False
        os.set_blocking(reports, False)
        threading.Thread(target=self._listen, args=(keys,), daemon=True).start()

    def report_window(self) -> None:
        """Report that the window reads keys; it calls `alive` after each read."""
        self._report(WINDOW_READS)

    def report_pause(self) -> None:
        """Report that an editor or the shell reads the keys."""
        self._report(WINDOW_PAUSED)

    def report_no_terminal(self) -> None:
        self._report(TERMINAL_GONE)

    def report_done(self) -> None:
        """Report that only the interpreter has yet to end."""
        self._report(DONE)

    def alive(self) -> None:
        self._report(ALIVE)

    def quit(self) -> None:
        """Report a quit: from now on the parent kills this process after two seconds without a report.

        Reports cease while the engine stays in one call of a model's tokenizer or template.
        """
        if self._is_quitting:
            return
        self._is_quitting = True
        self._report(QUITTING)
        threading.Thread(target=self._keep_reporting, daemon=True).start()

    def _keep_reporting(self) -> None:
        last = None
        while True:
            threading.Event().wait(POLL_SECONDS)
            call = foreign_call()
            if call is None or call is not last:
                self.alive()
            last = call

    def _report(self, report: bytes) -> None:
        try:
            os.write(self._reports, report)
        except OSError:
            return  # the parent is gone

    def _listen(self, fd: int) -> None:
        try:
            while data := os.read(fd, 4096):
                self.keys.append(data)
        finally:
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as under nohup
            os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGHUP)


def watch_parent(env: Mapping[str, str] | None = None) -> SupervisorLink | None:
    """In the child: connect to the parent, and end when it is gone. None without a supervising parent."""
    numbers = (os.environ if env is None else env).get(PARENT_PIPE_ENV, "").split(",")
    os.environ.pop(PARENT_PIPE_ENV, None)
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return None
    keys, reports = map(int, numbers)
    try:
        for fd in (keys, reports):
            os.set_inheritable(fd, False)
    except OSError:
        return None
    return SupervisorLink(keys, reports)


def foreign_call() -> FrameType | None:
    """The frame of the engine thread that is inside a model's tokenizer or chat template, if any."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0) if thread.name == "mlxkv-engine" else None
        while frame is not None:
            if frame.f_globals.get("__name__") in _FOREIGN:
                return frame
            frame = frame.f_back
    return None


def end_at_once(text: str) -> NoReturn:
    """End this process, of which a thread waits for ever, and say why; a parent restores the terminal."""
    os.write(2, f"mlxkv: {text}\n".encode())
    os._exit(ENDED_AT_ONCE)
