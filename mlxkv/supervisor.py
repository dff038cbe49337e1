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

TYPE_CHECKING = False  # what `typing` says, without the milliseconds it takes to import
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIFELINE = "MLXKV_LIFELINE"  # in the child's environment: a pipe that closes when the parent is gone
_KEPT = 64 << 10  # bytes of what the child wrote on stderr
# Pasting, focus and mouse reports, the keyboard protocol, synchronized output, long lines, the cursor, the other
# screen, colours.
_RESET = (
    b"\x1b[?2026l\x1b[<u\x1b[?2004l\x1b[?1004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l"
    b"\x1b[?7h\x1b[?25h\x1b[?1049l\x1b[0m\r\n"
)
_OUT_OF_MEMORY = (b"Insufficient Memory", b"OutOfMemory", b"out of memory", b"bad_alloc")


def supervise(command: Sequence[str], *, saves: bool = True) -> int:
    """Run `command` (a program and its arguments) on this terminal; its exit code, or 128 + the signal that ended it.

    Args:
        saves: whether the last sentence may promise that the chat is on disk.
    """
    terminal = termios.tcgetattr(0)
    lifeline, held = os.pipe()
    os.set_inheritable(lifeline, True)
    heard = _unnamed_file()
    pid = os.posix_spawn(
        command[0],
        list(command),
        {**os.environ, LIFELINE: str(lifeline)},
        file_actions=[] if heard is None else [(os.POSIX_SPAWN_DUP2, heard, 2)],
    )
    os.close(lifeline)
    _pass_on(pid)
    code = _wait(pid)
    os.close(held)
    said = b"" if heard is None else os.pread(heard, _KEPT, max(0, os.fstat(heard).st_size - _KEPT))
    if code >= 0:
        os.write(2, said)
        return code
    _restore(terminal)
    os.write(2, f"{farewell(-code, said, saves)}\n".encode())
    return 128 - code


def _unnamed_file() -> int | None:
    """Where the child's stderr goes, so that it is not drawn over the window; None where nothing can be written."""
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/mlxkv-{os.getpid()}-{os.urandom(8).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.unlink(path)
    except OSError:
        return None
    return fd


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
    import threading

    fd = int(number)
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return
    threading.Thread(target=_end_with, args=(fd,), daemon=True).start()


def _end_with(fd: int) -> None:
    try:
        os.read(fd, 1)
    finally:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup has it
        os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGHUP)


def _pass_on(pid: int) -> None:
    """Signals are the child's affair. What the terminal sends to both of us it gets anyway."""

    def forward(number: int, _: object) -> None:
        _send(pid, number)

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
        _send(pid, signal.SIGCONT)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended by itself


def _restore(terminal: list[object]) -> None:
    try:
        termios.tcsetattr(0, termios.TCSADRAIN, terminal)  # type: ignore[arg-type]
        os.write(1, _RESET)
    except (OSError, termios.error):
        return  # the terminal is gone too


def is_terminal() -> bool:
    """Whether there is a terminal to put right."""
    return os.isatty(0) and os.isatty(1) and hasattr(os, "posix_spawn") and sys.executable != ""
