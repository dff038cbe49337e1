"""Check everything the store holds: the database, every chat's digest chain, every chunk's bytes; and repair it.

Damaged turns can only come back from a backup. KV rows can always be computed again, so repairing them means removing
them. Needs no MLX. On the thread that opened the store.
"""

from __future__ import annotations

import datetime
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from mlxkv.errors import CorruptError, StoreError
from mlxkv.store.db.backup import list_backups
from mlxkv.store.db.database import Database
from mlxkv.store.db.search_index import is_intact, rebuild
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.files import regular_size
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import ChunkHead, verify_chunk
from mlxkv.store.kv.commits import count_removal, is_commit, mark_unused, remove_chunks
from mlxkv.store.kv.disk_usage import CacheFolder
from mlxkv.store.records import as_text, as_time, is_chunk

_TOLERANCE = 86_400.0  # seconds: after a flight west, the day of the last backup may be tomorrow


class ProblemKind(StrEnum):
    """The part of the store that is damaged."""

    DATABASE = "database"
    SEARCH = "search"
    TURNS = "turns"
    COMMIT = "commit"
    CHUNK = "chunk"
    MISSING = "missing"
    ORPHAN = "orphan"


@dataclass(frozen=True)
class Problem:
    """A problem with `subject`: a session, a chunk or a file. `text` is a sentence; `repaired`: it no longer exists.

    `is_serious` is False for orphaned files, and for missing ones, since the KV folder may be cleared at any time.
    """

    kind: ProblemKind
    subject: str
    text: str
    repaired: bool = False
    is_serious: bool = True


