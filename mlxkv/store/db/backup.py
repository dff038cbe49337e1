"""Backups of the chat database: one a day if chats changed, one before each migration, and restoring one.

A backup is whole or absent: SQLite writes it under a temporary name (`VACUUM INTO`), it is checked and synced, then
renamed. It holds no KV rows, which can always be computed again. Engine thread; a daily backup has its own thread and
connection.

A wrong clock must neither prune backups nor prevent them. So the day in a name is only a name: backups are ordered by
modification time, and those not older than a new one are dated back; the newest `KEEP` stay; whether a backup is due is
decided by comparing chats.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxkv.config import Folders, private_folder
from mlxkv.errors import ConfigError, StoreError, quoted
from mlxkv.store.db.database import APPLICATION_ID, VERSION, Database, create_empty, database_errors
from mlxkv.store.files import Files, regular_size, sync_path, temporary
from mlxkv.store.locks import store_lock
from mlxkv.system.regular_file import opened

KEEP = 7
_log = logging.getLogger("mlxkv.store")
_NAME = re.compile(r"mlxkv-(\d{8})(-\d+|-v\d+|-replaced-\d+)?\.db")
_STEP_NS = 2_000_000_000  # some file systems store times to two seconds
_LEAST_NS = 10**18  # and not every one stores times before 1970
_CHATS = "SELECT id, title, head, model, system, params, flags, parent, settings, preset FROM session ORDER BY id"
"""Everything a backup is for: `head` covers every message."""


@dataclass(frozen=True)
class Backup:
    """A backup file. `name` without folder and suffix; `day` as YYYY-MM-DD; `num_chats` None if it cannot be read."""

    name: str
    path: Path
    day: str
    size: int
    num_chats: int | None = None


def local_today() -> datetime.date:
    return datetime.date.fromtimestamp(time.time())


def list_backups(data: Path) -> tuple[Backup, ...]:
    """All backups, newest first."""
    counts = ((backup, _rows(backup.path, "SELECT count(*) FROM session")) for backup in _backups(data))
    return tuple(replace(backup, num_chats=count[0][0] if count else None) for backup, count in counts)


def is_due(db: sqlite3.Connection, data: Path, today: datetime.date) -> bool:
    """Whether the chats differ from the newest backup and that is not from today. Inside a transaction of `db`."""
    own = [backup for backup in _backups(data) if "-replaced-" not in backup.name]
    if own and own[0].day == today.isoformat():
        return False
    chats = db.execute(_CHATS).fetchall()
    return bool(chats) and (not own or chats != _rows(own[0].path, _CHATS))


def make(
    db: sqlite3.Connection, data: Path, files: Files, suffix: str = "", today: datetime.date | None = None
) -> Path:
    """Back up the database under today's date, and prune old backups.

    Raises:
        StoreError: the disk is full or fails, or the copy is damaged; nothing was left behind.
    """
    folder, today = private_folder(data / "backups"), today or local_today()
    path, n = folder / f"mlxkv-{today:%Y%m%d}{suffix}.db", 2
    while not suffix and path.exists():  # the clock was set back to a day that has a backup
        path, n = folder / f"mlxkv-{today:%Y%m%d}-{n}.db", n + 1
    try:
        files.before("backup")
        with temporary(folder) as copy:
            create_empty(copy)  # 0600; SQLite fills an empty file
            with database_errors(data / "mlxkv.db"):
                db.execute("VACUUM INTO ?", (copy.absolute().as_uri(),))  # a folder's name may be no text
                check_copy(copy)
            files.before("fsync")
            sync_path(copy)
            _set_newest(copy, data)
            files.before("rename")
            os.replace(copy, path)
        files.sync_folder(folder)
        _prune(data, files)
    except OSError as error:
        raise StoreError(
            f"The backup {path} cannot be written ({error.strerror}); free some space on the disk."
        ) from error
    return path


class DailyBackup:
    """Daily backups of an open database, on a thread of their own. `today`: the day of the last check."""

    def __init__(self, database: Database, files: Files) -> None:
        self._database, self._files = database, files
        self._thread: threading.Thread | None = None
        self.today = local_today()

    def start_if_new_day(self) -> None:
        """Check once a day. Call it often: a window may stay open overnight."""
        if self.today != (today := local_today()):
            self.today = today
            self.start_if_due()

    def start_if_due(self) -> None:
        """Start a backup if one is due. After a failure the next opening of the store tries again."""
        try:
            with self._database.reading() as db:
                if not is_due(db, self._database.path.parent, self.today):
                    return
        except StoreError:  # damage is reported by the calls that need the data
            _log.exception("cannot tell whether a daily backup is due")
            return
        self.wait()
        self._thread = threading.Thread(target=self._run, name="mlxkv-backup")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the backup that was started."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with closing(self._database.new_connection()) as own:
                make(own.db, own.path.parent, self._files)
        except (StoreError, ConfigError):
            _log.exception("the daily backup failed")


def check_copy(path: Path) -> int:
    """Check a backup and return its format version.

    Raises:
        StoreError: it is damaged, or not a database of mlxkv.
    """
    with database_errors(path), _connected(path) as db:
        kind = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if kind != APPLICATION_ID or found != "ok":
        raise StoreError(f"{path} is damaged or not a backup made by mlxkv ({found}); use another one.")
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer mlxkv (format {version}, this one knows {VERSION}); update mlxkv."
        )
    return version


def restore(folders: Folders, name: str, files: Files | None = None) -> Path | None:
    """Replace the database by a backup. The old one becomes a backup of its own, whose path is returned.

    Raises:
        StoreError: no such backup, it is damaged, or another process has the chats open.
    """
    data, files = folders.data, files or Files()
    known = {backup.name: backup for backup in list_backups(data)}
    if name.removesuffix(".db") not in known:
        raise StoreError(f"There is no backup {quoted(name)}; the backups are: {', '.join(known) or 'none'}.")
    backup = known[name.removesuffix(".db")].path
    check_copy(backup)
    with store_lock(private_folder(data / "locks"), exclusive=True):
        try:
            return _replace_database(data, backup, files)
        except OSError as error:
            raise StoreError(f"The backup {backup} cannot be restored ({error.strerror}); try again.") from error


def _replace_database(data: Path, backup: Path, files: Files) -> Path | None:
    """See `restore`. The old database stays in place until the new one is complete on disk."""
    path = data / "mlxkv.db"
    with temporary(data) as fresh:
        with opened(backup, follow=False) as stream:
            files.write(fresh, iter(lambda: stream.read(1 << 20), b""), data)
        replaced = data / "backups" / f"mlxkv-{local_today():%Y%m%d}-replaced-{time.time_ns()}.db"
        there = f"{path.absolute().as_uri()}?mode=rw"
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(there, uri=True)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that a readable database keeps its last turns
        for ending in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                files.move(data / f"mlxkv.db{ending}", replaced.with_name(f"{replaced.name}{ending}"))
        _set_newest(replaced, data)
        files.move(fresh, path)
        files.sync_folder(data)
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
        store_id = db.execute("SELECT value FROM meta WHERE key = 'store'").fetchone()[0]
        files.write(data / "store.json", [json.dumps({"format": 1, "store": store_id}).encode()], data)
    return replaced if regular_size(replaced) is not None else None


def _prune(data: Path, files: Files) -> None:
    for backup in _backups(data)[KEEP:]:
        for ending in ("-wal", "-shm", ""):
            files.remove(backup.path.with_name(f"{backup.path.name}{ending}"))


def _backups(data: Path) -> list[Backup]:
    """All backups, newest first, without `num_chats`."""
    out = []
    with contextlib.suppress(OSError):
        for path in (data / "backups").iterdir():
            size = regular_size(path)
            if (found := _NAME.fullmatch(path.name)) and size is not None:
                out.append(Backup(path.stem, path, f"{found[1][:4]}-{found[1][4:6]}-{found[1][6:]}", size))
    return sorted(out, key=lambda backup: (_modified_ns(backup.path), backup.day), reverse=True)


def _set_newest(path: Path, data: Path) -> None:
    """Set a file's time to now and every other backup's before it, in order, whatever the clock said at the time."""
    latest = max(time.time_ns(), _LEAST_NS)
    for copy in (path, *(backup.path for backup in _backups(data) if backup.path != path)):
        if copy == path or _modified_ns(copy) > latest:
            with contextlib.suppress(OSError, OverflowError):
                os.utime(copy, ns=(latest, latest))
        latest = _modified_ns(copy) - _STEP_NS


def _modified_ns(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_mtime_ns
    return 0


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """The result of a query on a backup; empty if that is damaged or has an older format."""
    with contextlib.suppress(sqlite3.Error), _connected(path) as db:
        return db.execute(query).fetchall()
    return []


def _connected(path: Path) -> closing[sqlite3.Connection]:
    """Open a backup for reading, without a lock or a -wal file, since no process writes to it."""
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True))
