"""The process's terminal: detecting that it is gone, redirecting standard error, handling Ctrl+C and other signals.

A terminal that is closed sends SIGHUP, which ends the process unless it is ignored, as under nohup. Then reads return
nothing or fail with EIO, and writes fail with EIO. Signal handlers: main thread; otherwise any thread.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GONE = 128 + signal.SIGHUP  # the exit code, as if SIGHUP had ended the process
_ERRORS = (errno.EIO, errno.ENXIO)


def is_terminal_error(error: OSError) -> bool:
    """Whether this error of a read or write means that the terminal is gone."""
    return error.errno in _ERRORS


def is_hung_up(fd: int) -> bool:
    """Whether an empty read from the terminal `fd` means that it is gone, not Ctrl+D."""
    try:
        return not termios.tcgetattr(fd)[3] & termios.ICANON
    except termios.error:
        return True


def detach_terminal() -> None:
    """Redirect the descriptors of a terminal that is gone to /dev/null, so that later reads and writes do not fail."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        try:
            if stat.S_ISCHR(os.fstat(fd).st_mode):
                os.dup2(null, fd)
        except OSError:
            continue
    os.close(null)


@contextmanager
def redirect_stderr(path: Path) -> Iterator[None]:
    """Redirect standard error from the terminal to a file: a library's output, such as a panic in Rust, would be drawn
    over the window."""
    if not os.isatty(2):
        yield
        return
    usual, file = os.dup(2), os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)


@contextmanager
def close_before_ending(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` when SIGTERM or SIGHUP tells the process to end, and let the signal end it after the block, which
    has saved what is open by then. A signal that is ignored, as under nohup, stays ignored."""
    received: list[int] = []

    def handler(number: int, _: object) -> None:
        received.append(number)
        stop()

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received[0])


@contextmanager
def handle_interrupts(handler: Callable[..., object]) -> Iterator[Any]:
    """Handle Ctrl+C inside the block, which gets the handler from before. If SIGINT is ignored, as after `trap '' INT`,
    it stays ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    try:
        yield before
    finally:
        signal.signal(signal.SIGINT, before)
