"""The terminal as a process has it: whether it is gone and what to do then, its standard error, its Ctrl+C.

A terminal that goes away sends SIGHUP, which ends the process unless it is ignored, as under nohup and some
supervisors. Then reading gives nothing or EIO and writing EIO, for ever.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GONE = 128 + signal.SIGHUP  # the exit code, as if the signal had ended us
_ERRORS = (errno.EIO, errno.ENXIO)


def is_gone(error: OSError) -> bool:
    """Whether a read or write that failed so was on a terminal that is gone."""
    return error.errno in _ERRORS


def has_ended(fd: int) -> bool:
    """Whether a read of nothing from the terminal `fd` means that it is gone: it does, unless Ctrl+D says so too."""
    try:
        return not termios.tcgetattr(fd)[3] & termios.ICANON
    except termios.error:
        return True


def let_go() -> None:
    """Let nothing fail any more for a terminal that is gone: its descriptors become /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        try:
            if stat.S_ISCHR(os.fstat(fd).st_mode):
                os.dup2(null, fd)
        except OSError:
            continue
    os.close(null)


@contextmanager
def standard_error_in(path: Path) -> Iterator[None]:
    """Append to a file what libraries write on a terminal as standard error, such as Rust on a panic, since that would
    be drawn over a window."""
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


def handle_interrupts(handler: Callable[..., object]) -> Any:
    """Set a handler of Ctrl+C and return what to set afterwards; none where it is ignored, as by `trap '' INT` and in
    the background of a script."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    return before
