"""Opening the store's folder: its marker, its database, and what may stand there instead of them. Engine thread.

`store.json` says that there is a store: a database that vanished must not be taken for a first start.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
import uuid
from pathlib import Path

from mlxkv.errors import CorruptError, DiskError, StoreError
from mlxkv.store.db import backup
from mlxkv.store.db.database import (
    ADVICE,
    Database,
    connect,
    create,
    create_empty,
    database_errors,
    is_empty,
    needs_migration,
)
from mlxkv.store.db.migrations import migrate
from mlxkv.store.db.read_only import open_to_read
from mlxkv.store.files import Files
from mlxkv.store.locks import StoreLock
from mlxkv.store.records import is_sha256
from mlxkv.system.regular_file import read_json, reason

DATABASE = "mlxkv.db"
MAX_MARKER = 1 << 20  # bytes
ATTEMPTS = 40  # to be alone with an older database: a process that closes, or one that migrates it, needs a moment
PAUSE = 0.05  # seconds


def open_database(data: Path, files: Files, lock: StoreLock) -> Database:
    path, marker = data / DATABASE, data / "store.json"
    expected = _expected(path, marker)
    unclean = (data / "mlxkv.db-wal").exists()
    try:
        create_empty(path)
    except OSError as error:
        raise DiskError(f"The chat database {path} cannot be made ({error.strerror}); check the folder.") from error
    if not os.access(path, os.W_OK):  # SQLite would say so at the first message
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        raise StoreError(f"The chat database {path} may not be written to; check its permissions.") from denied
    db = connect(path)
    database = Database(db, path, files.before)
    try:
        with database_errors(path):
            if is_empty(db):
                if expected is not None:
                    raise CorruptError(f"The chat database {path} is empty; {ADVICE}.")
                create(db, uuid.uuid4().hex)
            if needs_migration(db, path):
                _migrate(db, data, files, lock)
            row = db.execute("SELECT value FROM meta WHERE key = 'store'").fetchone()
            if row is None:
                raise CorruptError(f"The chat database {path} has lost its id; {ADVICE}.")
            found = row[0]
        if unclean:
            database.quick_check()
        if expected is None:  # the database comes first: a crash in between must not look like a lost database
            text = json.dumps({"format": 1, "store": found})
            try:
                files.write(marker, [text.encode()], data)
            except OSError as error:
                raise DiskError(f"{marker} cannot be written ({error.strerror}); check the disk.") from error
        elif expected != found:
            raise StoreError(f"{path} is not the database {marker} was made with; delete {marker.name} to use it.")
    except BaseException:
        database.close()
        raise
    return database


def _migrate(db: sqlite3.Connection, data: Path, files: Files, lock: StoreLock) -> None:
    """Copy the older database, then bring it to today's format, while no process of the older mlxkv has it open.

    Raises:
        StoreError: one has, or the copy cannot be made. CorruptError: the database is damaged.
    """
    for attempt in range(ATTEMPTS):
        with lock.alone() as alone:
            if not needs_migration(db, data / DATABASE):
                return  # another process has done it
            if alone:
                Database(db, data / DATABASE).quick_check()  # damage would be brought along, or end half the way
                backup.make(db, data, files, suffix=f"-v{db.execute('PRAGMA user_version').fetchone()[0]}")
                migrate(db, files.before)
                return
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE)
    raise StoreError("Another mlxkv, of an older version, has the chats open; close it, then start this one again.")


def open_read_only(data: Path, why: str) -> Database:
    """To read alone; see read_only.py. Raises as `open_database`."""
    path, marker = data / DATABASE, data / "store.json"
    expected = _expected(path, marker)
    database = open_to_read(path, why)
    try:
        with database.reading() as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'store'").fetchone()
        if expected is not None and (row is None or row[0] != expected):
            raise StoreError(f"{path} is not the database {marker} was made with; delete {marker.name} to use it.")
    except BaseException:
        database.close()
        raise
    return database


def _expected(path: Path, marker: Path) -> str | None:
    """The id of the store, None if there is no store yet."""
    expected = _read_marker(marker)
    if expected is not None and not os.path.exists(path):
        raise StoreError(f"{marker} is there but {path} is not: {ADVICE}; or delete {marker.name} to start anew.")
    return expected


def _read_marker(path: Path) -> str | None:
    try:
        value = read_json(path, MAX_MARKER, follow=False)
        if (form := int(value["format"])) > 1:
            raise StoreError(f"{path} was written by a newer mlxkv (format {form}, this one knows 1); update mlxkv.")
        return str(value["store"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({reason(error)}); check that file.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read ({reason(error)}); delete it if {path.parent} holds your chats."
        ) from error


class RememberedHashes:
    """The table `filehash`; implements identity.FileHashes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, path: str, info: os.stat_result) -> str | None:
        with self._database.reading() as db:
            row = db.execute(
                "SELECT sha256 FROM filehash WHERE path = ? AND dev = ? AND ino = ? AND size = ? AND mtime_ns = ?"
                " AND ctime_ns = ?",
                (path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns),
            ).fetchone()
        return row[0] if row and is_sha256(row[0]) else None

    def has(self, path: str) -> bool:
        with self._database.reading() as db:
            return db.execute("SELECT 1 FROM filehash WHERE path = ?", (path,)).fetchone() is not None

    def put(self, path: str, info: os.stat_result, sha256: str) -> None:
        if self._database.read_only:
            return  # it is hashed again next time
        with self._database.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO filehash VALUES(?, ?, ?, ?, ?, ?, ?)",
                (path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, sha256),
            )
