"""Checking everything the store holds: the database, every chat's chain, every chunk's bytes; and mending what can be.

Turns that are not what was written can only come back from a backup; rows can always be computed again, so mending them
means letting go of them. Needs no MLX. On the thread that opened the store.
"""

from __future__ import annotations

import datetime
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxkv.errors import CorruptError, StoreError
from mlxkv.store.db.backup import list_backups
from mlxkv.store.db.database import Database
from mlxkv.store.db.search_index import is_whole, rebuild
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import ChunkHead, verify_chunk
from mlxkv.store.kv.commits import count_removal, is_commit, mark_unused, remove_chunks
from mlxkv.store.kv.disk_usage import CacheFolder
from mlxkv.store.records import as_text, as_time, is_chunk

_TOLERATED = 86_400.0  # seconds: somebody may have flown west, where the day of the last backup is yet to come


@dataclass(frozen=True)
class Problem:
    """`what`: "database", "search", "turns", "commit", "chunk", "missing" or "leftover"; `subject`: a session, a chunk
    or a file.

    `text` is a sentence; `mended` whether it is gone now; `is_serious` False where nothing is lost by it: leftovers,
    and chunks without a file, since the KV folder may be cleared at any moment.
    """

    what: str
    subject: str
    text: str
    mended: bool = False
    is_serious: bool = True


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at, and what is wrong with it. `num_bytes` were read; the cache folder takes `disk_bytes`, of
    which `named_bytes` are named prompt caches."""

    num_sessions: int
    num_turns: int
    num_chunks: int
    num_bytes: int
    disk_bytes: int
    named_bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Nothing serious is left."""
        return all(problem.mended or not problem.is_serious for problem in self.problems)


def verify(
    database: Database, sessions: Sessions, space: CacheFolder, repair: bool, alone: bool, quick: bool = False
) -> VerifyReport:
    """See SessionStore.verify. `alone`: the caller holds the KV lock, so that what lies about is nobody's."""
    problems = _database(database, repair)
    turns, num_sessions, num_turns = _turns(database, sessions)
    problems += turns + _commits(database, sessions, repair)
    with database.reading() as db:
        query = "SELECT rowid, digest, size, grp, a, b, prefix_key FROM chunk ORDER BY digest"
        found_rows = db.execute(query).fetchall()
    rows = [row[1:] for row in found_rows if is_chunk(*row[1:])]
    problems += _unsound(database, [row[0] for row in found_rows if not is_chunk(*row[1:])], repair)
    num_bytes, missing = 0, []
    for digest, size, *head in rows:
        if not os.path.lexists(space.chunks.path(digest)):
            missing.append(digest)
        elif found := _chunk(database, space.chunks, digest, size, None if quick else ChunkHead(*head), repair):
            problems.append(found)
        elif not quick:
            num_bytes += size
    problems += _missing(database, space.chunks, missing, len(rows), repair)
    problems += _leftovers(database, space, repair and alone)
    return VerifyReport(num_sessions, num_turns, len(rows), num_bytes, space.used(), space.named(), tuple(problems))


def _database(database: Database, repair: bool) -> list[Problem]:
    out = []
    try:
        database.integrity_check()
    except CorruptError as error:
        out.append(Problem("database", database.path.name, str(error)))
    if database.read_only:
        return out  # FTS5 compares only where it could write
    try:
        with database.writing() as db:
            is_sound = is_whole(db)
    except StoreError:
        is_sound = False
    if not is_sound:
        if repair:
            with database.writing() as db:
                rebuild(db)
        text = "The search index does not match the chats; `mlxkv cache verify --repair` makes it again."
        out.append(Problem("search", "turn_fts", text, repair))
    return out


def _turns(database: Database, sessions: Sessions) -> tuple[list[Problem], int, int]:
    out, num_turns = [], 0
    with database.reading() as db:
        ids = [row[0] for row in db.execute("SELECT id FROM session ORDER BY id")]
        for session_id in ids:
            try:
                num_turns += len(sessions.record(db, session_id).turns)
            except (CorruptError, sqlite3.DatabaseError, ValueError, TypeError) as error:
                out.append(Problem("turns", session_id, str(error)))
    return out, len(ids), num_turns


