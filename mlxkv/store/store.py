"""SessionStore: the door to everything on disk. Opens the two folders, and hands each call to the part that owns it.

One object per process, used by the thread that opened it (the engine's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlxkv.config import Folders, private_folder
from mlxkv.events import Branch, ChatSummary, Sibling
from mlxkv.store.chunks import ChunkFiles
from mlxkv.store.commit import Committer
from mlxkv.store.family import siblings, tree
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.locks import lock_path, locked
from mlxkv.store.opening import RememberedHashes, open_database
from mlxkv.store.ports import KVCacheLike
from mlxkv.store.records import KVCommit, Restored, SearchHit, SessionRecord, TurnRecord
from mlxkv.store.refs import copy_commits
from mlxkv.store.restore import Restorer
from mlxkv.store.schema import Database
from mlxkv.store.sessions import Sessions


class SessionStore:
    """Sessions with their KV cache. Every method may raise StoreError; each says what else."""

    def __init__(self, database: Database, chunks: ChunkFiles, locks: Path) -> None:
        self.file_hashes = RememberedHashes(database)
        self._database, self._chunks, self._locks = database, chunks, locks
        self._sessions = Sessions(database)
        self._held: set[str] = set()

    @classmethod
    def open(cls, folders: Folders, before: Step = no_step) -> SessionStore:
        """Open or make the store; `before` is called before each step on disk (tests crash there).

        Raises:
            StoreError: another program's or a newer format, or the database is gone though there was one.
            CorruptError: the database is damaged. ConfigError: a folder is not private.
        """
        data, kv = private_folder(folders.data), private_folder(folders.cache / "kv")
        locks = private_folder(data / "locks")
        files = Files(before)
        database = open_database(data, files)
        store = cls(database, ChunkFiles(kv, files), locks)
        try:
            store._sweep()
        except BaseException:
            database.close()
            raise
        return store

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- sessions and turns ----------------------------------------------------------------------------

    def create(
        self, title: str, model: ModelIdentity, *, system: str | None = None, params: Mapping[str, Any] | None = None,
        parent: str | None = None, forked_at: int | None = None,
    ) -> str:  # fmt: skip
        """A session without turns; returns its id."""
        return self._sessions.create(title, model, system, params or {}, parent, forked_at)

    def add_turn(self, session_id: str, turn: TurnRecord, *, head: str | None = None) -> str:
        """Append a turn and return the new head; on disk when this returns.

        `head` is the head the turn was made from, by default the one this store last saw (create, load, add, update).

        Raises:
            SessionChangedError: somebody else changed the session since. SessionNotFoundError: it was deleted.
        """
        return self._sessions.add_turn(session_id, turn, head)

    def update_open_turn(
        self, session_id: str, turn: TurnRecord, *, head: str | None = None, reopen: bool = False
    ) -> str:
        """Replace the last turn, whose state is "open", by a longer or finished one. Returns the new head.

        `reopen`: it may be finished, if `turn` goes on from its ids; rows that were saved at it stay saved.

        Raises:
            SessionChangedError: see add_turn. StoreError: the last turn is not open.
        """
        return self._sessions.update_open_turn(session_id, turn, head, reopen)

    def load(self, session_id: str) -> SessionRecord:
        """Everything about a session, its digest chain verified.

        Raises:
            SessionNotFoundError. CorruptError: names the turn that is not what was written.
        """
        return self._sessions.load(session_id)

    def list(self) -> tuple[ChatSummary, ...]:
        """Newest first."""
        return self._sessions.list()

    def find(self, text: str) -> str:
        """The id of the session with this id, unique beginning of an id, title, or unique part of a title.

        Raises:
            SessionNotFoundError: lists the candidates.
        """
        return self._sessions.find(text)

    def latest(self) -> str | None:
        return self._sessions.latest()

    def search(self, text: str, limit: int = 50) -> tuple[SearchHit, ...]:
        """Turns that hold every word of `text`, best first."""
        return self._sessions.search(text, limit)

    def tree(self, session_id: str) -> tuple[Branch, ...]:
        """The chat, what it was forked from and what was forked from it: each before its forks."""
        with self._database.reading() as db:
            return tree(db, session_id)

    def siblings(self, session_id: str) -> tuple[tuple[Sibling, ...], ...]:
        """For each message of the chat its versions in the order they were made, this chat's own among them."""
        with self._database.reading() as db:
            return siblings(db, session_id)

    def rename(self, session_id: str, title: str) -> None:
        """Raises SessionNotFoundError."""
        self._sessions.rename(session_id, title)

    def set_model(self, session_id: str, model: ModelIdentity) -> None:
        """The session goes on with another model. Raises SessionNotFoundError."""
        self._sessions.set_model(session_id, model)

    def fork(self, session_id: str, num_turns: int) -> str:
        """A new session with the first `num_turns` turns and every saved row that lies on them; writes no KV bytes.

        Raises:
            SessionNotFoundError. StoreError: it has fewer turns.
        """
        with self._database.writing() as db:
            new_id, history = self._sessions.fork(db, session_id, num_turns)
            copy_commits(db, session_id, new_id, history)
        self._sessions.seen[new_id] = history.head
        return new_id

    def delete(self, session_id: str) -> None:
        """Remove its rows, then the chunks that nothing else uses.

        Raises:
            SessionNotFoundError. SessionLockedError: it is open in another process.
        """
        with self.lock(session_id) if session_id not in self._held else _nothing():
            with self._database.writing() as db:
                self._sessions.delete(db, session_id)
            self._remove_unused()
            self._chunks.empty_quarantine()
            with suppress(OSError):
                self._chunks.files.remove(lock_path(self._locks, session_id))

    @contextmanager
    def lock(self, session_id: str) -> Iterator[None]:
        """Hold the session; the kernel lets go when the process ends, however it ends.

        Raises:
            SessionLockedError: names the process that holds it.
        """
        with locked(self._locks, session_id):
            self._held.add(session_id)
            try:
                yield
            finally:
                self._held.discard(session_id)

    # -- KV --------------------------------------------------------------------------------------------

    def commit_kv(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None = None
    ) -> KVCommit:
        """Save the rows that are new since the last commit on this history, and the sampler's state.

        Raises:
            SessionChangedError: the history moved meanwhile. StoreError: a write failed; nothing was left behind and
            the next call tries again.
        """
        return Committer(self._sessions, self._chunks).commit(session_id, cache, model, rng)

    def restore_kv(self, session_id: str, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int]) -> Restored:
        """Reset the cache and fill it with the longest saved prefix of `ids`.

        Missing or damaged rows, or ones of another model or cache layout, cost tokens and give a notice; damaged files
        are moved to the folder `quarantine`. `optional` rows are loaded where they are at hand.

        Raises:
            SessionNotFoundError. CorruptError: the turns (not the rows) are damaged.
        """
        return Restorer(self._sessions, self._chunks).restore(session_id, cache, model, ids)

    def disk_bytes(self, session_id: str) -> int:
        """Bytes of the chunks the session refers to, shared ones included."""
        with self._database.reading() as db:
            return db.execute(
                "SELECT coalesce(sum(size), 0) FROM chunk WHERE digest IN (SELECT r.chunk FROM kv_ref r"
                " JOIN kv_commit c ON c.id = r.kv_commit WHERE c.session = ?)",
                (session_id,),
            ).fetchone()[0]

    def num_bytes_written(self, session_id: str) -> int:
        """KV bytes ever written for this session."""
        with self._database.reading() as db:
            row = db.execute("SELECT kv_written FROM session WHERE id = ?", (session_id,)).fetchone()
        return row[0] if row else 0

    def _sweep(self) -> None:
        """Remove what crashes left behind, asking the database again under its lock before a chunk goes."""
        with self._database.reading() as db:
            stale = self._chunks.stale({row[0] for row in db.execute("SELECT digest FROM chunk")})
        if stale:
            with self._database.writing() as db:
                known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
                for path in stale:
                    if path.stem not in known:
                        with suppress(OSError):
                            self._chunks.files.remove(path)

    def _remove_unused(self) -> None:
        """Unlink under the database's write lock: a commit checks under the same lock that its chunks are there."""
        with self._database.writing() as db:
            unused = db.execute("SELECT digest FROM chunk WHERE digest NOT IN (SELECT chunk FROM kv_ref)").fetchall()
            for (digest,) in unused:
                with suppress(OSError):  # one that cannot be removed stays listed, for the next time
                    self._chunks.remove(digest)
                    db.execute("DELETE FROM chunk WHERE digest = ?", (digest,))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
