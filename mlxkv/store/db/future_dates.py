"""Dates in the store that have not come yet: the clock was ahead when they were written, or is behind now."""

from __future__ import annotations

import datetime
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxkv.store.db.backup import list_backups
from mlxkv.store.records import as_text, as_time

_TOLERATED = 86_400.0  # seconds: somebody may have flown west, where the day of the last backup is yet to come


@dataclass(frozen=True)
class Ahead:
    """The latest such date, in seconds since the epoch, and what it is of."""

    what: str
    date: float


def find_ahead(db: sqlite3.Connection, data: Path, now: float) -> Ahead | None:
    """None: every date is one of the past. Inside a transaction of `db`."""
    found = [
        Ahead(f"the chat {as_text(title)!r}", max(as_time(updated), as_time(created)))
        for title, updated, created in db.execute("SELECT title, updated, created FROM session")
    ]
    for backup in list_backups(data):
        with suppress(ValueError, OverflowError, OSError):
            day = datetime.datetime.fromisoformat(backup.day)
            found.append(Ahead(f"the backup {backup.name}", day.timestamp()))
    latest = max(found, key=lambda ahead: ahead.date, default=None)
    return latest if latest is not None and latest.date > now + _TOLERATED else None