def _commits(database: Database, sessions: Sessions, repair: bool) -> list[Problem]:
    """Commits that are not what was written. One that merely left the chain is nothing wrong."""
    bad: list[tuple[int, str]] = []
    with database.reading() as db:
        for commit_id, session, *fields, digest in db.execute(
            "SELECT id, session, pos, turn_digest, model, spec_id, rng, digest FROM kv_commit"
        ):
            if not is_commit(digest, *fields):
                bad.append((commit_id, session))
    if bad and repair:
        with database.writing() as db:
            db.executemany("DELETE FROM kv_commit WHERE id = ?", [(commit_id,) for commit_id, _ in bad])
            count_removal(db)
            mark_unused(db)
    text = "A saved point of the KV cache is not what was written; the chat will be read again from an earlier one."
    return [Problem("commit", session, text, repair) for _, session in bad]


def _unsound(database: Database, rowids: list[int], repair: bool) -> list[Problem]:
    """Rows that say nothing of any chunk; their files are left without a row and go as such."""
    if rowids and repair:
        with database.writing() as db:
            db.executemany("DELETE FROM chunk WHERE rowid = ?", [(rowid,) for rowid in rowids])
            count_removal(db)
    text = "An entry about saved rows of the KV cache is damaged; what they are of is read again."
    return [Problem("chunk", str(rowid), text, repair) for rowid in rowids]


def _chunk(
    database: Database, chunks: ChunkFiles, digest: str, size: int, head: ChunkHead | None, repair: bool
) -> Problem | None:
    """`head` None: its bytes are not read."""
    try:
        if head is None:
            if (found := _size(chunks.path(digest))) == size:
                return None
            raise CorruptError(f"The chunk {digest} has {found:,} of its {size:,} bytes.")
        header = verify_chunk(chunks.path(digest), digest, size)
        if header.metadata == head.metadata():
            return None
        text = f"The chunk {digest} holds other rows than the database says."
    except CorruptError as error:
        text = str(error)
    if repair:  # the file first: a bad one under its good name would be taken for saved by the next commit
        chunks.quarantine(digest)
        with database.writing() as db:
            remove_chunks(db, [digest])
    return Problem("chunk", digest, text, repair)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _missing(
    database: Database, chunks: ChunkFiles, digests: list[str], num_chunks: int, repair: bool
) -> list[Problem]:
    """One line for all: whoever cleared the folder need not be told of every file."""
    if not digests:
        return []
    if repair:
        with database.writing() as db:
            remove_chunks(db, digests)
    text = f"{len(digests):,} of {num_chunks:,} chunks of the KV cache are not there any more: nothing that was said is"
    text += " lost, the chats that need them are read again."
    return [Problem("missing", chunks.root.name, text, repair, is_serious=False)]


def _leftovers(database: Database, space: CacheFolder, repair: bool) -> list[Problem]:
    with database.reading() as db:
        known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
    out = []
    for path in space.orphans(known):
        if repair:
            space.chunks.discard(path)
        text = "A file that nothing refers to, left by a crash or set aside as damaged; mlxkv removes it after an hour."
        out.append(Problem("leftover", f"{path.parent.name}/{path.name}", text, repair, is_serious=False))
    return out


@dataclass(frozen=True)
class FutureDate:
    """A date in the store that has not come yet, in seconds since the epoch, and what is dated so."""

    what: str
    date: float


def find_future_date(database: Database, now: float) -> FutureDate | None:
    """The latest date in the store that is more than a day after `now`: the clock was ahead then, or is behind now."""
    with database.reading() as db:
        found = [
            FutureDate(f"the chat {as_text(title)!r}", max(as_time(updated), as_time(created)))
            for title, updated, created in db.execute("SELECT title, updated, created FROM session")
        ]
    for backup in list_backups(database.path.parent):
        with suppress(ValueError, OverflowError, OSError):
            day = datetime.datetime.fromisoformat(backup.day)
            found.append(FutureDate(f"the backup {backup.name}", day.timestamp()))
    latest = max(found, key=lambda future: future.date, default=None)
    return latest if latest is not None and latest.date > now + _TOLERATED else None
