"""Open the store's folder: its marker, and its database, which is created, migrated or refused. Engine thread.

The marker `store.json` holds the store's id: a lost database must not be mistaken for a first start.
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
    store_id,
)
from mlxkv.store.db.migrations import migrate
from mlxkv.store.db.read_only import connect_read_only
from mlxkv.store.files import Files
from mlxkv.store.locks import StoreLock
from mlxkv.system.regular_file import read_json, reason

DATABASE = "mlxkv.db"
MAX_MARKER = 1 << 20  # bytes
ATTEMPTS = 40  # to lock an older database: another process may be closing or migrating it
PAUSE = 0.05  # seconds


def open_database(data: Path, files: Files, lock: StoreLock) -> Database:
    """Open the database, creating or migrating it first.

    Raises:
        StoreError: a newer or foreign database, a lost one, or it cannot be written. CorruptError: it is damaged.
    """
    path, marker = data / DATABASE, data / "store.json"
    expected = _expected_id(path, marker)
    unclean = (data / "mlxkv.db-wal").exists()
    try:
        create_empty(path)
    except OSError as error:
        raise DiskError(f"The chat database {path} cannot be created ({error.strerror}); check the folder.") from error
    if not os.access(path, os.W_OK):  # SQLite would say so at the first message
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        raise StoreError(f"The chat database {path} is not writable; check its permissions.") from denied
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
            if (found := store_id(db)) is None:
                raise CorruptError(f"The chat database {path} has lost its id; {ADVICE}.")
        if unclean:
            database.quick_check()
        if expected is None:  # the database comes first: a crash in between must not look like a lost database
            text = json.dumps({"format": 1, "store": found})
            try:
                files.write(marker, [text.encode()], data)
            except OSError as error:
                raise DiskError(f"{marker} cannot be written ({error.strerror}); check the disk.") from error
        else:
            _check_id(path, marker, expected, found)
    except BaseException:
        database.close()
        raise
    return database


def _migrate(db: sqlite3.Connection, data: Path, files: Files, lock: StoreLock) -> None:
    """Back up the older database, then migrate it, while no process of the older mlxkv has it open.

    Raises:
        StoreError: such a process has it open, or the backup failed. CorruptError: the database is damaged.
    """
    for attempt in range(ATTEMPTS):
        with lock.exclusive() as is_exclusive:
            if not needs_migration(db, data / DATABASE):
                return  # another process has done it
            if is_exclusive:
                Database(db, data / DATABASE).quick_check()  # damage would be carried over, or fail a migration
                backup.make(db, data, files, suffix=f"-v{db.execute('PRAGMA user_version').fetchone()[0]}")
                migrate(db, files.before)
                return
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE)
    raise StoreError("Another mlxkv, of an older version, has the chats open; close it, then start mlxkv again.")


def open_read_only(data: Path, why: str) -> Database:
    """Open the database for reading only; `why` is the reason. Raises as `open_database`."""
    path, marker = data / DATABASE, data / "store.json"
    expected = _expected_id(path, marker)
    database = connect_read_only(path, why)
    try:
        if expected is not None:
            with database.reading() as db:
                _check_id(path, marker, expected, store_id(db))
    except BaseException:
        database.close()
        raise
    return database


def _check_id(path: Path, marker: Path, expected: str, found: str | None) -> None:
    if expected != found:
        raise StoreError(f"{path} is not the database that {marker} was created with; delete {marker.name} to use it.")


def _expected_id(path: Path, marker: Path) -> str | None:
    """The store's id according to its marker; None if there is no store yet."""
    try:
        value = read_json(marker, MAX_MARKER, follow=False)
        if (form := int(value["format"])) > 1:
            raise StoreError(f"{marker} was written by a newer mlxkv (format {form}, this one knows 1); update mlxkv.")
        expected = str(value["store"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{marker} cannot be read ({reason(error)}); check that file.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{marker} cannot be read ({reason(error)}); delete it if {marker.parent} holds your chats."
        ) from error
    if not os.path.exists(path):
        raise StoreError(f"{marker} exists but {path} does not: {ADVICE}; or delete {marker.name} to start over.")
    return expected
