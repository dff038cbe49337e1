"""SessionStore: the door to everything on disk. Opens the two folders, and hands each call to the part that owns it.

One object per process, used by the thread that opened it (the engine's). Rows reach the disk on a thread of their own
(store/kv/writer.py); what is asked for next waits for them where it has to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mlxkv.arguments import flag, label, optional, path, public, whole
from mlxkv.config import Folders, load_settings, private_folder
from mlxkv.errors import ConfigError, ReadOnlyError, StoreError
from mlxkv.events import Branch, Sibling
from mlxkv.protocol.status import ChatSummary
from mlxkv.store.db.backup import DailyBackup
from mlxkv.store.db.branches import siblings, tree
from mlxkv.store.db.database import Database
from mlxkv.store.db.file_hashes import RememberedHashes
from mlxkv.store.db.open import DATABASE, open_database, open_read_only
from mlxkv.store.db.read_only import full_disk_reason, read_only_reason
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.export.transfer import Imported, export_chat, import_chat
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.kv.commits import bytes_written, copy_commits, unsaved_bytes
from mlxkv.store.kv.disk_usage import KV, CacheFolder, CheckSize
from mlxkv.store.kv.gc import missing_bytes, remove_unused, sweep
from mlxkv.store.kv.protocols import KVCacheLike
from mlxkv.store.kv.quota import Quota
from mlxkv.store.kv.restorer import Restorer
from mlxkv.store.kv.saver import Saver
from mlxkv.store.kv.writer import Writer
from mlxkv.store.locks import is_held, kv_lock, lock_path, locked, open_sessions, store_lock
from mlxkv.store.records import KVCommit, Restored, SessionRecord, TurnRecord
from mlxkv.store.verify import VerifyReport, verify


class SessionStore:
    """Sessions with their KV cache. Every method may raise StoreError; each says what else.

    Attributes:
        sessions: creates, finds, searches and renames sessions; knows no KV.
        space: what the cache folder holds.
        progress: `progress.tell` is called with bytes done and in all while rows are written, on the writing thread.
    """

    def __init__(self, database: Database, space: CacheFolder, locks: Path, disk_limit: int | None) -> None:
        self.sessions, self.space = Sessions(database), space
        self.file_hashes = RememberedHashes(database)
        self.disk_limit = disk_limit
        self._database, self._chunks, self._locks = database, space.chunks, locks
        self._held: set[str] = set()
        self._quota = Quota(disk_limit, space, lambda: open_sessions(locks))
        self._writer = Writer(database.again, lambda: kv_lock(locks), space.chunks, self._quota)
        self.progress = self._writer.progress
        self._saver = Saver(self.sessions, space.chunks, self._quota, self._writer)
        self._restorer = Restorer(self.sessions, space.chunks, self._saver.committer)
        self._daily = DailyBackup(database, space.chunks.files)
        self._open = ExitStack()

    @classmethod
    def open(
        cls, folders: Folders, before: Step = no_step, *, disk_limit: int | Literal["setting"] | None = "setting",
        files: Files | None = None, enforce: bool = True, when_full: Literal["raise", "read"] = "raise",
    ) -> SessionStore:  # fmt: skip
        """Open or make the store, or only read it where nothing can be written (`read_only`).

        `before` is called before each step on disk (tests crash there).
        `disk_limit`: bytes for everything in the cache folder, None for no limit but the disk; by default what the
        user has set. Whoever opens the store goes by it: opening already makes room, unless `enforce` is False, for
        whoever is about to resume a chat whose rows must not go (`enforce_limit`).
        `when_full`: on a full disk too the chats can be read, but what stays open so is not saved once there is room.

        Raises:
            StoreError: another program's or a newer format, or the database is gone though there was one.
            CorruptError: the database is damaged. ConfigError: a folder is not private.
        """
        if disk_limit == "setting":
            disk_limit = load_settings(folders).disk_limit_bytes
        files = files or Files(before)
        try:
            return cls._open_to_write(folders, files, disk_limit, enforce)
        except (ConfigError, StoreError) as error:
            why = read_only_reason(error, folders.data)
            if why is None and when_full == "read":
                why = full_disk_reason(error, folders.data / DATABASE)
            if why is None:
                raise
        database = open_read_only(folders.data, why)
        store = cls(database, CacheFolder.at(folders.cache, files), folders.data / "locks", disk_limit)
        store._open.callback(database.close)
        return store

    @classmethod
    def _open_to_write(cls, folders: Folders, files: Files, disk_limit: int | None, enforce: bool) -> SessionStore:
        data = private_folder(folders.data)
        try:
            private_folder(folders.cache / KV)
        except ConfigError as error:  # chats are saved all the same, and of their rows it is said that they are not
            if read_only_reason(error, folders.cache) is None:
                raise
        locks = private_folder(data / "locks")
        with ExitStack() as stack:
            lock = stack.enter_context(store_lock(locks))
            database = open_database(data, files, lock)
            stack.callback(database.close)
            store = cls(database, CacheFolder.at(folders.cache, files), locks, disk_limit)
            sweep(database, store.space)
            if enforce:
                store.enforce_limit()
            store._daily.start_if_due()
            store._open = stack.pop_all()
        return store

    def close(self) -> None:
        """Wait for what is being saved, and let go of the database."""
        self._writer.close()
        self._daily.wait()
        self._open.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def read_only(self) -> str | None:
        """Why nothing can be saved, in one sentence; None where it can."""
        return self._database.read_only

    def check_writable(self) -> None:
        """Raises ReadOnlyError: see `read_only`."""
        if self.read_only:
            raise ReadOnlyError(self.read_only)

    # -- sessions and turns ----------------------------------------------------------------------------

    def add_turn(self, session_id: str, turn: TurnRecord, *, head: str | None = None) -> str:
        """Append a turn and return the new head; on disk when this returns.

        `head` is the head the turn was made from, by default the one this store last saw (create, load, add, update).

        Raises:
            SessionChangedError: somebody else changed the session since. SessionNotFoundError: it was deleted.
        """
        self._daily.start_if_new_day()
        return self.sessions.add_turn(session_id, turn, head)

    def update_open_turn(
        self, session_id: str, turn: TurnRecord, *, head: str | None = None, reopen: bool = False
    ) -> str:
        """Replace the last turn, whose state is "open", by a longer or finished one. Returns the new head.

        `reopen`: it may be finished, if `turn` goes on from its ids; rows that were saved at it stay saved.

        Raises:
            SessionChangedError: see add_turn. StoreError: the last turn is not open.
        """
        self._saver.wait(session_id)  # its rows are saved under the head that is about to change
        return self.sessions.update_open_turn(session_id, turn, head, reopen)

    @public(session_id=label, num_kept=whole)
    def remove_last(self, session_id: str, num_kept: int) -> None:
        """Remove all turns but the first `num_kept`, as if they had never been added; forks of them stay.

        Raises:
            SessionChangedError: see add_turn. SessionNotFoundError.
        """
        self._saver.wait(session_id)
        self.sessions.remove_last(session_id, num_kept)

    @public(session_id=label)
    def load(self, session_id: str) -> SessionRecord:
        """Everything about a session, its digest chain verified: here, or since this store holds its lock.

        Raises:
            SessionNotFoundError. CorruptError: names the turn that is not what was written.
        """
        return self.sessions.load(session_id, fresh=session_id not in self._held)

    def list(self) -> tuple[ChatSummary, ...]:
        """Newest first; `kv_bytes` is what `disk_bytes` says of each, without files that somebody has removed."""
        waiting, found = self._saver.sessions_waiting(), self.sessions.list(self._saver.committer.saved_bytes)
        with self._database.reading() as db:
            gone = missing_bytes(db, self._chunks)
        sizes = ((c, self.disk_bytes(c.id) if c.id in waiting else c.kv_bytes - gone.get(c.id, 0)) for c in found)
        return tuple(c if size == c.kv_bytes else replace(c, kv_bytes=max(size, 0)) for c, size in sizes)

    @public(session_id=label)
    def tree(self, session_id: str) -> tuple[Branch, ...]:
        """The chat, what it was forked from and what was forked from it: each before its forks."""
        with self._database.reading() as db:
            return tree(db, session_id)

    @public(session_id=label, first=whole)
    def siblings(self, session_id: str, first: int = 0) -> tuple[tuple[Sibling, ...], ...]:
        """For each message of the chat, from number `first` on, its versions in the order they were made, this chat's
        own among them."""
        with self._database.reading() as db:
            return siblings(db, session_id, first)

    @public(session_id=label, path=path, kv=flag)
    def export_chat(self, session_id: str, path: Path, *, kv: bool = True) -> int:
        """Write a `.mlxkv` file of a session, with its saved rows (`kv`); the bytes.

        Raises:
            SessionNotFoundError. CorruptError. StoreError: it cannot be written.
        """
        self.flush(session_id)
        return export_chat(self.sessions, self._chunks, session_id, path, kv)

    @public(path=path, trust_kv=flag)
    def import_chat(self, path: Path, *, trust_kv: bool = False) -> Imported:
        """Take in a chat that `export_chat`, or `mlxkv chats export --format json`, wrote: turns and ids.

        `trust_kv` takes its rows too, where there are any, and marks the session for good: whoever made the file
        decides what the model believes to have read.

        Raises:
            CorruptError: the file breaks a rule; nothing was imported. StoreError.
        """
        return import_chat(self.sessions, self._writer, path, trust_kv)

    @public(session_id=label, num_turns=optional(whole))
    def fork(self, session_id: str, num_turns: int | None = None) -> str:
        """A new session with the first `num_turns` turns (None: all) and every saved row that lies on them; no KV bytes
        are written.

        Raises:
            SessionNotFoundError. StoreError: it has fewer turns.
        """
        self._saver.wait(session_id)
        with self._database.writing() as db:
            new_id, history = self.sessions.fork(db, session_id, num_turns)
            copy_commits(db, session_id, new_id, history)
        self.sessions.seen[new_id] = history.head
        return new_id

    @public(session_id=label)
    def delete(self, session_id: str) -> None:
        """Remove its rows, then the chunks that nothing else uses.

        Raises:
            SessionNotFoundError. SessionLockedError: it is open in another process.
        """
        with self.lock(session_id) if session_id not in self._held else nullcontext():
            self._writer.wait()
            with self._database.writing() as db:
                self.sessions.delete(db, session_id)
            with kv_lock(self._locks, wait=False) as alone:
                if alone:  # else who holds it does it when done
                    remove_unused(self._database, self._chunks)
            self._chunks.empty_quarantine()
            with suppress(OSError):
                self._chunks.files.remove(lock_path(self._locks, session_id))

    @contextmanager
    def lock(self, session_id: str) -> Iterator[None]:
        """Hold the session; the kernel lets go when the process ends, however it ends. Leaving waits for its rows.

        Raises:
            SessionLockedError: names the process that holds it. ReadOnlyError.
        """
        self.check_writable()
        with locked(self._locks, session_id):
            self._held.add(session_id)
            try:
                yield
            finally:
                self._saver.wait(session_id)
                self._held.discard(session_id)
                self.sessions.forget(session_id)
                self._saver.forget(session_id)

    def is_open(self, session_id: str) -> bool:
        """Whether some process, this one included, holds the session."""
        return is_held(self._locks, session_id)

    # -- KV --------------------------------------------------------------------------------------------

    def save_kv(self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None = None) -> KVCommit:
        """Hand over the rows that are new since the last commit on this history, and the sampler's state.

        Returns once the cache may go on: the rows are written by another thread. `notice` also says what became of the
        save before this one, if that failed; its rows are tried again with this one.

        Raises:
            StoreError: the turns (not the rows) cannot be read.
        """
        return self._saver.save(session_id, cache, model, rng)

    def commit_kv(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None = None
    ) -> KVCommit:
        """`save_kv`, and wait until it is on disk.

        Raises:
            SessionChangedError: the history is another one now. StoreError: a write failed; nothing was left behind and
            the next call tries again.
        """
        return self._saver.save_and_wait(session_id, cache, model, rng)

    @public(session_id=label)
    def flush(self, session_id: str) -> str | None:
        """Wait for the session's rows to be on disk; one sentence if that failed, told once."""
        return self._saver.flush(session_id)

    def restore_kv(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int = 0
    ) -> Restored:
        """Fill the cache with the longest saved prefix of `ids`, of this session or of another that began alike, unless
        continuing from the `held` tokens that it has, or prefilling all, is faster than this disk.

        Missing or damaged rows, or ones of another model or cache layout, cost tokens and give a notice; damaged files
        are moved to the folder `quarantine`. `optional` rows are loaded where they are at hand. The cache is left as it
        is where `tokens` of the answer is 0 and nothing was damaged or slow.

        Raises:
            SessionNotFoundError. CorruptError: the turns (not the rows) are damaged.
        """
        self._saver.wait(session_id)
        return self._restorer.restore(session_id, cache, model, ids, held)

    def borrow_kv(self, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int = 0) -> Restored:
        """`restore_kv` for what is saved nowhere: rows of chats that began alike. Nothing is written, no matter what is
        found: not that they were used, or that one is damaged (it is passed over)."""
        return self._restorer.restore(None, cache, model, ids, held)

    def measured_prefill(self, model: ModelIdentity, tokens_per_second: float) -> None:
        """Take note of the speed of a prefill of this model; `restore_kv` gives up where it would take longer."""
        self._restorer.prefill_tps[model.model_id] = tokens_per_second

    @public(session_id=label)
    def disk_bytes(self, session_id: str) -> int:
        """A chat's KV on disk: bytes of the files of the chunks that the session refers to, shared ones and those on
        their way to the disk included. What stands beside a chat wherever one is listed."""
        waiting = self._saver.waiting(session_id)
        with self._database.reading() as db:
            return self._saver.committer.saved_bytes(db, session_id) + unsaved_bytes(db, session_id, waiting)

    def num_bytes_written(self, session_id: str | None = None) -> int:
        """KV bytes ever written for this session, or by this store, chats that were deleted included."""
        with self._database.reading() as db:
            return bytes_written(db, session_id)

    def enforce_limit(self, spare: Collection[str] = ()) -> None:
        """Go under the disk limit, which may have been lowered. Open sessions keep what they need, and so do those in
        `spare`: they are about to be opened. What is wrong with the folders is told by whoever needs them."""
        with suppress(StoreError), kv_lock(self._locks, wait=False) as alone:
            if alone:  # else who holds it makes room
                self._quota.enforce(self._database, spare)

    def collect(self) -> int:
        """Remove what nothing uses: rows that no chat refers to, what was set aside or left by a crash, and rows beyond
        the disk limit; the bytes that frees. Of two processes one does it."""
        self.check_writable()
        self._writer.wait()
        before = self.disk_usage()
        with kv_lock(self._locks, wait=False) as alone:
            if alone:
                remove_unused(self._database, self._chunks)
                sweep(self._database, self.space)
                self._chunks.empty_quarantine()
                self._quota.enforce(self._database)
        return max(before - self.disk_usage(), 0)

    def disk_usage(self, quick: bool = False) -> int:
        """KV on disk in all: bytes that rows of chats and named prompt caches take there with their folders, as `du`
        counts: what `disk_limit` holds for. Rows on their way to the disk are included. `quick` goes only through
        folders that have changed since it was last asked."""
        waiting = {
            d: size for session in self._saver.sessions_waiting() for d, size in self._saver.waiting(session).items()
        }
        used = self.space.used_quickly() if quick else self.space.used()
        return used + self.space.growth(waiting)

    @contextmanager
    def saving_named(self, path: Path) -> Iterator[CheckSize]:
        """Context in which to write a prompt cache at `path`: yields a function to call with the file's size first.

        In the folder of the named prompt caches the disk limit holds: rows of chats are removed where needed. The
        function raises StoreError where the file cannot fit; nothing was removed then.
        """
        if not self.space.holds(path):
            yield lambda size: None
            return
        self.check_writable()
        self._writer.wait()
        with kv_lock(self._locks):
            yield lambda size: self._quota.free_space_for_named(self._database, path.stem, size)

    def check_named(self, path: Path, size: int) -> None:
        """Raises StoreError where a prompt cache of at least `size` bytes cannot be saved at `path`."""
        if self.space.holds(path):
            self._quota.check_named(self._database, path.stem, size)

    def verify(self, repair: bool = False, *, quick: bool = False) -> VerifyReport:
        """Check everything: the database, every chat's chain, every chunk's bytes, what lies about.

        `quick` looks whether the chunks are there in their size instead of reading them all.
        `repair` sets damaged chunks aside, drops what refers to them, makes the search index again and removes
        leftovers. Damaged turns stay as they are: only a backup has them.
        """
        if self.read_only and not repair:
            return verify(self._database, self.sessions, self.space, False, False, quick)
        self.check_writable()
        self._writer.wait()
        with kv_lock(self._locks, wait=False) as alone:
            return verify(self._database, self.sessions, self.space, repair, alone, quick)
