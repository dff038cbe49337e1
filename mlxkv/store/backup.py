"""Copies of the chat database: one a day when it changed, one before each migration, and the way back to one.

A copy is whole or absent: SQLite writes it aside (`VACUUM INTO`), it is checked and synced, then named. Rows of the KV
cache are in none: they can be computed again. `make` runs on any thread with a connection of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mlxkv.config import Folders, private_folder
from mlxkv.errors import StoreError, quoted
from mlxkv.store.files import Files, regular_size, sync
from mlxkv.store.ids import random_name
from mlxkv.store.locks import store_lock
from mlxkv.store.schema import APPLICATION_ID, VERSION, create_empty, database_errors

KEEP = 7
MAX_DAYS = 14  # what was deleted from the chats is gone from the last copy after so many days
_NAME = re.compile(r"mlxkv-(\d{8})(-v\d+|-replaced-\d+)?\.db")


@dataclass(frozen=True)
class Backup:
    """`name` without folder and ending; `day` as YYYY-MM-DD; `num_chats` None where it cannot be read."""

    name: str
    path: Path
    day: str
    size: int
    num_chats: int | None = None


def list_backups(data: Path) -> tuple[Backup, ...]:
    """Newest first."""
    return tuple(replace(backup, num_chats=_count(backup.path)) for backup in _found(data))


def is_due(data: Path, today: datetime.date) -> bool:
    """Whether the database has changed since the newest copy, and that is not of today.

    To be asked before the database is opened, which touches its files.
    """
    own = [backup for backup in _found(data) if "-replaced-" not in backup.name]
    if any(backup.day >= today.isoformat() for backup in own):
        return False
    return _changed(data / "mlxkv.db", data / "mlxkv.db-wal") > _changed(*(backup.path for backup in own))


def make(
    db: sqlite3.Connection, data: Path, files: Files, suffix: str = "", today: datetime.date | None = None
) -> Path:
    """Copy the database to today's backup and drop old ones.

    Raises:
        StoreError: the disk refuses, or the copy is not sound; nothing was left behind.
    """
    folder, today = private_folder(data / "backups"), today or datetime.date.today()
    path = folder / f"mlxkv-{today:%Y%m%d}{suffix}.db"
    aside = folder / f".mlxkv-{random_name()}"
    try:
        files.before("backup")
        create_empty(aside)  # 0600; SQLite fills an empty file
        try:
            with database_errors(data / "mlxkv.db"):
                db.execute("VACUUM INTO ?", (str(aside),))
                check_copy(aside)
            files.before("fsync")
            fd = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync(fd)
            finally:
                os.close(fd)
            files.before("rename")
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise
        files.sync_folder(folder)
        _prune(data, files, today)
    except OSError as error:
        raise StoreError(f"The backup {path} cannot be written ({error.strerror}); make room on the disk.") from error
    return path


def check_copy(path: Path) -> int:
    """Its format version.

    Raises:
        StoreError: it is not a sound database of this program.
    """
    with database_errors(path), _connected(path) as db:
        kind = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if kind != APPLICATION_ID or found != "ok":
        raise StoreError(f"{path} is not a sound copy of the chats ({found}); use another one.")
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer mlxkv (format {version}, this one knows {VERSION}); update mlxkv."
        )
    return version


def restore(folders: Folders, name: str, files: Files | None = None) -> Path | None:
    """Put a backup in the database's place; where the old one, if there was one, was moved to as a backup of its own.

    Raises:
        StoreError: no such backup, it is not sound, or another process has the chats open.
    """
    data, files = folders.data, files or Files()
    known = {backup.name: backup for backup in list_backups(data)}
    if name.removesuffix(".db") not in known:
        raise StoreError(f"There is no backup {quoted(name)}; there are {', '.join(known) or 'none'}.")
    backup = known[name.removesuffix(".db")].path
    check_copy(backup)
    with store_lock(private_folder(data / "locks"), alone=True):
        try:
            return _exchange(data, backup, files)
        except OSError as error:
            raise StoreError(f"The backup {backup} cannot be put in place ({error.strerror}); try again.") from error


def _exchange(data: Path, backup: Path, files: Files) -> Path | None:
    """The old database stays whole and in place until the new one is beside it."""
    path = data / "mlxkv.db"
    fresh = data / f".mlxkv-{random_name()}"
    with backup.open("rb") as stream:
        files.write(fresh, iter(lambda: stream.read(1 << 20), b""), data)
    try:
        aside = data / "backups" / f"mlxkv-{datetime.date.today():%Y%m%d}-replaced-{time.time_ns()}.db"
        there = f"{path.absolute().as_uri()}?mode=rw"
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(there, uri=True)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a database that can be read goes aside with its last turns
        for ending in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                files.move(data / f"mlxkv.db{ending}", aside.with_name(f"{aside.name}{ending}"))
        files.move(fresh, path)
        files.sync_folder(data)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
        store_id = db.execute("SELECT value FROM meta WHERE key = 'store'").fetchone()[0]
        files.write(data / "store.json", [json.dumps({"format": 1, "store": store_id}).encode()], data)
    return aside if regular_size(aside) is not None else None


def _prune(data: Path, files: Files, today: datetime.date) -> None:
    oldest = today - datetime.timedelta(days=MAX_DAYS)
    for n, backup in enumerate(_found(data)):
        if n and (n >= KEEP or backup.day < oldest.isoformat()):
            for ending in ("-wal", "-shm", ""):
                files.remove(backup.path.with_name(f"{backup.path.name}{ending}"))


def _found(data: Path) -> list[Backup]:
    """Newest first; their chats not counted."""
    out = []
    with contextlib.suppress(OSError):
        for path in (data / "backups").iterdir():
            size = regular_size(path)
            if (found := _NAME.fullmatch(path.name)) and size is not None:
                out.append(Backup(path.stem, path, f"{found[1][:4]}-{found[1][4:6]}-{found[1][6:]}", size))
    return sorted(out, key=lambda backup: (backup.day, _changed(backup.path)), reverse=True)


def _changed(*paths: Path) -> float:
    """When the newest of them was written, 0 if there is none."""
    times = [0.0]
    for path in paths:
        with contextlib.suppress(OSError):
            times.append(os.lstat(path).st_mtime)
    return max(times)


def _connected(path: Path) -> closing[sqlite3.Connection]:
    """To read a copy, which nobody writes to: no lock and no -wal beside it."""
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True))


def _count(path: Path) -> int | None:
    with contextlib.suppress(sqlite3.Error), _connected(path) as db:
        return db.execute("SELECT count(*) FROM session").fetchone()[0]
    return None
