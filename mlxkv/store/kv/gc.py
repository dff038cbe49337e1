"""Orphaned files; call while holding the KV lock, so that no commit can begin to refer to one.

Database rows go first, files second: a crash in between leaves files without a row, never a row without a file.
Any thread, with its own connection.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from mlxkv.store.db.database import Database
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.disk_usage import CacheFolder, prompt_temporaries
from mlxkv.store.records import is_digest


def has_unused(database: Database, thorough: bool = False) -> bool:
    """Whether a chat that was deleted or changed left unused chunks; `thorough` looks at the chunks themselves."""
    query = "SELECT 1 FROM meta WHERE key = 'kv_unused'"
    if thorough:
        query = "SELECT 1 FROM chunk WHERE digest NOT IN (SELECT chunk FROM kv_ref) LIMIT 1"
    with database.reading() as db:
        return db.execute(query).fetchone() is not None


def remove_unused(database: Database, chunks: ChunkFiles, also: Sequence[str] = ()) -> None:
    """Remove the chunks that no commit refers to, also among `also`, which may have no database row."""
    with database.writing() as db:
        used = {row[0] for row in db.execute("SELECT chunk FROM kv_ref")}
        rows = [row[0] for row in db.execute("SELECT digest FROM chunk")]
        unused = {digest for digest in (*rows, *also) if digest not in used}
        db.executemany("DELETE FROM chunk WHERE digest = ?", [(digest,) for digest in unused])
        db.execute("DELETE FROM meta WHERE key = 'kv_unused'")
    _remove(chunks, unused)


def remove_if_unused(database: Database, chunks: ChunkFiles, digests: Collection[str]) -> None:
    """Remove those of `digests` that no commit refers to."""
    with database.writing() as db:
        unused = [d for d in digests if not db.execute("SELECT 1 FROM kv_ref WHERE chunk = ? LIMIT 1", (d,)).fetchone()]
        db.executemany("DELETE FROM chunk WHERE digest = ?", [(digest,) for digest in unused])
    _remove(chunks, unused)


def _remove(chunks: ChunkFiles, digests: Collection[str]) -> None:
    for digest in filter(is_digest, digests):
        with suppress(OSError):  # `sweep` tries again
            chunks.files.remove(chunks.path(digest))


def missing_bytes(db: sqlite3.Connection, chunks: ChunkFiles) -> Mapping[str, int]:
    """Bytes of missing chunk files by session: the folder may be cleared at any time. Lists only folders that have
    changed."""
    chunks.listing.refresh()
    out: Counter[str] = Counter()
    for digest, size in db.execute("SELECT digest, size FROM chunk").fetchall():
        if is_digest(digest) and chunks.listing.folder(digest[:2]).get(f"{digest}.safetensors") is None:
            query = "SELECT DISTINCT c.session FROM kv_ref r JOIN kv_commit c ON c.id = r.kv_commit WHERE r.chunk = ?"
            out.update({session: size for (session,) in db.execute(query, (digest,)) if isinstance(size, int)})
    return out


def sweep(database: Database, space: CacheFolder) -> None:
    """Remove the files that crashes left, after a second look at the database while it is locked. Needs no KV lock."""
    for path in prompt_temporaries(space.prompts):
        with suppress(OSError):
            space.chunks.files.remove(path)
    with database.reading() as db:
        stale = space.chunks.stale({row[0] for row in db.execute("SELECT digest FROM chunk")})
    if not stale:
        return
    with database.writing() as db:
        known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
        for path in stale:
            if path.stem not in known:
                with suppress(OSError):
                    space.chunks.files.remove(path)
