"""A small parent for the window: when Metal aborts the process, it puts the terminal right and says what happened.

Running out of GPU memory is not an exception but an abort, so only another process can clean up. The parent imports
nothing of the program and sleeps; the child is a fresh process, since Metal does not survive a bare fork. Keys,
signals, stopping with Ctrl+Z and exit codes are the child's.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

LIFELINE = "MLXKV_LIFELINE"  # in the child's environment: a pipe that closes when the parent is gone
_KEPT = 64 << 10  # bytes of what the child wrote on stderr
# Pasting, focus and mouse reports, the keyboard protocol, synchronized output, the cursor, the other screen, colours.
_RESET = (
    b"\x1b[?2026l\x1b[<u\x1b[?2004l\x1b[?1004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l"
    b"\x1b[?25h\x1b[?1049l\x1b[0m\r\n"
)
_OUT_OF_MEMORY = (b"Insufficient Memory", b"OutOfMemory", b"out of memory", b"bad_alloc")


def supervise(command: Sequence[str], *, saves: bool = True) -> int:
    """Run `command` (a program and its arguments) on this terminal; its exit code, or 128 + the signal that ended it.

    Args:
        saves: whether the last sentence may promise that the chat is on disk.
    """
    terminal = termios.tcgetattr(0)
    lifeline, held = os.pipe()
    said, writes = os.pipe()
    os.set_inheritable(lifeline, True)
    pid = os.posix_spawn(
        command[0],
        list(command),
        {**os.environ, LIFELINE: str(lifeline)},
        file_actions=[(os.POSIX_SPAWN_DUP2, writes, 2)],
    )
    os.close(lifeline)
    os.close(writes)
    heard = bytearray()
    reader = threading.Thread(target=_listen, args=(said, heard), daemon=True)
    reader.start()
    _pass_on(pid)
    code = _wait(pid)
    os.close(held)
    reader.join(0.5)  # whoever the child has left behind may hold its stderr
    if code >= 0:
        os.write(2, bytes(heard))
        return code
    _restore(terminal)
    os.write(2, f"{farewell(-code, bytes(heard), saves)}\n".encode())
    return 128 - code


def farewell(number: int, heard: bytes, saves: bool) -> str:
    """One sentence about the signal that ended the window, and how to go on."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if any(sign in heard for sign in _OUT_OF_MEMORY):
        what = "out of GPU memory"
    elif number == signal.SIGKILL:
        what = "the system ended it (SIGKILL), perhaps because memory ran out"
    elif number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        what = f"it was told to end ({name})"
    else:
        what = f"it crashed ({name})"
    return f"mlxkv stopped: {what}." + (" Chat saved - mlxkv -c" if saves else "")


def watch_parent(env: Mapping[str, str] | None = None) -> None:
    """In the child: end when the parent is gone, however that went. Does nothing without a parent that watches."""
    number = (os.environ if env is None else env).get(LIFELINE, "")
    os.environ.pop(LIFELINE, None)
    if not number.isdigit():
        return
    fd = int(number)
    with suppress(OSError):
        os.set_inheritable(fd, False)
        threading.Thread(target=_end_with, args=(fd,), daemon=True).start()


def _end_with(fd: int) -> None:
    with suppress(OSError):
        os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGHUP)


def _listen(fd: int, heard: bytearray) -> None:
    while data := os.read(fd, 4096):
        heard += data
        del heard[:-_KEPT]


def _pass_on(pid: int) -> None:
    """Signals are the child's affair. What the terminal sends to both of us it gets anyway."""

    def forward(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)


def _wait(pid: int) -> int:
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        os.kill(os.getpid(), signal.SIGSTOP)  # the shell sees its job stopped; it goes on with `fg`
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _restore(terminal: list[object]) -> None:
    with suppress(termios.error):
        termios.tcsetattr(0, termios.TCSADRAIN, terminal)  # type: ignore[arg-type]
    with suppress(OSError):
        os.write(1, _RESET)


def is_terminal() -> bool:
    """Whether there is a terminal to put right."""
    return os.isatty(0) and os.isatty(1) and hasattr(os, "posix_spawn") and sys.executable != ""
