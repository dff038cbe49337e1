"""File locks: one process at a time per session, one writer at a time in the KV folder. Any thread.

Uses flock, which the kernel releases even on kill -9. The file holds the process id, for the error message only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlxkv.errors import DiskError, SessionLockedError, StoreError
from mlxkv.store.ulid import checked_ulid, is_ulid

ATTEMPTS = 5  # another process's `open_sessions` may hold a lock for a moment
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lock_path(folder: Path, session_id: str) -> Path:
    return folder / checked_ulid(session_id)


@contextmanager
def locked(folder: Path, session_id: str) -> Iterator[None]:
    """Hold the lock of a session.

    Raises:
        SessionLockedError: names the process that holds it. StoreError: the lock file cannot be created.
    """
    fd = _opened(lock_path(folder, session_id))
    try:
        for attempt in range(ATTEMPTS):
            if _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
                break
            if attempt == ATTEMPTS - 1:
                raise SessionLockedError(
                    f"Session {session_id:.10} is open in process {_holder(fd)}; close it there or fork the session."
                )
            time.sleep(0.01)
        with suppress(OSError):  # only for the error message
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def open_sessions(folder: Path) -> set[str]:
    """The sessions that any process, this one included, currently locks."""
    with suppress(OSError):
        return {name for name in filter(is_ulid, os.listdir(folder)) if is_held(folder, name)}
    return set()


def is_held(folder: Path, session_id: str) -> bool:
    """Whether any process, this one included, currently locks the session."""
    try:
        fd = os.open(lock_path(folder, session_id), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(fd)


@contextmanager
def kv_lock(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock the KV folder for writing; yields whether that succeeded. Not `wait`: only if it is free.

    Raises:
        StoreError: the lock file cannot be created.
    """
    fd = _opened(folder / "kv")
    try:
        yield _flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    finally:
        os.close(fd)


@dataclass(frozen=True)
class StoreLock:
    """The lock of an open store, shared by all processes that have it open."""

    fd: int

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Hold the lock exclusively for a moment; yields False if another process has the store open."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)  # two processes upgrading at once would block each other
        try:
            yield _flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_SH)


@contextmanager
def store_lock(folder: Path, exclusive: bool = False) -> Iterator[StoreLock]:
    """Lock the store as open; `exclusive`: for this process only, to replace its database.

    Raises:
        StoreError: another process has it open, or the lock file cannot be created.
    """
    fd = _opened(folder / "store")
    try:
        if not _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH):
            raise StoreError("Another mlxkv has the chats open; close it first.")
        yield StoreLock(fd)
    finally:
        os.close(fd)


def _flock(fd: int, operation: int) -> bool:
    """Whether the lock was acquired."""
    try:
        fcntl.flock(fd, operation)
    except OSError:
        return False
    return True


def _opened(path: Path) -> int:
    try:
        fd = os.open(path, _FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
        return fd
    except OSError as error:
        raise DiskError(f"The lock file {path} cannot be created ({error.strerror}); check the folder.") from error


def _holder(fd: int) -> str:
    text = os.pread(fd, 20, 0).decode("ascii", "replace")
    return text if text.isdigit() else "unknown"
