"""Reading regular files up to a size limit.

Every file is read through here, our own and foreign ones: a pipe, a socket, a device or a folder is refused instead of
blocking, and a file that grows is cut off. Libraries that open files themselves are called after `check_regular`. The
contents belong to the caller. Any thread.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KINDS = (
    (stat.S_ISDIR, "it is a folder"), (stat.S_ISFIFO, "it is a pipe"), (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISCHR, "it is a device"), (stat.S_ISBLK, "it is a device"), (stat.S_ISLNK, "it is a link"),
)  # fmt: skip
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_MANY_DIGITS = "a number has hundreds of digits"
_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # open descriptors of this process: `-f <(git diff)`


def open_regular(path: str | os.PathLike[str], *, follow: bool = True, pipes: bool = False) -> int:
    """Open the regular file `path` for reading and return its descriptor.

    Args:
        follow: whether `path` may be a link; False for our own files.
        pipes: whether a pipe that this process already has open, such as /dev/fd/63, is accepted too.

    Raises:
        OSError: there is no such file, or it is not a regular one; `strerror` is a clause that says why.
    """
    try:
        _check(os.stat(path, follow_symlinks=follow), path, pipes)
        fd = os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW))
    except ValueError as error:  # a NUL, or a name that no file system accepts
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    try:
        _check(os.fstat(fd), path, pipes)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_regular(path: str | os.PathLike[str] | int, limit: int | None = None) -> bool:
    """Check that `path` (or a descriptor) is a regular file of at most `limit` bytes; False if it does not exist.

    For files that a library opens itself.

    Raises:
        OSError: it is not a regular file, too large or not readable; `strerror` says which.
    """
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    _check(info, path, False)
    if not isinstance(path, int) and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if limit is not None and info.st_size > limit:
        raise _too_large(path, limit)
    return True


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, follow: bool = True, pipes: bool = False) -> Iterator[io.BufferedReader]:
    """`open_regular` as a context manager. Raises OSError."""
    with os.fdopen(open_regular(path, follow=follow, pipes=pipes), "rb") as file:
        yield file


def read_bytes(path: str | os.PathLike[str], limit: int, *, follow: bool = True, pipes: bool = False) -> bytes:
    """Read the whole file. Raises OSError: see `open_regular`; or it has more than `limit` bytes (EFBIG)."""
    with opened(path, follow=follow, pipes=pipes) as file:
        if os.fstat(file.fileno()).st_size > limit or len(data := file.read(limit + 1)) > limit:
            raise _too_large(path, limit)
    return data


def read_text(path: str | os.PathLike[str], limit: int, *, follow: bool = True) -> str:
    """Read the whole file as UTF-8, without a byte order mark.

    Raises:
        OSError: see `read_bytes`. UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, limit, follow=follow).decode("utf-8-sig")


def read_json(path: str | os.PathLike[str], limit: int, *, follow: bool = True) -> Any:
    """Read a JSON file. Raises OSError: see `read_bytes`. ValueError: it is not JSON."""
    return parse_json(read_bytes(path, limit, follow=follow))


def parse_json(data: bytes | str) -> Any:
    """`json.loads` with one kind of error.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or a number with hundreds of digits.
    """
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data, parse_int=parse_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason(error)) from error


def parse_integer(text: str) -> int:
    """An integer in JSON. Raises ValueError: it has hundreds of digits."""
    if len(text) > 300:  # larger than any float
        raise ValueError(_MANY_DIGITS)
    return int(text)


def reason(error: Exception) -> str:
    """The reason of a parse or read error, as a clause of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "integer string conversion" in str(error):  # Python's text is advice for programmers
        return _MANY_DIGITS
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start:,}"
    if isinstance(error, UnicodeEncodeError):
        return "a text in it has half a character"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def write_private(path: Path, text: str) -> None:
    """Replace `path` atomically by a file of `text` (0600); a link to a file stays a link. Raises OSError."""
    target = Path(os.path.realpath(path))
    new = target.with_name(f".mlxkv-{os.urandom(8).hex()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(new, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _check(info: os.stat_result, path: object, pipes: bool) -> None:
    if stat.S_ISREG(info.st_mode):
        return
    if pipes and stat.S_ISFIFO(info.st_mode) and str(path).startswith(_DESCRIPTORS):
        return
    what = next((text for is_kind, text in _KINDS if is_kind(info.st_mode)), "it is a special file")
    raise OSError(errno.EINVAL, f"{what}, not a regular file", str(path))


def _too_large(path: object, limit: int) -> OSError:
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
    return OSError(errno.EFBIG, f"it is over {size}", str(path))
