"""SessionStore: opens everything on disk, holds its locks, and keeps sessions and their KV rows consistent.

One object per process, used by the thread that opened it (the engine's). Another thread writes rows
(store/kv/writer.py); calls that need them wait for it. Sessions without KV are db/sessions.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mlxkv.arguments import flag, label, optional, path, public, whole
from mlxkv.cache.peers import Agree
from mlxkv.config import Folders, load_settings, private_folder
from mlxkv.errors import ConfigError, ReadOnlyError, StoreError
from mlxkv.events import Branch, Sibling
from mlxkv.protocol.status import ChatSummary
from mlxkv.store.db.backup import DailyBackup
from mlxkv.store.db.branches import siblings, tree
from mlxkv.store.db.database import Database, store_id
from mlxkv.store.db.file_hashes import RememberedHashes
from mlxkv.store.db.open import DATABASE, open_database, open_read_only
from mlxkv.store.db.read_only import full_disk_reason, read_only_reason
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.export.foreign.add import ForeignImport, import_foreign
from mlxkv.store.export.transfer import Imported, export_chat, import_chat
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.kv.commits import STATE, bytes_written, copy_commits, state_bytes, unsaved_bytes
from mlxkv.store.kv.disk_usage import KV, CacheFolder, CheckSize
from mlxkv.store.kv.gc import missing_bytes, remove_unused, sweep
from mlxkv.store.kv.protocols import KVCacheLike
from mlxkv.store.kv.quota import Quota
from mlxkv.store.kv.restorer import Restorer
from mlxkv.store.kv.saver import Saver
from mlxkv.store.kv.state_saves import Occasion
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
        self._writer = Writer(database.new_connection, lambda: kv_lock(locks), space.chunks, self._quota)
        self.progress = self._writer.progress
        self._saver = Saver(self.sessions, space.chunks, self._quota, self._writer)
        self._restorer = Restorer(self.sessions, space.chunks, self._saver.planner)
        self._daily = DailyBackup(database, space.chunks.files)
        self._open = ExitStack()

    @classmethod
    def open(
        cls, folders: Folders, before: Step = no_step, *, disk_limit: int | Literal["setting"] | None = "setting",
        files: Files | None = None, enforce: bool = True, when_full: Literal["raise", "read"] = "raise",
        backs_up: bool = True,
    ) -> SessionStore:  # fmt: skip
        """Open or create the store, or open it for reading if its folder cannot be written (`read_only`).

        `before` is called before each step on disk (tests crash there).
        `disk_limit`: bytes for everything in the cache folder, None for no limit but the disk; by default what the
        user has set. Opening enforces it, unless `enforce` is False because a chat will be resumed whose rows must
        stay (then call `enforce_limit`).
        `backs_up`: False for a store that holds nothing but what can be made again.
        `when_full`: "read" opens the store for reading on a full disk too; it then stays unsaved once there is space.

        Raises:
            StoreError: the database belongs to another program, has a newer format, or is lost.
            CorruptError: the database is damaged. ConfigError: a folder is not private.
        """
        if disk_limit == "setting":
            disk_limit = load_settings(folders).disk_limit_bytes
        files = files or Files(before)
        try:
            return cls._open_to_write(folders, files, disk_limit, enforce, backs_up)
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
    def _open_to_write(
        cls, folders: Folders, files: Files, disk_limit: int | None, enforce: bool, backs_up: bool
    ) -> SessionStore:
        data = private_folder(folders.data)
        try:
            private_folder(folders.cache / KV)
        except ConfigError as error:  # chats are saved anyway, and saving rows gives a notice
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
            if backs_up:
                store._daily.start_if_due()
            store._open = stack.pop_all()
        return store

    def close(self) -> None:
        """Wait for pending saves, and close the database."""
        self._writer.close()
        self._daily.wait()
        self._open.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def id(self) -> str | None:
        """Of this store among others; None if damage has taken it."""
        with self._database.reading() as db:
            return store_id(db)

    @property
    def read_only(self) -> str | None:
        """The reason why nothing can be saved, in one sentence; None if saving works."""
        return self._database.read_only

    def check_writable(self) -> None:
        """Raises ReadOnlyError if the store is open for reading only."""
        if self.read_only:
            raise ReadOnlyError(self.read_only)

    # -- sessions and turns ----------------------------------------------------------------------------

    def add_turn(self, session_id: str, turn: TurnRecord, *, head: str | None = None) -> str:
        """Append a turn and return the new head; on disk when this returns.

        `head` is the head that the turn continues, by default the one this store last saw (create, load, add, update).

        Raises:
            SessionChangedError: another process changed the session since. SessionNotFoundError: it was deleted.
        """
        self._daily.start_if_new_day()
        return self.sessions.add_turn(session_id, turn, head)

    def update_open_turn(
        self, session_id: str, turn: TurnRecord, *, head: str | None = None, reopen: bool = False
    ) -> str:
        """Replace the last turn, whose state is "open", by a longer or finished one. Returns the new head.

        `reopen`: it may be finished, if `turn` continues its ids; rows that were saved at it stay saved.

        Raises:
            SessionChangedError: see add_turn. StoreError: the last turn is not open.
        """
        self._saver.wait(session_id)  # its rows are saved under the head that is about to change
        return self.sessions.update_open_turn(session_id, turn, head, reopen)

    def replace_last(self, session_id: str, turn: TurnRecord) -> str:
        """Replace the last turn by another in one transaction. Returns the new head.

        Raises:
            SessionChangedError: see add_turn. SessionNotFoundError.
        """
        self._saver.wait(session_id)
        return self.sessions.replace_last(session_id, turn)

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
        """A whole session. Verifies its digest chain, unless that was done since this store locked it.

        Raises:
            SessionNotFoundError. CorruptError: names the turn that was changed.
        """
        return self.sessions.load(session_id, fresh=session_id not in self._held)

    def list(self) -> tuple[ChatSummary, ...]:
        """All chats, newest first; `kv_bytes` of each is its `disk_bytes` without files that are missing."""
        waiting, found = self._saver.pending_sessions(), self.sessions.list(self._saver.planner.saved_bytes)
        with self._database.reading() as db:
            gone = missing_bytes(db, self._chunks)
        sizes = ((c, self.disk_bytes(c.id) if c.id in waiting else c.kv_bytes - gone.get(c.id, 0)) for c in found)
        return tuple(c if size == c.kv_bytes else replace(c, kv_bytes=max(size, 0)) for c, size in sizes)

    @public(session_id=label)
    def tree(self, session_id: str) -> tuple[Branch, ...]:
        """All chats forked from the same root as this one: each before its forks."""
        with self._database.reading() as db:
            return tree(db, session_id)

    @public(session_id=label, first=whole)
    def siblings(self, session_id: str, first: int = 0) -> tuple[tuple[Sibling, ...], ...]:
        """The versions of each message of the chat, from number `first` on, in the order of creation."""
        with self._database.reading() as db:
            return siblings(db, session_id, first)

    @public(session_id=label, path=path, kv=flag)
    def export_chat(self, session_id: str, path: Path, *, kv: bool = True) -> int:
        """Write a session to a `.mlxkv` file, with its saved KV rows if `kv`; returns the file's size.

        Raises:
            SessionNotFoundError. CorruptError. StoreError: it cannot be written.
        """
        self.flush(session_id)
        return export_chat(self.sessions, self._chunks, session_id, path, kv)

    @public(path=path, trust_kv=flag, skip_known=flag)
    def import_chat(self, path: Path, *, trust_kv: bool = False, skip_known: bool = False) -> Imported:
        """Import a chat that `export_chat` or `mlxkv chats export --format json` wrote: turns and token ids.

        `trust_kv` imports its rows too, if there are any, and marks the session permanently: the author of the file
        controls what the model takes for its context. `skip_known` imports nothing if the session that was exported, or
        imported from such a file before, still has all of the messages.

        Raises:
            CorruptError: the file breaks a rule; nothing was imported. StoreError.
        """
        return import_chat(self.sessions, self._writer, path, trust_kv, skip_known)

    @public(path=path)
    def import_foreign(self, path: Path) -> ForeignImport | None:
        """Import the chats in an export of ChatGPT, Claude or LM Studio: all of them, or none if the export breaks a
        rule. None if `path` is no such export, but may be one of mlxkv's own.

        Raises:
            CorruptError: the export breaks a rule. StoreError.
        """
        self.check_writable()
        return import_foreign(self.sessions, path)

    @public(session_id=label, num_turns=optional(whole), like=optional(label), is_version=flag, new_id=optional(label))
    def fork(
        self, session_id: str, num_turns: int | None = None, *, like: str | None = None, is_version: bool = False,
        new_id: str | None = None,
    ) -> str:  # fmt: skip
        """Create a session with the first `num_turns` turns (None: all) and their saved rows; writes no KV bytes.

        `is_version`: it is no chat of its own, but a version of this one's. `like`: a fork that it replaces, which
        decides that instead, and its title. `new_id`: its id, if another store made it.

        Raises:
            SessionNotFoundError. StoreError: it has fewer turns.
        """
        self._saver.wait(session_id)
        with self._database.writing() as db:
            new_id, history = self.sessions.fork(db, session_id, num_turns, like, is_version, new_id)
            copy_commits(db, session_id, new_id, history)
        self.sessions.known_heads[new_id] = history.head
        return new_id

    @public(session_id=label)
    def delete(self, session_id: str) -> None:
        """Delete a session, and the chunks that no other session uses.

        Raises:
            SessionNotFoundError. SessionLockedError: it is open in another process.
        """
        with self.lock(session_id) if session_id not in self._held else nullcontext():
            self._writer.wait()
            with self._database.writing() as db:
                self.sessions.delete(db, session_id)
            with kv_lock(self._locks, wait=False) as is_locked:
                if is_locked:  # else the process that holds the lock removes them when it is done
                    remove_unused(self._database, self._chunks)
            self._chunks.empty_quarantine()
            with suppress(OSError):
                self._chunks.files.remove(lock_path(self._locks, session_id))

    def delete_chat(self, session_id: str) -> tuple[str, ...]:
        """Delete the chat that a session is listed as, with all its versions; returns their ids.

        Raises:
            SessionNotFoundError. SessionLockedError: one is open in another process; nothing is deleted.
        """
        ids = self.sessions.chat_ids(session_id)
        with ExitStack() as stack:
            for id in ids:
                if id not in self._held:
                    stack.enter_context(self.lock(id))
            for id in ids:
                self.delete(id)
        return ids

    @contextmanager
    def lock(self, session_id: str) -> Iterator[None]:
        """Lock the session; the kernel releases it however the process ends. Exiting waits until its rows are saved.

        Raises:
            SessionLockedError: names the process that has it open. ReadOnlyError.
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
                self._saver.planner.forget(session_id)

    def is_open(self, session_id: str) -> bool:
        """Whether any process, this one included, has locked the session."""
        return is_held(self._locks, session_id)

    # -- KV --------------------------------------------------------------------------------------------

    def save_kv(
        self,
        session_id: str,
        cache: KVCacheLike,
        model: ModelIdentity,
        rng: bytes | None = None,
        occasion: Occasion = Occasion.TURN,
        resume_at: Callable[[], int] | None = None,
    ) -> KVCommit:
        """Save the rows that are new since the last commit of this history, and the sampler's state.

        Returns as soon as the cache may change: another thread writes the rows. `notice` also reports a failure of the
        previous save, whose rows are saved again with this one.

        Args:
            occasion: decides with `resume_at` which recurrent states are written; see `choose_states`.

        Raises:
            StoreError: the turns (not the rows) cannot be read.
        """
        return self._saver.save(session_id, cache, model, rng, occasion, resume_at)

    def commit_kv(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None = None
    ) -> KVCommit:
        """`save_kv` as when closing, and wait until the rows are on disk.

        Raises:
            SessionChangedError: the history has changed. StoreError: a write failed; nothing was left behind, and the
            next call tries again.
        """
        return self._saver.save_and_wait(session_id, cache, model, rng)

    @public(session_id=label)
    def flush(self, session_id: str) -> str | None:
        """Wait until the session's rows are on disk; returns one sentence if that failed, once per failure."""
        return self._saver.flush(session_id)

    def restore_kv(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int = 0,
        agree: Agree | None = None,
    ) -> Restored:  # fmt: skip
        """Restore the longest saved prefix of `ids`, of this session or of another with the same prefix, unless
        continuing from the `held` tokens of the cache, or prefilling everything, is faster than this disk.

        Rows that are missing, damaged, or of another model or cache layout cost tokens and give a notice; damaged files
        are moved to the folder `quarantine`. `optional` rows are loaded if they exist. The cache is unchanged if
        `tokens` of the result is 0 and nothing was damaged or slow.

        Args:
            agree: asks the other processes, whose rank 0 has said what to restore; see `cache/peers.py`.

        Raises:
            SessionNotFoundError. CorruptError: the turns (not the rows) are damaged.
        """
        self._saver.wait(session_id)
        return self._restorer.restore(session_id, cache, model, ids, held, agree)

    def borrow_kv(
        self, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int = 0, agree: Agree | None = None
    ) -> Restored:
        """`restore_kv` for an unsaved chat, from saved chats with the same prefix. Writes nothing: records no use, and
        leaves damaged chunks in place."""
        return self._restorer.restore(None, cache, model, ids, held, agree)

    def set_prefill_speed(self, model: ModelIdentity, tokens_per_second: float) -> None:
        """Set the measured prefill speed of a model; `restore_kv` gives up if it would take longer."""
        self._restorer.prefill_tps[model.model_id] = tokens_per_second

    @public(session_id=label)
    def disk_bytes(self, session_id: str) -> int:
        """Bytes of all chunk files that a session refers to, including shared ones and those not yet written. Lists of
        chats show this."""
        waiting = self._saver.pending_sizes(session_id)
        with self._database.reading() as db:
            return self._saver.planner.saved_bytes(db, session_id) + unsaved_bytes(db, session_id, waiting)

    @public(session_id=optional(label))
    def state_bytes(self, session_id: str | None = None) -> int:
        """Bytes of the recurrent states among the `disk_bytes` of a session; without one of all sessions, each counted
        once."""
        sessions = self._saver.pending_sessions() if session_id is None else [session_id]
        waiting = {d: size for s in sessions for d, size in self._saver.pending_sizes(s, STATE).items()}
        with self._database.reading() as db:
            return state_bytes(db, session_id, waiting)

    def num_bytes_written(self, session_id: str | None = None) -> int:
        """KV bytes ever written for this session; without one by this store, for deleted sessions too."""
        with self._database.reading() as db:
            return bytes_written(db, session_id)

    def enforce_limit(self, spare: Collection[str] = ()) -> None:
        """Remove rows until the disk limit holds; it may have been lowered. Open sessions keep the rows they need, and
        so do those in `spare`, which will be opened next. Errors are left to the calls that need the folders."""
        with suppress(StoreError), kv_lock(self._locks, wait=False) as is_locked:
            if is_locked:  # else the process that holds the lock enforces it
                self._quota.enforce(self._database, spare)

    def collect(self) -> int:
        """Remove unused chunks, files that were set aside or left by a crash, and rows beyond the disk limit; returns
        the bytes freed. Does nothing while another process holds the KV lock."""
        self.check_writable()
        self._writer.wait()
        before = self.disk_usage()
        with kv_lock(self._locks, wait=False) as is_locked:
            if is_locked:
                remove_unused(self._database, self._chunks)
                sweep(self._database, self.space)
                self._chunks.empty_quarantine()
                self._quota.enforce(self._database)
        return max(before - self.disk_usage(), 0)

    def disk_usage(self, quick: bool = False) -> int:
        """Bytes on disk of chats' rows and named prompt caches with their folders, as `du` counts them: the value that
        `disk_limit` limits. Includes rows not yet written. `quick` lists only folders changed since the last call."""
        waiting = {
            d: size
            for session in self._saver.pending_sessions()
            for d, size in self._saver.pending_sizes(session).items()
        }
        used = self.space.used_quickly() if quick else self.space.used()
        return used + self.space.growth(waiting)

    @contextmanager
    def saving_named(self, path: Path) -> Iterator[CheckSize]:
        """Context in which to write a prompt cache at `path`: yields a function to call with the file's size first.

        In the folder of the named prompt caches the disk limit applies: rows of chats are removed if needed. The
        function raises StoreError if the file cannot fit; nothing was removed then.
        """
        if not self.space.holds(path):
            yield lambda size: None
            return
        self.check_writable()
        self._writer.wait()
        with kv_lock(self._locks):
            yield lambda size: self._quota.free_space_for_named(self._database, path.stem, size)

    def check_named(self, path: Path, size: int) -> None:
        """Raises StoreError if a prompt cache of at least `size` bytes cannot be saved at `path`."""
        if self.space.holds(path):
            self._quota.check_named(self._database, path.stem, size)

    def verify(self, repair: bool = False, *, quick: bool = False) -> VerifyReport:
        """Check everything: the database, every session's digest chain, every chunk's bytes, orphaned files.

        `quick` checks that the chunk files exist in the right size, without reading them. `repair` sets damaged chunks
        aside with all references to them, rebuilds the search index and removes orphaned files. Damaged turns stay:
        only a backup can restore them.
        """
        if self.read_only and not repair:
            return verify(self._database, self.sessions, self.space, False, False, quick)
        self.check_writable()
        self._writer.wait()
        with kv_lock(self._locks, wait=False) as is_locked:
            return verify(self._database, self.sessions, self.space, repair, is_locked, quick)
