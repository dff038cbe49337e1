"""Migrate an older database, one version at a time, each in its own transaction. Engine thread.

The caller has checked the database and made a backup.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

from mlxkv.store.db.database import VERSION
from mlxkv.store.db.search_index import rebuild
from mlxkv.store.files import Step

_TO_2 = "ALTER TABLE session ADD COLUMN needed TEXT NOT NULL DEFAULT ''"

_TO_3 = """
ALTER TABLE session ADD COLUMN kind TEXT NOT NULL DEFAULT 'chat';
ALTER TABLE session ADD COLUMN clock TEXT;
ALTER TABLE session ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE session ADD COLUMN preset TEXT;
ALTER TABLE session ADD COLUMN origin TEXT;
ALTER TABLE session ADD COLUMN seed INTEGER;
ALTER TABLE session ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
UPDATE session SET seq = n FROM (SELECT id AS other, row_number() OVER (ORDER BY updated, id) AS n FROM session)
  WHERE other = id;
CREATE INDEX session_seq ON session(seq);
ALTER TABLE turn ADD COLUMN extra TEXT NOT NULL DEFAULT '';
ALTER TABLE kv_ref ADD COLUMN kept_for TEXT NOT NULL DEFAULT '';
DROP TABLE filehash;
CREATE TABLE filehash(
  path TEXT PRIMARY KEY, dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL) STRICT
"""
"""Drops `filehash`: files that were hashed without their ctime are hashed again."""


Change = str | Callable[[sqlite3.Connection], None]
"""A statement, or a function for what SQL cannot express."""

MIGRATIONS: Mapping[int, tuple[Change, ...]] = {1: (_TO_2,), 2: (*_TO_3.split(";\n"), rebuild)}
"""The changes from version n to n + 1."""


def migrate(db: sqlite3.Connection, before: Step) -> None:
    """Migrate to the current version. `before` is called before each change."""
    while (version := db.execute("PRAGMA user_version").fetchone()[0]) < VERSION:
        db.execute("BEGIN IMMEDIATE")
        try:
            for change in MIGRATIONS[version]:
                before("migrate")
                db.execute(change) if isinstance(change, str) else change(db)
            before("migrate")
            db.execute(f"PRAGMA user_version={version + 1}")
            before("commit")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        before("committed")
