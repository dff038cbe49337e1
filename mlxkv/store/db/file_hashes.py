"""Digests of model files, remembered in the database. Engine thread."""

from __future__ import annotations

import os

from mlxkv.store.db.database import Database
from mlxkv.store.records import is_sha256


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
            return  # hashed again next time
        with self._database.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO filehash VALUES(?, ?, ?, ?, ?, ?, ?)",
                (path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, sha256),
            )
