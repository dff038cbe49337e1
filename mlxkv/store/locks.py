"""Who may touch what: one process at a time per session, one writer at a time in the KV folder. Any thread.

flock, which the kernel releases even on kill -9. The file names its holder for the message; it is the lock that
counts, not the file.
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

ATTEMPTS = 5  # `open_sessions` of another process holds a lock for a moment
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lock_path(folder: Path, session_id: str) -> Path:
    return folder / checked_ulid(session_id)


@contextmanager
def locked(folder: Path, session_id: str) -> Iterator[None]:
    """Hold the lock of a session.

    Raises:
        SessionLockedError: names the process that holds it. StoreError: the lock file cannot be made.
    """
    fd = _opened(lock_path(folder, session_id))
    try:
        for attempt in range(ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if attempt == ATTEMPTS - 1:
                    raise SessionLockedError(
                        f"Session {session_id} is open in process {_holder(fd)}; close it there or fork the session."
                    ) from error
                time.sleep(0.01)
        with suppress(OSError):  # it is the lock that counts, not who is said to hold it
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def open_sessions(folder: Path) -> set[str]:
    """The sessions that some process, this one included, holds right now."""
    with suppress(OSError):
        return {name for name in filter(is_ulid, os.listdir(folder)) if is_held(folder, name)}
    return set()


def is_held(folder: Path, session_id: str) -> bool:
    """Whether some process, this one included, holds the session right now."""
    try:
        fd = os.open(lock_path(folder, session_id), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def kv_lock(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Be the only one that writes chunks, in all processes; whether that is so. Not `wait`: only if it is free.

    Raises:
        StoreError: the lock file cannot be made.
    """
    fd = _opened(folder / "kv")
    try:
        held = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            held = False
        yield held
    finally:
        os.close(fd)


@dataclass(frozen=True)
class StoreLock:
    """Says that the store is open here."""

    fd: int

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Be the only one for a moment; whether that is so: another process may have the store open."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)  # two that ask at the same time would wait for each other
        try:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except OSError:
                held = False
            yield held
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_SH)


@contextmanager
def store_lock(folder: Path, alone: bool = False) -> Iterator[StoreLock]:
    """Say that the store is open here; `alone`: be the only one, to exchange its database.

    Raises:
        StoreError: another process has it open, or the lock file cannot be made.
    """
    fd = _opened(folder / "store")
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except OSError as error:
            raise StoreError("Another mlxkv has the chats open; close it first.") from error
        yield StoreLock(fd)
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    try:
        fd = os.open(path, _FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no file")
        return fd
    except OSError as error:
        raise DiskError(f"The lock {path} cannot be made ({error.strerror}); check the folder.") from error


def _holder(fd: int) -> str:
    text = os.pread(fd, 20, 0).decode("ascii", "replace")
    return text if text.isdigit() else "unknown"
