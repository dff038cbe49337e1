"""Standard input, output and error of the command: closed, full, disconnected, non-blocking, in any encoding.

`run` is the outermost frame of the command. Output goes through the streams that it puts into `sys`, so that a failed
write is the same error everywhere. Decoding of text belongs to `text.encoding`. Main thread.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import stat
import sys
import time

from mlxkv.errors import OutputClosedError, OutputError, PromptError
from mlxkv.system.terminal import GONE, detach_terminal, is_terminal_error

TYPE_CHECKING = False  # as in `supervisor`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

INTERRUPTED = 130  # the exit code after Ctrl+C
_PIECE = 1 << 16  # bytes
_NOTICE_SECONDS = 1.0  # without an end of input, until the user is told


class _Descriptor(io.FileIO):
    """File descriptor 1 or 2. Writes everything, also to a non-blocking pipe.

    Attributes:
        drops: whether failed writes are ignored: always on stderr, and on stdout once an error was raised and the
            process is ending.
    """

    def __init__(self, fd: int, drops: bool) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.drops = drops

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]  # that of FileIO may return None
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                if self.drops:
                    return len(data)
                if is_terminal_error(error) and stat.S_ISCHR(os.fstat(self.fileno()).st_mode):
                    detach_terminal()
                    raise SystemExit(GONE) from error  # enclosing code saves the chat
                if isinstance(error, BrokenPipeError):
                    raise OutputClosedError("The reader of standard output is gone.") from error
                raise OutputError(
                    f"Standard output cannot be written ({error.strerror}); free some space or write somewhere else."
                ) from error
            if written is not None:
                return written
            select.select((), (self,), ())  # a parent made the pipe non-blocking, and it is full


def run(main: Callable[[], object]) -> NoReturn:
    """Prepare the streams, call `main`, flush and exit.

    The exit code is that of `main`, at least 1 if output was lost, and `GONE` if the command failed because its
    terminal is gone. A reader that closes the pipe is not a failure: `mlxkv chats ls | head -1` exits with 0.
    """
    _leave_ascii()
    prepare()
    was_terminal = os.isatty(0)
    code: str | int | None = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # also while modules are imported
        code = INTERRUPTED
    except BaseException:
        _flush()
        raise
    if (lost := _flush()) and not code:
        print(f"mlxkv: {lost}", file=sys.stderr)
        code = 1
    if code == 1 and was_terminal and not os.isatty(0):  # a question that cannot be answered any more
        code = GONE
    sys.exit(code)


def _leave_ascii() -> None:
    """Restart Python in UTF-8 mode if the locale C or POSIX and PYTHONUTF8=0 limit file names to ASCII."""
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable and sys.orig_argv[1:]:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def _flush() -> OutputError | None:
    """Flush stdout and return the error, unless the reader is gone. Later failures are ignored."""
    try:
        sys.stdout.flush()
    except OutputClosedError:
        return None
    except OutputError as error:
        return error
    finally:
        raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
        if isinstance(raw, _Descriptor):
            raw.drops = True
    return None


def prepare() -> None:
    """Open `/dev/null` for closed standard descriptors, and replace the streams in `sys`.

    Call it before any file is opened: a file with descriptor 0, 1 or 2 would be used as a stream.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: `fd`
    stdin = sys.stdin
    if not isinstance(stdin, io.TextIOWrapper):
        stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    stdin.reconfigure(encoding=_encoding(stdin), errors="surrogateescape")
    sys.stdin = sys.__stdin__ = stdin  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _writer(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _writer(2, sys.stderr)  # type: ignore[misc]


def _writer(fd: int, before: object) -> io.TextIOWrapper:
    raw = _Descriptor(fd, drops=fd == 2)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=_encoding(before),
        errors="backslashreplace",
        line_buffering=fd == 2 or raw.isatty(),
        write_through=bool(getattr(before, "write_through", False)),
    )


def _encoding(stream: object) -> str:
    """The stream's encoding; UTF-8 if the locale C or POSIX makes it ASCII, which is also Python's default."""
    name = getattr(stream, "encoding", None) or "utf-8"
    is_chosen = "PYTHONIOENCODING" in os.environ
    return "utf-8" if codecs.lookup(name).name == "ascii" and not is_chosen else name


def read_input(fd: int, limit: int, tell: Callable[[], object]) -> bytes:
    """Read everything up to the end of input, or a little more than `limit` bytes. Waits for a slow producer.

    Args:
        tell: called once if the input has not ended after a second.

    Raises:
        PromptError: it cannot be read.
    """
    parts: list[bytes] = []
    size, deadline, is_told = 0, time.monotonic() + _NOTICE_SECONDS, False
    while size <= limit:
        left = None if is_told else max(0.0, deadline - time.monotonic())
        is_ready = bool(select.select((fd,), (), (), left)[0])
        if not is_told and time.monotonic() >= deadline:
            tell()
            is_told = True
        if not is_ready:
            continue
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            continue
        except OSError as error:
            raise PromptError(
                f"Standard input cannot be read ({error.strerror}); leave it out with -n, or give `< /dev/null`."
            ) from error
        if not piece:
            break
        parts.append(piece)
        size += len(piece)
    return b"".join(parts)