@dataclass(frozen=True)
class VerifyReport:
    """The counts and problems of one check. `num_bytes` were read; the cache folder takes `disk_bytes`, of which
    `named_bytes` are named prompt caches."""

    num_sessions: int
    num_turns: int
    num_chunks: int
    num_bytes: int
    disk_bytes: int
    named_bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether no serious problem remains."""
        return all(problem.repaired or not problem.is_serious for problem in self.problems)


def verify(
    database: Database, sessions: Sessions, folder: CacheFolder, repair: bool, is_locked: bool, quick: bool = False
) -> VerifyReport:
    """See SessionStore.verify. `is_locked`: the caller holds the KV lock, so that orphaned files may be removed."""
    problems = [*_check_database(database), *_check_search(database, repair)]
    turns, num_sessions, num_turns = _check_turns(database, sessions)
    problems += turns + _check_commits(database, repair)
    with database.reading() as db:
        query = "SELECT rowid, digest, size, grp, a, b, prefix_key FROM chunk ORDER BY digest"
        found = [(rowid, row, is_chunk(*row)) for rowid, *row in db.execute(query)]
    problems += _check_entries(database, [rowid for rowid, _, is_valid in found if not is_valid], repair)
    num_bytes, num_chunks, missing = 0, 0, []
    for digest, size, *head in (row for _, row, is_valid in found if is_valid):
        num_chunks += 1
        if not os.path.lexists(folder.chunks.path(digest)):
            missing.append(digest)
        elif problem := _check_chunk(
            database, folder.chunks, digest, size, None if quick else ChunkHead(*head), repair
        ):
            problems.append(problem)
        elif not quick:
            num_bytes += size
    problems += _report_missing(database, folder.chunks, missing, num_chunks, repair)
    problems += _check_orphans(database, folder, repair and is_locked)
    return VerifyReport(num_sessions, num_turns, num_chunks, num_bytes, folder.used(), folder.named(), tuple(problems))


def _check_database(database: Database) -> list[Problem]:
    try:
        database.integrity_check()
    except CorruptError as error:
        return [Problem(ProblemKind.DATABASE, database.path.name, str(error))]
    return []


def _check_search(database: Database, repair: bool) -> list[Problem]:
    if database.read_only:
        return []  # FTS5 checks its index only in a writable database
    try:
        with database.writing() as db:
            if is_intact(db):
                return []
    except StoreError:
        pass
    if repair:
        with database.writing() as db:
            rebuild(db)
    text = "The search index does not match the chats; `mlxkv cache verify --repair` rebuilds it."
    return [Problem(ProblemKind.SEARCH, "turn_fts", text, repair)]


def _check_turns(database: Database, sessions: Sessions) -> tuple[list[Problem], int, int]:
    out, num_turns = [], 0
    with database.reading() as db:
        ids = [row[0] for row in db.execute("SELECT id FROM session ORDER BY id")]
        for session_id in ids:
            try:
                num_turns += len(sessions.record(db, session_id).turns)
            except (CorruptError, sqlite3.DatabaseError, ValueError, TypeError) as error:
                out.append(Problem(ProblemKind.TURNS, session_id, str(error)))
    return out, len(ids), num_turns


def _check_commits(database: Database, repair: bool) -> list[Problem]:
    """Damaged commits. One that only left the digest chain is valid."""
    bad: list[tuple[int, str]] = []
    with database.reading() as db:
        for commit_id, session, *fields, digest in db.execute(
            "SELECT id, session, pos, turn_digest, model, spec_id, rng, digest FROM kv_commit"
        ):
            if not is_commit(digest, *fields):
                bad.append((commit_id, session))
    if bad and repair:
        _delete(database, "kv_commit", [commit_id for commit_id, _ in bad])
    text = "A commit of the KV cache is damaged; resuming this chat prefills more."
    return [Problem(ProblemKind.COMMIT, session, text, repair) for _, session in bad]


def _check_entries(database: Database, rowids: Sequence[int], repair: bool) -> list[Problem]:
    """Rows of `chunk` that describe no chunk; the files, if any, become orphans."""
    if rowids and repair:
        _delete(database, "chunk", rowids)
    text = "An entry about saved rows of the KV cache is damaged; they are prefilled again."
    return [Problem(ProblemKind.CHUNK, str(rowid), text, repair) for rowid in rowids]


def _delete(database: Database, table: str, rowids: Sequence[int]) -> None:
    with database.writing() as db:
        db.executemany(f"DELETE FROM {table} WHERE rowid = ?", [(rowid,) for rowid in rowids])
        count_removal(db)
        mark_unused(db)


def _check_chunk(
    database: Database, chunks: ChunkFiles, digest: str, size: int, head: ChunkHead | None, repair: bool
) -> Problem | None:
    """Check a chunk's bytes against `head`; only the file's size if that is None."""
    try:
        if head is None:
            if (found := regular_size(chunks.path(digest)) or 0) == size:
                return None
            raise CorruptError(f"The chunk {digest} has {found:,} of its {size:,} bytes.")
        header = verify_chunk(chunks.path(digest), digest, size)
        if header.metadata == head.metadata():
            return None
        text = f"The chunk {digest} holds other rows than the database expects."
    except CorruptError as error:
        text = str(error)
    if repair:  # the file first: the next commit would take a damaged file with the right name for saved
        chunks.quarantine(digest)
        with database.writing() as db:
            remove_chunks(db, [digest])
    return Problem(ProblemKind.CHUNK, digest, text, repair)


def _report_missing(
    database: Database, chunks: ChunkFiles, digests: Sequence[str], num_chunks: int, repair: bool
) -> list[Problem]:
    """One problem for all missing chunks, since clearing the folder is allowed."""
    if not digests:
        return []
    if repair:
        with database.writing() as db:
            remove_chunks(db, digests)
    text = f"{len(digests):,} of {num_chunks:,} chunks of the KV cache are missing: no message is lost, and chats that"
    text += " need them are prefilled again."
    return [Problem(ProblemKind.MISSING, chunks.root.name, text, repair, is_serious=False)]


def _check_orphans(database: Database, folder: CacheFolder, repair: bool) -> list[Problem]:
    with database.reading() as db:
        known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
    out = []
    for path in folder.orphans(known):
        if repair:
            folder.chunks.discard(path)
        text = "An unused file, left by a crash or set aside as damaged; mlxkv removes it after an hour."
        out.append(Problem(ProblemKind.ORPHAN, f"{path.parent.name}/{path.name}", text, repair, is_serious=False))
    return out


@dataclass(frozen=True)
class FutureDate:
    """A date in the future, in seconds since the epoch, and the chat or backup that has it."""

    what: str
    date: float


def find_future_date(database: Database, now: float) -> FutureDate | None:
    """The latest date in the store that is more than a day after `now`: the clock was ahead, or is behind now."""
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
    return latest if latest is not None and latest.date > now + _TOLERANCE else None
