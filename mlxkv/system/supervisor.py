"""The window's parent process: it restores the terminal after a crash, and ends a window that hangs on quit.

Running out of GPU memory aborts the process, so only another process can clean up. The parent imports nothing else of
mlxkv; the child is spawned, since Metal does not survive a bare fork. Keys, signals, Ctrl+Z and exit codes are the
child's. What is typed before the window reads keys waits in the terminal's queue, unechoed. Main thread.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time

TYPE_CHECKING = False  # as in `typing`, without its import time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PARENT_PIPE_ENV = "MLXKV_PARENT_PIPE"  # for the child: two pipes, the first of which closes when the parent is gone
MODE_ENV = "MLXKV_TERMINAL_MODE"  # for the child: input and local flags of the terminal before `supervise`
# Reports of the child: see `supervisor_link.SupervisorLink`.
WINDOW_READS, WINDOW_PAUSED, ALIVE, QUITTING, TERMINAL_GONE, DONE = b"+", b"-", b".", b"q", b"a", b"d"
ENDED_AT_ONCE = 75  # exit code of a child that could not close its window
POLL_SECONDS = 0.2  # between two checks of a window that may hang
HANG_SECONDS = 0.8  # after which the parent reads keys that the child has not read
QUIT_SECONDS = 1.6  # from a quit, or the last report after it, until the child is killed
_KEY = rb"\x1b\[(\d+)(?:;(\d*)[\d:]*)?(?:;[\d:]*)?u"  # of the keyboard protocol: key code, modifiers + 1
_QUIT = rb"[\x03\x04]|/(?:quit|exit|bye)[\r\n]"  # Ctrl+C, Ctrl+D and the commands, as in the window
_MOST_STDERR = 64 << 10  # bytes of the child's stderr that are shown
# Turns off synchronized output, the keyboard protocol, bracketed paste, focus and mouse reports; turns on line wrap
# and the cursor; leaves the alternate screen; resets colours; gives the terminal its own title back.
_RESET = (
    b"\x1b[?2026l\x1b[<u\x1b[?2004l\x1b[?1004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l"
    b"\x1b[?7h\x1b[?25h\x1b[?1049l\x1b[0m\x1b]0;\x1b\\\x1b[23;0t\r\n"
)
_OUT_OF_MEMORY = (b"Insufficient Memory", b"OutOfMemory", b"out of memory", b"bad_alloc")


def supervise(command: Sequence[str], *, saves: bool = True) -> int:
    """Run `command` (a program and its arguments) on this terminal; its exit code, or 128 + the signal that ended it.

    Args:
        saves: whether the exit message may say that the chat is saved.
    """
    terminal: list[Any] = termios.tcgetattr(0)
    child_keys, keys = os.pipe()
    reports, child_reports = os.pipe()
    for fd in (child_keys, child_reports):
        os.set_inheritable(fd, True)
    stderr_file = _unnamed_file()
    env = {PARENT_PIPE_ENV: f"{child_keys},{child_reports}", MODE_ENV: f"{terminal[0]},{terminal[3]}"}
    watch = Watch(reports, keys, open_terminal())
    try:
        _set_mode(_without_echo(terminal))
        pid = os.posix_spawn(
            command[0],
            list(command),
            {**os.environ, **env},
            file_actions=[] if stderr_file is None else [(os.POSIX_SPAWN_DUP2, stderr_file, 2)],
        )
        os.close(child_keys)  # but not `child_reports`: without a writer, `reports` would always be readable
        _forward_signals(pid)
        code = _wait(pid, watch, terminal)
    finally:
        _set_mode(terminal)
    child_stderr = b"" if stderr_file is None else _end_of(stderr_file)
    if code == ENDED_AT_ONCE:
        _restore(terminal)
    if code >= 0:
        if code or not watch.had_window:  # a window that ended well has shown its errors itself
            _write(2, child_stderr)
        return code
    if watch.killed and watch.is_done:
        return 0
    _restore(terminal)
    _write(2, f"{exit_message(-code, child_stderr, saves, watch.killed)}\n".encode())
    return 1 if watch.killed else 128 - code


def _end_of(fd: int) -> bytes:
    return os.pread(fd, _MOST_STDERR, max(0, os.fstat(fd).st_size - _MOST_STDERR))


def _unnamed_file() -> int | None:
    """A file for the child's stderr, which would be drawn over the window; None if no file can be written."""
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/mlxkv-{os.getpid()}-{os.urandom(8).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.unlink(path)
    except OSError:
        return None
    return fd


def exit_message(number: int, child_stderr: bytes, saves: bool, killed: bool = False) -> str:
    """One sentence: the signal that ended the window, and how to continue.

    Args:
        killed: the supervisor ended it, because it did not quit.
    """
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if killed:
        what = "it hung, perhaps in the model's tokenizer or template"
    elif any(text in child_stderr for text in _OUT_OF_MEMORY):
        what = "out of GPU memory"
    elif number == signal.SIGKILL:
        what = "the system ended it (SIGKILL), perhaps because memory ran out"
    elif number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        what = f"it was told to end ({name})"
    else:
        what = f"it crashed ({name})"
    return f"mlxkv stopped: {what}." + (" Chat saved - mlxkv -c" if saves else "")


def _forward_signals(pid: int) -> None:
    """Forward signals to the child, except those that the terminal sends to both processes."""

    def forward(number: int, _: object) -> None:
        _send(pid, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)


def _wait(pid: int, watch: Watch, terminal: list[Any]) -> int:
    """The child's exit code, negative if a signal ended it."""
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        done, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if not done:
            if watch.wait(woken):
                _send(pid, signal.SIGKILL)
        elif os.WIFSTOPPED(status):
            _set_mode(terminal)  # the child may not have come to its window
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell sees a stopped job; `fg` continues it
            _send(pid, signal.SIGCONT)
            watch.take(ALIVE)  # keys typed meanwhile were for the shell
        else:
            return os.waitstatus_to_exitcode(status)


class Watch:
    """Detects a window that hangs: it does not read keys, or does not end after a quit.

    Args:
        reports: a pipe from the child. keys: a pipe to it.
        terminal: opened for non-blocking reads; None if there is none.
        clock: seconds.
    """

    def __init__(
        self, reports: int, keys: int, terminal: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reports, self._keys, self._terminal, self._clock = reports, keys, terminal, clock
        self.killed = self.had_window = False
        self.is_done = False  # all is saved and told: on a busy machine the interpreter may take seconds to end
        self._reads_keys = self._is_quitting = False
        self._quit_at: float | None = None  # the quit, or the last report after it
        self._unread_since: float | None = None  # keys
        self._typed = b""  # keys read here
        self._limit = QUIT_SECONDS
        for fd in (reports, keys):
            os.set_blocking(fd, False)

    def wait(self, woken: int) -> bool:
        """Sleep until the next event; return whether the window must be killed now."""
        fds = [woken, self._reports]
        if self._reads_keys and self._unread_since is None and self._terminal is not None:
            fds.append(self._terminal)
        is_timed = self._unread_since is not None or (self._quit_at is not None and not self.killed)
        ready, _, _ = select.select(fds, [], [], POLL_SECONDS if is_timed else None)
        if woken in ready:
            os.read(woken, 4096)
        if self._reports in ready:
            self.take(os.read(self._reports, 4096))
        now = self._clock()
        terminal = self._terminal if self._reads_keys else None
        if terminal is not None and (terminal in ready or self._unread_since is not None):
            self._check_keys(terminal, now)
        if self._quit_at is None or now - self._quit_at < self._limit or self.killed:
            return False
        self.killed = True
        return True

    def take(self, reports: bytes) -> None:
        """Process reports of the child."""
        now = self._clock()
        for report in (reports[i : i + 1] for i in range(len(reports))):
            if report == QUITTING:
                self._is_quitting = True
            self.is_done |= report == DONE
            if report in (TERMINAL_GONE, DONE):  # no one waits for the child to end, or it will
                self._limit = 10 * QUIT_SECONDS
            self._reads_keys = report == WINDOW_READS or (self._reads_keys and report != WINDOW_PAUSED)
            self.had_window |= self._reads_keys
            self._quit_at, self._unread_since, self._typed = now if self._is_quitting else None, None, b""

    def _check_keys(self, terminal: int, now: float) -> None:
        if not select.select([terminal], [], [], 0)[0]:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since >= HANG_SECONDS:
            try:
                typed = os.read(terminal, 4096)
            except BlockingIOError:
                typed = None  # the child has just read them
            except OSError:
                typed = b""
            if typed == b"":  # the terminal is gone, which the child has not noticed
                self._reads_keys, self._quit_at, self._limit = False, now, 10 * QUIT_SECONDS
            if typed:
                _write(self._keys, typed)
                self._typed = self._typed[-100:] + typed
                if is_quit(self._typed):
                    self._quit_at = self._quit_at or self._unread_since
            self._unread_since = None


def open_terminal(fd: int = 0) -> int | None:
    """Open the terminal at `fd` again for non-blocking reads, since two processes read it; None if there is none."""
    try:
        return os.open(os.ttyname(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None


def is_quit(typed: bytes) -> bool:
    """Whether a quit is among these keys. One Ctrl+C is enough for a window that hangs."""
    import re

    def plain(key: re.Match[bytes]) -> bytes:
        code, modifiers = int(key[1]), int(key[2] or 1) - 1
        return b"" if code > 127 else bytes([code & 0x1F if modifiers & 4 else code])

    return re.search(_QUIT, re.sub(_KEY, plain, typed)) is not None


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except OSError:
        return  # the terminal or the reader is gone


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended


def _without_echo(terminal: list[Any]) -> list[Any]:
    """The mode until the window reads keys: no echo, no lines, and Enter is a carriage return, as in the window."""
    mode = [*terminal]
    mode[0] &= ~termios.ICRNL
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    return mode


def usual_mode(mode: list[Any]) -> list[Any]:
    """In the child: `mode` with the flags that the terminal had before `supervise`; unchanged without a supervisor."""
    flags = os.environ.get(MODE_ENV, "").split(",")
    if len(flags) != 2 or not all(flag.isdigit() for flag in flags):
        return mode
    return [int(flags[0]), *mode[1:3], int(flags[1]), *mode[4:]]


def show_typing() -> None:
    """In the child: let the terminal echo again, since no window will read the keys."""
    if MODE_ENV not in os.environ:
        return
    try:
        termios.tcsetattr(0, termios.TCSANOW, usual_mode(termios.tcgetattr(0)))
    except termios.error:
        return  # it is gone, or none


def _set_mode(mode: list[Any]) -> None:
    """Set the terminal's mode, unless the shell has the terminal meanwhile."""
    try:
        if os.tcgetpgrp(0) == os.getpgrp():
            termios.tcsetattr(0, termios.TCSADRAIN, mode)
    except (OSError, termios.error):
        return  # the terminal is gone


def _restore(terminal: list[Any]) -> None:
    try:
        termios.tcsetattr(0, termios.TCSADRAIN, terminal)
        os.write(1, _RESET)
    except (OSError, termios.error):
        return  # the terminal is gone too


def is_terminal() -> bool:
    """Whether there is a terminal to restore."""
    return os.isatty(0) and os.isatty(1) and hasattr(os, "posix_spawn") and sys.executable != ""
