"""The database: schema, connections, transactions. Knows nothing of sessions and KV.

A connection belongs to the thread that opened it. Every database error is raised as a StoreError.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mlxkv.errors import CorruptError, DiskError, StoreError, WrongThreadError
from mlxkv.store.db.search_index import INDEX
from mlxkv.store.files import Step, no_step
from mlxkv.system.regular_file import check_regular

APPLICATION_ID = 0x6D6C786B  # "mlxk"
VERSION = 3
UNTRUSTED = 1  # bit of `session.flags`: someone else computed its KV rows
LISTED = "s.kind IS NOT 'endpoint'"
"""Of a session `s`: it is one of the user's chats, and no conversation of the endpoint's clients."""
FLAGS = "coalesce(CAST(s.flags AS INTEGER), 0)"  # of a session s: a number, whatever damage has left there
PINNED = 2  # bit of `session.flags`: its KV rows are exempt from the disk limit
IS_VERSION, IS_FORK = 4, 8  # bits: made by going back in its parent's chat; made as a chat of its own
IS_NAMED = 16  # bit: the user gave it its title
ENDINGS = ("", "-wal", "-shm", "-journal")  # of the database's files
_DISK_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_MIN_FREE = 1 << 16  # bytes
_PRAGMAS = (
    "trusted_schema=0", "foreign_keys=1", "secure_delete=1", "fullfsync=1", "checkpoint_fullfsync=1",
    "journal_mode=WAL", "synchronous=FULL", "cell_size_check=1",
)  # fmt: skip
ADVICE = "`mlxkv chats backups` lists the backups to restore"

SCHEMA = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE model(id TEXT PRIMARY KEY, name TEXT NOT NULL, model_id TEXT NOT NULL, json TEXT NOT NULL) STRICT;
CREATE TABLE spec(id TEXT PRIMARY KEY, json TEXT NOT NULL) STRICT;
CREATE TABLE session(
  id TEXT PRIMARY KEY, title TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
  model TEXT NOT NULL REFERENCES model(id), spec_id TEXT REFERENCES spec(id),
  system TEXT, params TEXT NOT NULL, parent TEXT REFERENCES session(id) ON DELETE SET NULL, forked_at INTEGER,
  flags INTEGER NOT NULL DEFAULT 0, head TEXT NOT NULL, kv_written INTEGER NOT NULL DEFAULT 0,
  needed TEXT NOT NULL DEFAULT '', kind TEXT NOT NULL DEFAULT 'chat', clock TEXT, settings TEXT NOT NULL DEFAULT '{{}}',
  preset TEXT, origin TEXT, seed INTEGER, seq INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX session_seq ON session(seq);
CREATE TABLE turn(
  id INTEGER PRIMARY KEY, session TEXT NOT NULL REFERENCES session(id) ON DELETE CASCADE, i INTEGER NOT NULL,
  role TEXT NOT NULL, text TEXT NOT NULL, thinking TEXT NOT NULL, state TEXT NOT NULL, params TEXT NOT NULL,
  start INTEGER NOT NULL, ids BLOB NOT NULL, stats TEXT NOT NULL, prev TEXT NOT NULL, digest TEXT NOT NULL,
  extra TEXT NOT NULL DEFAULT '', UNIQUE(session, i)) STRICT;
CREATE TABLE chunk(
  digest TEXT PRIMARY KEY, size INTEGER NOT NULL, grp TEXT NOT NULL, a INTEGER NOT NULL, b INTEGER NOT NULL,
  prefix_key TEXT NOT NULL, spec_id TEXT NOT NULL REFERENCES spec(id), last_used REAL NOT NULL) STRICT;
CREATE INDEX chunk_prefix ON chunk(prefix_key);
CREATE TABLE kv_commit(
  id INTEGER PRIMARY KEY, session TEXT NOT NULL REFERENCES session(id) ON DELETE CASCADE, pos INTEGER NOT NULL,
  turn_digest TEXT NOT NULL, model TEXT NOT NULL REFERENCES model(id), spec_id TEXT NOT NULL REFERENCES spec(id),
  rng BLOB, digest TEXT NOT NULL) STRICT;
CREATE INDEX kv_commit_session ON kv_commit(session);
CREATE TABLE kv_ref(
  kv_commit INTEGER NOT NULL REFERENCES kv_commit(id) ON DELETE CASCADE,
  chunk TEXT NOT NULL REFERENCES chunk(digest) ON DELETE CASCADE, kept_for TEXT NOT NULL DEFAULT '',
  PRIMARY KEY(kv_commit, chunk)) STRICT, WITHOUT ROWID;
CREATE INDEX kv_ref_chunk ON kv_ref(chunk);
CREATE TABLE filehash(
  path TEXT PRIMARY KEY, dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL) STRICT;
{INDEX};
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the existing file `path` with all settings this store relies on.

    Raises:
        StoreError: this Python's SQLite is too old or lacks FTS5. CorruptError: not a database.
    """
    if sqlite3.sqlite_version_info < (3, 37):
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old, 3.37 is needed; use a newer Python.")
    with database_errors(path):
        for ending in ENDINGS:  # SQLite would wait for a pipe
            check_regular(f"{path}{ending}")
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=10)
    try:
        with database_errors(path):
            if not db.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
                raise StoreError(
                    "This Python's SQLite was built without FTS5, which searching chats needs; use another Python."
                )
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0


