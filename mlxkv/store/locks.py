"""One process at a time per session: flock, which the kernel releases even on kill -9. Any thread.

The file names its holder for the message; it is the lock that counts, not the file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxkv.errors import SessionLockedError, StoreError
from mlxkv.store.ids import checked_ulid


def lock_path(folder: Path, session_id: str) -> Path:
    return folder / checked_ulid(session_id)


@contextmanager
def locked(folder: Path, session_id: str) -> Iterator[None]:
    """Hold the lock of a session.

    Raises:
        SessionLockedError: names the process that holds it. StoreError: the lock file cannot be made.
    """
    path = lock_path(folder, session_id)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"The lock {path} cannot be made ({error.strerror}); check the folder.") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SessionLockedError(
                f"Session {session_id} is open in process {_holder(fd)}; close it there or fork the session."
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    text = os.pread(fd, 20, 0).decode("ascii", "replace")
    return text if text.isdigit() else "unknown"
