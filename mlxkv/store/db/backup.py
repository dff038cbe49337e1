"""Copies of the chat database: one a day when it changed, one before each migration, and the way back to one.

A copy is whole or absent: SQLite writes it aside (`VACUUM INTO`), it is checked and synced, then named. Rows of the KV
cache are in none: they can be computed again. `make` runs on any thread with a connection of its own.

A clock that was ahead or behind must neither prune copies nor prevent them. So the day in a name is only a name: copies
are ordered by their modification times, and those that are not before that of a new copy are set back; the newest
`KEEP` stay; whether there is anything to copy is found by comparing chats.
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
from mlxkv.store.db.database import APPLICATION_ID, VERSION, create_empty, database_errors
from mlxkv.store.files import Files, regular_size, sync
from mlxkv.store.locks import store_lock
from mlxkv.store.ulid import random_name
from mlxkv.system.regular_file import opened

KEEP = 7
_NAME = re.compile(r"mlxkv-(\d{8})(-\d+|-v\d+|-replaced-\d+)?\.db")
_STEP_NS = 2_000_000_000  # some file systems keep times to two seconds
_LEAST_NS = 10**18  # and not every one knows times before 1970
_CHATS = "SELECT id, title, head, model, system, params, flags, parent, settings, preset FROM session ORDER BY id"
"""All that a copy is for: `head` covers every message."""


@dataclass(frozen=True)
class Backup:
    """`name` without folder and ending; `day` as YYYY-MM-DD; `num_chats` None where it cannot be read."""

    name: str
    path: Path
    day: str
    size: int
    num_chats: int | None = None


def today_here() -> datetime.date:
    """The local date."""
    return datetime.date.fromtimestamp(time.time())


def list_backups(data: Path) -> tuple[Backup, ...]:
    """Newest first."""
    return tuple(replace(backup, num_chats=_count(backup.path)) for backup in _found(data))


def is_due(db: sqlite3.Connection, data: Path, today: datetime.date) -> bool:
    """Whether the chats are not those of the newest copy, and that is not of today. Inside a transaction of `db`."""
    own = [backup for backup in _found(data) if "-replaced-" not in backup.name]
    if own and own[0].day == today.isoformat():
        return False
    chats = db.execute(_CHATS).fetchall()
    return bool(chats) and (not own or chats != _chats(own[0].path))


def make(
    db: sqlite3.Connection, data: Path, files: Files, suffix: str = "", today: datetime.date | None = None
) -> Path:
    """Copy the database to today's backup and drop old ones.

    Raises:
        StoreError: the disk refuses, or the copy is not sound; nothing was left behind.
    """
    folder, today = private_folder(data / "backups"), today or today_here()
    path, n = folder / f"mlxkv-{today:%Y%m%d}{suffix}.db", 2
    while not suffix and path.exists():  # the clock was set back to a day that has a copy
        path, n = folder / f"mlxkv-{today:%Y%m%d}-{n}.db", n + 1
    aside = folder / f".mlxkv-{random_name()}"
    try:
        files.before("backup")
        create_empty(aside)  # 0600; SQLite fills an empty file
        try:
            with database_errors(data / "mlxkv.db"):
                db.execute("VACUUM INTO ?", (aside.absolute().as_uri(),))  # a folder's name may be no text
                check_copy(aside)
            files.before("fsync")
            fd = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync(fd)
            finally:
                os.close(fd)
            _set_newest(aside, data)
            files.before("rename")
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise
        files.sync_folder(folder)
        _prune(data, files)
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
    with opened(backup, follow=False) as stream:
        files.write(fresh, iter(lambda: stream.read(1 << 20), b""), data)
    try:
        aside = data / "backups" / f"mlxkv-{today_here():%Y%m%d}-replaced-{time.time_ns()}.db"
        there = f"{path.absolute().as_uri()}?mode=rw"
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(there, uri=True)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a database that can be read goes aside with its last turns
        for ending in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                files.move(data / f"mlxkv.db{ending}", aside.with_name(f"{aside.name}{ending}"))
        _set_newest(aside, data)
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


def _prune(data: Path, files: Files) -> None:
    for backup in _found(data)[KEEP:]:
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
    return sorted(out, key=lambda backup: (_modified_ns(backup.path), backup.day), reverse=True)


def _set_newest(path: Path, data: Path) -> None:
    """Date a file now, and every copy before it, in their order, whatever the clock said when they were made."""
    latest = max(time.time_ns(), _LEAST_NS)
    for copy in (path, *(backup.path for backup in _found(data) if backup.path != path)):
        if copy == path or _modified_ns(copy) > latest:
            with contextlib.suppress(OSError, OverflowError):
                os.utime(copy, ns=(latest, latest))
        latest = _modified_ns(copy) - _STEP_NS


def _modified_ns(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_mtime_ns
    return 0


def _chats(path: Path) -> list[tuple[object, ...]]:
    with contextlib.suppress(sqlite3.Error), _connected(path) as db:
        return db.execute(_CHATS).fetchall()
    return []  # damaged, or of an older format


def _connected(path: Path) -> closing[sqlite3.Connection]:
    """To read a copy, which nobody writes to: no lock and no -wal beside it."""
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True))


def _count(path: Path) -> int | None:
    with contextlib.suppress(sqlite3.Error), _connected(path) as db:
        return db.execute("SELECT count(*) FROM session").fetchone()[0]
    return None