def create(db: sqlite3.Connection, store_id: str) -> None:
    """Create all tables in one transaction, so that a crash leaves an empty file or the whole schema."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if is_empty(db):  # else another process has just created them
            for statement in SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES('store', ?)", (store_id,))
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def store_id(db: sqlite3.Connection) -> str | None:
    """The id of this store; None if damage has taken it."""
    row = db.execute("SELECT value FROM meta WHERE key = 'store'").fetchone()
    return row[0] if row else None


def needs_migration(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the database has an older format.

    Raises:
        StoreError: it has a newer one, or belongs to another program.
    """
    if (found := db.execute("PRAGMA application_id").fetchone()[0]) != APPLICATION_ID:
        raise StoreError(f"{path} is not an mlxkv database (application_id {found:#x}); move it away.")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version < 1:
        raise CorruptError(f"The chat database {path} is damaged (format {version}); {ADVICE}.")
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer mlxkv (format {version}, this one knows {VERSION}); update mlxkv."
        )
    return version < VERSION


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's and the system's exceptions as StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CorruptError(f"The chat database {path} is damaged ({error}); {ADVICE}.") from error
        if isinstance(error, sqlite3.ProgrammingError) and "thread" in str(error):
            raise WrongThreadError(
                "The chat database was opened by another thread; use a model, its chats and its store on the thread "
                "that loaded the model."
            ) from error
        if code == sqlite3.SQLITE_BUSY:
            raise StoreError(f"The chat database {path} is busy; close the other mlxkv and try again.") from error
        if code in _DISK_CODES:
            why = f"({error}); check" if has_free_space(path) else "(no space left); free some space on"
            raise DiskError(f"The chat database {path} cannot be used {why} the disk and try again.") from error
        raise StoreError(f"The chat database {path} cannot be used ({error}); check the disk and try again.") from error
    except UnicodeDecodeError as error:  # sqlite3 fails to decode a name or an error message
        raise CorruptError(f"The chat database {path} is damaged (invalid text); {ADVICE}.") from error
    except OSError as error:
        raise DiskError(
            f"The chat database {path} cannot be used ({error.strerror}); check the disk and try again."
        ) from error


def has_free_space(path: Path) -> bool:
    """Whether the disk has the few pages that SQLite needs, whose own error may just be "disk I/O error"."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path.parent).free >= _MIN_FREE
    return True


class Database:
    """A connection and its two kinds of transaction. `before` is called before each commit."""

    read_only: str | None = None  # the reason why nothing can be written, in one sentence

    def __init__(self, db: sqlite3.Connection, path: Path, before: Step = no_step) -> None:
        self.db, self.path, self.before = db, path, before

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read transaction: one snapshot for several SELECTs, or a concurrent writer would look like corruption."""
        with database_errors(self.path):
            self.db.execute("BEGIN")
            try:
                yield self.db
            finally:
                self._rollback()

    @contextlib.contextmanager
    def writing(self, lasting: bool = True) -> Iterator[sqlite3.Connection]:
        """Write transaction. Takes the lock at the start, so that rows read in it do not change until it commits.

        Not `lasting`: the commit is not synced, so a power failure may undo it, but nothing before it.
        """
        with database_errors(self.path), contextlib.nullcontext() if lasting else self._unsynced():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.before("commit")
                self.db.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise
        self.before("committed")

    @contextlib.contextmanager
    def _unsynced(self) -> Iterator[None]:
        level = self.db.execute("PRAGMA synchronous").fetchone()[0]
        self.db.execute(f"PRAGMA synchronous={min(level, 1)}")  # NORMAL: in WAL mode a commit is not synced
        try:
            yield
        finally:
            self.db.execute(f"PRAGMA synchronous={level}")

    def _rollback(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def new_connection(self) -> Database:
        """Open a second connection, for the calling thread."""
        return Database(connect(self.path), self.path, self.before)

    def quick_check(self) -> None:
        """Raises CorruptError."""
        self._check("quick_check(1)")

    def integrity_check(self) -> None:
        """Run all checks of SQLite, foreign keys included. Raises CorruptError."""
        self._check("integrity_check(1)")
        with self.reading() as db:
            if wrong := db.execute("PRAGMA foreign_key_check").fetchone():
                raise CorruptError(
                    f"The chat database {self.path} is damaged (a row of {wrong[0]} refers to a missing {wrong[2]}); "
                    f"{ADVICE}."
                )

    def _check(self, pragma: str) -> None:
        with database_errors(self.path):
            found = self.db.execute(f"PRAGMA {pragma}").fetchone()[0]
        if found != "ok":
            raise CorruptError(f"The chat database {self.path} is damaged ({found}); {ADVICE}.")

    def close(self) -> None:
        self.db.close()


def create_empty(path: Path) -> None:
    """Create the file with mode 0600 before SQLite opens it, which copies the mode to -wal and -shm."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
