"""Chunks taken out of the database, and put back where their files turned out not to be removable.

Rows go first and files second, so that a crash in between leaves files without a row; a file that stays (a read-only
folder, an immutable file) is still worth its row. Inside a transaction of the caller, who holds the KV lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlxkv.store.kv.commits import remove_chunks

Row = tuple[object, ...]


@dataclass(frozen=True)
class Forgotten:
    """The rows of `chunk` and `kv_ref` that were removed."""

    chunks: Sequence[Row] = ()
    refs: Sequence[Row] = ()

    @property
    def digests(self) -> list[str]:
        return [str(row[0]) for row in self.chunks]


def forget(db: sqlite3.Connection, digests: Collection[str]) -> Forgotten:
    chunks = [row for d in digests for row in db.execute("SELECT * FROM chunk WHERE digest = ?", (d,))]
    refs = [
        row
        for d in digests
        for row in db.execute("SELECT kv_commit, chunk, kept_for FROM kv_ref WHERE chunk = ?", (d,))
    ]
    remove_chunks(db, digests)
    return Forgotten(chunks, refs)


def put_back(db: sqlite3.Connection, forgotten: Forgotten, digests: Collection[str]) -> None:
    """Those of `digests`. A commit that is gone meanwhile needs none."""
    for row in forgotten.chunks:
        if row[0] in digests:
            db.execute(f"INSERT OR IGNORE INTO chunk VALUES({', '.join('?' * len(row))})", row)
    db.executemany(
        "INSERT OR IGNORE INTO kv_ref(kv_commit, chunk, kept_for) SELECT ?1, ?2, ?3"
        " WHERE EXISTS(SELECT 1 FROM kv_commit WHERE id = ?1)",
        [row for row in forgotten.refs if row[1] in digests],
    )
