"""Atomic files: private, written under a temporary name, synced, renamed into place, and the folder synced.

Owns the order of these steps, not the contents. Every step first calls `before(step)`, where tests kill the process or
raise an OSError. Any thread; objects can be shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from mlxkv.config import make_folder
from mlxkv.errors import StoreError, shortened
from mlxkv.store.ulid import random_name
from mlxkv.system.regular_file import check_regular

Step = Callable[[str], None]


def no_step(step: str) -> None:
    pass


class Files:
    """File operations in an order that survives a crash between any two steps."""

    def __init__(self, before: Step = no_step) -> None:
        self.before = before

    def write(self, path: Path, parts: Iterable[bytes | memoryview], tmp: Path) -> int:
        """Write `path` atomically, mode 0600, via a new file in the folder `tmp` (same disk). Returns its size.

        Raises:
            OSError: nothing was left behind and `path` is unchanged.
        """
        self.make_folder(tmp)
        is_first = self._make(path.parent) or (path.parent != tmp and _is_empty(path.parent))
        with temporary(tmp) as name:
            self.before("create")
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                size = sum(self._write(fd, part) for part in parts)
                self.before("fsync")
                sync(fd)
            finally:
                os.close(fd)
            self.before("rename")
            os.replace(name, path)
        self.sync_folder(path.parent)
        if is_first:  # the folder's own name; last, when little is left to sync
            self.sync_folder(path.parent.parent)
        return size

    def overwrite(self, path: Path, parts: Iterable[bytes | memoryview], what: str = "") -> int:
        """`write` to a path the user chose: a link to a file stays a link; a pipe, a device or a folder is not
        replaced. `what` precedes the path in the error message.

        Raises:
            StoreError: there is no such folder, `path` is no regular file, or the disk is full or fails.
        """
        if not os.path.isdir(path.parent):
            raise StoreError(f"The folder {shortened(path.parent)} does not exist; make it first.")
        try:
            check_regular(target := Path(os.path.realpath(path)))
            return self.write(target, parts, target.parent)
        except OSError as error:
            raise StoreError(
                f"{what}{path} cannot be written ({error.strerror}); check the path and the disk."
            ) from error

    def _write(self, fd: int, part: bytes | memoryview) -> int:
        self.before("write")
        view = memoryview(part).cast("B")
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])
        return written

    def clock(self) -> float:
        """Seconds, for measuring how fast files are read."""
        return time.perf_counter()

    def read(self, fd: int, views: Sequence[memoryview]) -> int:
        """Fill `views` from the file's current position; returns fewer bytes only at its end."""
        num = done = os.readv(fd, views)
        if num == sum(map(len, views)):
            return num
        left = list(views)
        while num:  # interrupted by a signal, or at the end of the file
            while left and num >= len(left[0]):
                num -= len(left.pop(0))
            if not left:
                break
            left[0] = left[0][num:]
            num = os.readv(fd, left)
            done += num
        return done

    def make_folder(self, path: Path) -> None:
        """Create `path` with mode 0700 and sync its name. Call it before each write: folders may vanish at any time."""
        if self._make(path):
            self.sync_folder(path.parent)

    def _make(self, path: Path) -> bool:
        """Whether the folder had to be created."""
        if path.is_dir():
            return False
        self.before("mkdir")
        make_folder(path)
        return True

    def sync_folder(self, path: Path) -> None:
        self.before("fsync folder")
        sync_path(path)

    def remove(self, path: Path) -> None:
        self.before("unlink")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def move(self, path: Path, to: Path) -> None:
        self.make_folder(to.parent)
        self.before("rename")
        os.replace(path, to)


def sync(fd: int) -> None:
    """Sync to the medium, not only to the drive's cache: macOS needs F_FULLFSYNC for that, which some disks refuse."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_path(path: Path) -> None:
    """Sync a file or a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A new path in `folder`; an error removes the file there."""
    path = folder / f".mlxkv-{random_name()}"
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes of the file in pieces; fewer if it ends earlier."""
    while size > 0 and (data := file.read(min(size, 1 << 20))):
        size -= len(data)
        yield data


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def regular_size(path: str | Path) -> int | None:
    """The size in bytes of a regular file; None for a link and for anything else."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def disk_usage(root: Path) -> int:
    """Bytes on disk of `root` and everything below it, as `du` counts them; 0 if it does not exist."""
    total = 0
    todo = [root]
    with contextlib.suppress(OSError):
        total += os.lstat(root).st_blocks * 512
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry.path))
    return total
