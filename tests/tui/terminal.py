"""The real program in a pseudo-terminal: what a user types and sees. Used by tests and by the exit benchmark."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_ESCAPES = re.compile(rb"\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\x1b[=>]")


class Terminal:
    """`mlxkv` with `args` in a terminal of `columns` x `rows`. Wait for text, never for time.

    `module` "mlxkv" starts it as the installed command does, under a supervisor. `seconds_to(text)` counts from the
    start of the process.
    """

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str] | None = None, columns: int = 80, rows: int = 24,
        module: str = "mlxkv.cli.app", folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.begun = time.perf_counter()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows), **(env or {})})
            os.chdir(folder or ".")
            os.execv(sys.executable, [sys.executable, "-m", module, *args])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.output = b""
        self._found = 0  # characters of the plain output that calls have used up
        self._settled, self._plain = 0, ""  # so many bytes, and what they say
        self.exit_code: int | None = None

    def wait_for(self, text: str | re.Pattern[str], limit: float = 60.0) -> str:
        """Read until `text` has been printed after what the last call found; all up to there, without escapes."""
        end, wanted = time.monotonic() + limit, re.compile(re.escape(text)) if isinstance(text, str) else text
        while (match := wanted.search(plain := self._said(), self._found)) is None:
            unseen = plain[self._found :][-2000:]
            assert time.monotonic() < end, f"{text!r} did not come; the screen said {unseen!r}"
            ready, _, _ = select.select([self.fd], [], [], 0.1)
            if ready:
                data = self._read()
                assert data, f"the program ended before {text!r}; it said {unseen!r}"
                self.output += data
        start, self._found = self._found, match.end()
        return plain[start : self._found]

    def seconds_to(self, text: str) -> float:
        self.wait_for(text)
        return time.perf_counter() - self.begun

    def catch_up(self) -> None:
        """What was painted until now answers nothing that is typed from now on."""
        while select.select([self.fd], [], [], 0.1)[0] and (data := self._read()):
            self.output += data
        self._found = len(self._said())

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self, limit: float = 60.0) -> int:
        """Read until the program has ended; its exit code (negative: the signal that ended it)."""
        stop = time.monotonic() + limit
        while True:
            ready, _, _ = select.select([self.fd], [], [], 0.05)
            if ready and (data := self._read()):
                self.output += data
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                self.exit_code = os.waitstatus_to_exitcode(status)
                return self.exit_code
            assert time.monotonic() < stop, f"it did not end; the screen said {self.plain(self.output)[-2000:]!r}"

    def _read(self) -> bytes:
        try:
            return os.read(self.fd, 65536)
        except OSError as error:  # Linux says EIO when the other side has closed
            if error.errno == errno.EIO:
                return b""
            raise

    def _said(self) -> str:
        """All of the output without escapes; each byte is looked at about once."""
        last = max(self._settled, self.output.rfind(b"\x1b"))  # it may go on
        self._plain += self.plain(self.output[self._settled : last])
        self._settled = last
        return self._plain + self.plain(self.output[last:])

    @staticmethod
    def plain(data: bytes) -> str:
        return _ESCAPES.sub(b"", data).decode("utf-8", "replace")
