"""A small parent for the window: when Metal aborts the process, it puts the terminal right and says what happened.

Running out of GPU memory is not an exception but an abort, so only another process can clean up. The parent imports
nothing of the program and sleeps; the child is a fresh process, since Metal does not survive a bare fork. Keys,
signals, stopping with Ctrl+Z and exit codes are the child's.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time

TYPE_CHECKING = False  # what `typing` says, without the milliseconds it takes to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LIFELINE = "MLXKV_LIFELINE"  # in the child's environment: two pipes, of which the first closes when the parent is gone
UP, AWAY, ALIVE, QUITS, ALONE = b"+", b"-", b".", b"q", b"a"  # what the child says: see `supervised.Supervisor`
TICK = 0.2  # seconds between two looks at a window that may no longer answer
STALL = 0.8  # seconds after which keys that nobody fetched are read here
PATIENCE = 1.6  # seconds from a quit, or the last sign of life after it, to the end
_KEY = rb"\x1b\[(\d+)(?:;(\d*)[\d:]*)?(?:;[\d:]*)?u"  # as the keyboard protocol has it: its code, its modifiers + 1
_QUIT = rb"[\x03\x04\x11]|/(?:quit|exit|bye)[\r\n]"  # Ctrl+C, Ctrl+D and Ctrl+Q, and the commands
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
    lifeline, keys = os.pipe()
    reports, reporting = os.pipe()
    for fd in (lifeline, reporting):
        os.set_inheritable(fd, True)
    heard = _unnamed_file()
    pid = os.posix_spawn(
        command[0],
        list(command),
        {**os.environ, LIFELINE: f"{lifeline},{reporting}"},
        file_actions=[] if heard is None else [(os.POSIX_SPAWN_DUP2, heard, 2)],
    )
    os.close(lifeline)  # but not `reporting`: without a writer, `reports` would be at its end, and always readable
    _pass_on(pid)
    watch = Watch(reports, keys, open_terminal())
    code = _wait(pid, watch)
    said = b"" if heard is None else os.pread(heard, _KEPT, max(0, os.fstat(heard).st_size - _KEPT))
    if code >= 0:
        if code or not watch.was_up:  # nothing below a window that ended well: it has told of a panic of Rust's itself
            _write(2, said)
        return code
    _restore(terminal)
    _write(2, f"{farewell(-code, said, saves, watch.given_up)}\n".encode())
    return 1 if watch.given_up else 128 - code


def _unnamed_file() -> int | None:
    """Where the child's stderr goes, so that it is not drawn over the window; None where nothing can be written."""
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/mlxkv-{os.getpid()}-{os.urandom(8).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.unlink(path)
    except OSError:
        return None
    return fd


def farewell(number: int, heard: bytes, saves: bool, given_up: bool = False) -> str:
    """One sentence about the signal that ended the window, and how to go on.

    Args:
        given_up: it was us who ended it, since it did not quit.
    """
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if given_up:
        what = "it hung, perhaps in the model's tokenizer or template"
    elif any(sign in heard for sign in _OUT_OF_MEMORY):
        what = "out of GPU memory"
    elif number == signal.SIGKILL:
        what = "the system ended it (SIGKILL), perhaps because memory ran out"
    elif number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        what = f"it was told to end ({name})"
    else:
        what = f"it crashed ({name})"
    return f"mlxkv stopped: {what}." + (" Chat saved - mlxkv -c" if saves else "")


def _pass_on(pid: int) -> None:
    """Signals are the child's affair. What the terminal sends to both of us it gets anyway."""

    def forward(number: int, _: object) -> None:
        _send(pid, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)


def _wait(pid: int, watch: Watch) -> int:
    """The child's exit code, negative if a signal ended it."""
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        done, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if not done:
            if watch.look(woken):
                _send(pid, signal.SIGKILL)
        elif os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell sees its job stopped; it goes on with `fg`
            _send(pid, signal.SIGCONT)
            watch.hear(ALIVE)  # what was typed meanwhile was for the shell
        else:
            return os.waitstatus_to_exitcode(status)


class Watch:
    """Whether the window still answers: it fetches the keys that are typed, and ends when it is told to quit.

    Args:
        reports: a pipe from the child. keys: a pipe to it.
        terminal: what is read without blocking, where there is one.
        clock: seconds.
    """

    def __init__(
        self, reports: int, keys: int, terminal: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reports, self._keys, self._terminal, self._clock = reports, keys, terminal, clock
        self.given_up = self.was_up = False
        self._is_up = self._quits = False
        self._asked: float | None = None  # to quit, or the last sign of life after that
        self._waits: float | None = None  # since then there are keys that nobody fetched
        self._typed = b""  # of them
        self._patience = PATIENCE
        for fd in (reports, keys):
            os.set_blocking(fd, False)

    def look(self, woken: int) -> bool:
        """Sleep until something happens; whether the window is to be ended now."""
        fds = [woken, self._reports]
        if self._is_up and self._waits is None and self._terminal is not None:
            fds.append(self._terminal)
        restless = self._waits is not None or (self._asked is not None and not self.given_up)
        ready, _, _ = select.select(fds, [], [], TICK if restless else None)
        if woken in ready:
            os.read(woken, 4096)
        if self._reports in ready:
            self.hear(os.read(self._reports, 4096))
        now = self._clock()
        if self._terminal is not None and self._is_up and (self._terminal in ready or self._waits is not None):
            self._look_at_keys(self._terminal, now)
        if self._asked is None or now - self._asked < self._patience or self.given_up:
            return False
        self.given_up = True
        return True

    def hear(self, said: bytes) -> None:
        """Take in what the child says."""
        now = self._clock()
        for word in (said[i : i + 1] for i in range(len(said))):
            if word == QUITS:
                self._quits = True
            if word == ALONE:  # without a terminal: nobody waits for it to end
                self._patience = 10 * PATIENCE
            self._is_up = word == UP or (self._is_up and word != AWAY)
            self.was_up |= self._is_up
            self._asked, self._waits, self._typed = now if self._quits else None, None, b""

    def _look_at_keys(self, terminal: int, now: float) -> None:
        if not select.select([terminal], [], [], 0)[0]:
            self._waits = None
        elif self._waits is None:
            self._waits = now
        elif now - self._waits >= STALL:
            try:
                typed = os.read(terminal, 4096)
            except BlockingIOError:
                typed = None  # just now the child has fetched them
            except OSError:
                typed = b""
            if typed == b"":  # the terminal is gone, and the child has not noticed
                self._is_up, self._asked, self._patience = False, now, 10 * PATIENCE
            if typed:
                _write(self._keys, typed)
                self._typed = self._typed[-100:] + typed
                if is_quit(self._typed):
                    self._asked = self._asked or self._waits
            self._waits = None


def open_terminal(fd: int = 0) -> int | None:
    """The terminal at `fd` once more: reads of this one do not block, whoever else fetches what is there."""
    try:
        return os.open(os.ttyname(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None


def is_quit(typed: bytes) -> bool:
    """Whether a quit is among these keys. One Ctrl+C is enough for a window that does not answer."""
    import re

    def plain(key: re.Match[bytes]) -> bytes:
        code, modifiers = int(key[1]), int(key[2] or 1) - 1
        return b"" if code > 127 else bytes([code & 0x1F if modifiers & 4 else code])

    return re.search(_QUIT, re.sub(_KEY, plain, typed)) is not None


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except OSError:
        return  # the terminal is gone, or nobody listens


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
