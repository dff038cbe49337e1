"""Open chats in a folder that cannot be written: on a read-only or full disk, or without permission. Engine thread.

Makes no lock, no marker and no file of SQLite's. A database that needs writing to be read (it has an older format, or a
crash left turns in its WAL) is copied to a temporary folder and read there. Without a database there is an empty one in
memory.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mlxkv.errors import DiskError, ReadOnlyError, StoreError
from mlxkv.store.db.database import (
    ENDINGS,
    Database,
    connect,
    create,
    database_errors,
    has_free_space,
    is_empty,
    needs_migration,
)
from mlxkv.store.db.migrations import migrate
from mlxkv.store.files import no_step, regular_size
from mlxkv.system.regular_file import check_regular, reason

_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)  # ENOENT: a folder cannot be created
_CODES = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN)
_PRAGMAS = ("trusted_schema=0", "cell_size_check=1", "query_only=1")


def full_disk_reason(error: BaseException, database: Path) -> str | None:
    """The sentence for the user if `error`, raised while opening `database`, is due to a full disk; else None."""
    if not isinstance(error, DiskError) or has_free_space(database):
        return None
    return f"The disk of {database.parent} is full, so nothing is saved; free some space and try again."


def read_only_reason(error: BaseException, data: Path) -> str | None:
    """The sentence for the user if `error`, raised while opening the store in `data`, is due to a folder that is not
    writable; else None."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _ERRNOS:
        why = reason(cause)
    elif isinstance(cause, sqlite3.Error) and (getattr(cause, "sqlite_errorcode", 0) or 0) & 0xFF in _CODES:
        why = str(cause)
    else:
        return None
    return f"The folder {data} cannot be written to ({why}), so nothing is saved; set MLXKV_HOME to a writable folder."


class ReadOnlyDatabase(Database):
    """A database for reading. `read_only` is the message of the error that every change raises."""

    def __init__(
        self, db: sqlite3.Connection, path: Path, read_only: str, copied_to: TemporaryDirectory[str] | None
    ) -> None:
        super().__init__(db, path)
        self.read_only, self._copied_to = read_only, copied_to

    @contextlib.contextmanager
    def writing(self, lasting: bool = True) -> Iterator[sqlite3.Connection]:
        """Raises ReadOnlyError."""
        raise ReadOnlyError(self.read_only)
        yield self.db  # makes this a generator

    def new_connection(self) -> Database:
        """Raises ReadOnlyError: other threads only write."""
        raise ReadOnlyError(self.read_only)

    def close(self) -> None:
        super().close()
        if self._copied_to is not None:
            self._copied_to.cleanup()


def connect_read_only(path: Path, why: str) -> ReadOnlyDatabase:
    """Open the database `path` for reading; `why` is the message of the error that a change raises.

    Raises:
        StoreError: it cannot even be read, or has a newer format. CorruptError: it is damaged.
    """
    with database_errors(path):
        exists, *_ = [check_regular(f"{path}{ending}") for ending in ENDINGS]
    copied_to: TemporaryDirectory[str] | None = None
    db = _in_place(path) if exists else _empty()
    try:
        if db is not None:
            with database_errors(path):
                if is_empty(db):  # a crash before its first transaction
                    db.close()
                    db = _empty()
                elif needs_migration(db, path):
                    db.close()
                    db = None
        if db is None:
            copied_to = TemporaryDirectory(prefix="mlxkv-")
            db = _copied(path, Path(copied_to.name) / path.name)
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException as error:
        if db is not None:
            db.close()
        if copied_to is not None:
            copied_to.cleanup()
        if isinstance(error, OSError):
            text = f"The chats in {path.parent} cannot be copied for reading ({reason(error)}); set TMPDIR to a folder."
            raise StoreError(text) from error
        raise
    return ReadOnlyDatabase(db, path, why, copied_to)


def _empty() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    create(db, uuid.uuid4().hex)
    return db


def _in_place(path: Path) -> sqlite3.Connection | None:
    """A connection to the file itself; None if reading it needs files written next to it."""
    modes = ["mode=ro"]  # uses the -wal and -shm of a process that has it open
    if not regular_size(f"{path}-wal"):
        modes.append("mode=ro&immutable=1")  # no process has it open
    for mode in modes:
        with database_errors(path), contextlib.suppress(sqlite3.OperationalError):  # -shm cannot be created
            db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=10)
            try:
                db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            except BaseException:
                db.close()
                raise
            return db
    return None


def _copied(path: Path, to: Path) -> sqlite3.Connection:
    for ending in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{ending}", f"{to}{ending}")
    db = connect(to)
    try:
        with database_errors(path):
            if needs_migration(db, path):
                migrate(db, no_step)
    except BaseException:
        db.close()
        raise
    return db
