"""Write saves to disk: chunk files first, then the commit that refers to them, in one transaction.

Owns the thread that writes rows, so that fsync never delays a reply. A crash leaves files without a reference, never a
reference without a file. The thread starts with the first save and ends a moment after the last, so that a program that
forgets to close the store still ends. The engine thread submits bytes, of which at most `MAX_WAITING` wait; it gets
errors from the finished job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress

from mlxkv.errors import SessionChangedError, StoreError
from mlxkv.store.db.database import Database
from mlxkv.store.db.history import to_json
from mlxkv.store.db.sessions import save_model
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import EncodedChunk
from mlxkv.store.kv.commits import STATE, count_written, remove_chunks, remove_old_states, save_commit, save_spec
from mlxkv.store.kv.gc import has_unused, remove_if_unused, remove_unused
from mlxkv.store.kv.quota import Quota
from mlxkv.store.kv.save_plan import Plan

ATTEMPTS = 3  # another program may remove a chunk before the commit refers to it
MAX_WAITING = 64 << 20  # bytes submitted and not written yet; above that the engine thread waits
KEEP_ALIVE = 1.0  # seconds that the thread and its connection wait for another save
REPORT_AFTER = 0.3  # seconds; a shorter save is not reported
REPORT_EVERY = 1.0  # seconds between two reports
_log = logging.getLogger("mlxkv.store")


class ChunkVanishedError(StoreError):
    """Another program removes files from the KV folder."""


class Progress:
    """Progress of a long save: calls `tell` (set from any thread) with bytes done and in total, equal at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell: Callable[[int, int], None] | None = None
        self._clock = clock
        self._done = self._total = 0
        self._due = 0.0
        self._has_reported = False

    def begin(self, total: int) -> None:
        self._done, self._total, self._has_reported = 0, max(1, total), False
        self._due = self._clock() + REPORT_AFTER

    def add(self, size: int) -> None:
        """Count bytes that need no more writing."""
        self._done += size
        if self._clock() >= self._due and self.tell is not None:
            self._due, self._has_reported = self._clock() + REPORT_EVERY, True
            self.tell(min(self._done, self._total - 1), self._total)

    def end(self) -> None:
        """Report the end of a save, done or failed."""
        if self._has_reported and self.tell is not None:
            self.tell(self._total, self._total)


class Job:
    """One submitted save of about `total` bytes. The writer's condition guards its fields."""

    def __init__(self, plan: Plan, total: int = 0) -> None:
        self.plan, self.total = plan, total
        self.chunks: deque[EncodedChunk] = deque()
        self.is_complete = self.is_done = False
        self.error: BaseException | None = None
        self.bytes_written = 0

    @property
    def failure(self) -> StoreError | None:
        """The error as a StoreError, for the user."""
        if self.error is None or isinstance(self.error, StoreError):
            return self.error
        return StoreError(f"The KV cache could not be saved ({type(self.error).__name__}: {self.error}).")


class Writer:
    """Writes saves in the order they were submitted.

    Args:
        connect: opens a database connection for the calling thread.
        lock: takes the KV lock, which makes it the only writer of the KV folder in all processes.
    """

    def __init__(
        self, connect: Callable[[], Database], lock: Callable[[], AbstractContextManager[bool]], chunks: ChunkFiles,
        quota: Quota,
    ) -> None:  # fmt: skip
        self._connect, self._lock, self._chunks, self._quota = connect, lock, chunks, quota
        self.progress = Progress()
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._is_running = self._is_closing = False
        self._is_first = True  # save of this process: a crash may have left chunks
        self._thread: threading.Thread | None = None

    # -- the engine thread -------------------------------------------------------------------------------------------

    def submit(self, plan: Plan, chunks: Iterable[EncodedChunk], total: int = 0) -> Job:
        """Submit a save; returns once all its bytes are written or wait in memory.

        An exception of `chunks` cancels the save and is raised here.
        """
        job = Job(plan, total)
        with self._changed:
            self._jobs.append(job)
            if not self._is_running:
                self._is_running = True
                self._thread = threading.Thread(target=self._run, name="mlxkv-writer")
                self._thread.start()
            self._changed.notify_all()
        try:
            for chunk in chunks:
                with self._changed:
                    self._changed.wait_for(lambda: job.is_done or sum(c.size for c in job.chunks) < MAX_WAITING)
                    if job.is_done:  # it failed
                        break
                    job.chunks.append(chunk)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                job.error = error
                self._changed.notify_all()
            self.wait(job)
            raise
        with self._changed:
            job.is_complete = True
            self._changed.notify_all()
        return job

    def wait(self, job: Job | None = None) -> None:
        """Wait until this save, or every one, is on disk or has failed."""
        with self._changed:
            self._changed.wait_for(lambda: job.is_done if job else not self._jobs)

    def close(self) -> None:
        """Finish the waiting saves and close the database connection."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._is_closing = False

    # -- the writer thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        database: Database | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closing, KEEP_ALIVE)
                if not self._jobs:
                    self._is_running = False  # under the lock: a save submitted from now on starts a new thread
                    break
                job = self._jobs[0]
            error: BaseException | None = None
            self.progress.begin(job.total)
            try:
                with self._lock():
                    database = database or self._connect()
                    self._save(job, database)
            except BaseException as caught:
                error = caught
                if database is not None:
                    database.close()  # it may be the cause: the next save opens another
                    database = None
                if not isinstance(caught, StoreError | OSError) and caught is not job.error:
                    _log.exception("saving a KV cache failed")
            with self._changed:
                job.error, job.is_done = error, True
                job.chunks.clear()
                self._jobs.popleft()
                self._changed.notify_all()
            self.progress.end()
        if database is not None:
            database.close()

    def _save(self, job: Job, database: Database) -> None:
        new: list[EncodedChunk] = []
        try:
            try:
                while (chunk := self._next(job)) is not None:
                    if not self._chunks.has(chunk.digest, chunk.size):
                        self._quota.free_space(database, chunk.size, job.plan, [c.digest for c in new])
                    job.bytes_written += self._chunks.put(chunk)
                    new.append(EncodedChunk(chunk.head, b"", chunk.digest, chunk.size))
                    self.progress.add(chunk.size)
            except OSError as error:
                raise StoreError(
                    f"The KV cache could not be written to {self._chunks.root} ({error.strerror}); the chat itself is "
                    "saved, only resuming it will take longer."
                ) from error
            write_commit(database, self._chunks, job.plan, new, job.bytes_written)
        except BaseException:
            with suppress(OSError, StoreError):
                remove_unused(database, self._chunks, [chunk.digest for chunk in new])
                with database.writing() as db:
                    count_written(db, job.plan.session_id, job.bytes_written)
            raise
        with suppress(OSError, StoreError):  # the next save removes the rest
            if states := [chunk.digest for chunk in new if chunk.head.group == STATE]:
                plan, known = job.plan, job.plan.states
                among = None if known is None else {*known, *states}
                with database.writing() as db:
                    old = remove_old_states(db, plan.session_id, plan.kept_states, among)
                remove_if_unused(database, self._chunks, old)
            if has_unused(database, thorough=self._is_first):  # rows of a chat that was deleted meanwhile
                remove_unused(database, self._chunks)
            self._is_first = False

    def _next(self, job: Job) -> EncodedChunk | None:
        """The next chunk to write, None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: job.error or job.chunks or job.is_complete)
            if job.error:
                raise job.error
            chunk = job.chunks.popleft() if job.chunks else None
            self._changed.notify_all()
            return chunk


def write_commit(database: Database, chunks: ChunkFiles, plan: Plan, new: list[EncodedChunk], written: int) -> None:
    """Insert the commit; from then on the rows can be restored.

    Raises:
        SessionChangedError: the history that the rows were computed from is no longer the session's.
        StoreError: a chunk file has vanished since it was written.
    """
    with database.writing() as db:
        heads = db.execute(  # newest first: a turn or two may have been added since
            "SELECT head FROM session WHERE id = ?1 UNION ALL SELECT * FROM"
            " (SELECT digest FROM turn WHERE session = ?1 ORDER BY i DESC)",
            (plan.session_id,),
        )
        if not any(head == plan.turn for (head,) in heads):
            raise SessionChangedError(
                f"Session {plan.session_id:.10} was changed or deleted while its KV cache was saved; open it again."
            )
        for chunk in plan.missing:
            if not chunks.has(chunk.digest, chunk.size):
                remove_chunks(db, [chunk.digest])
        if not all(chunks.has(chunk.digest, chunk.size) for chunk in new):
            raise ChunkVanishedError(f"The KV folder {chunks.root} loses files; check which program deletes them.")
        save_spec(db, plan.spec_id, dict(plan.spec))
        save_commit(
            db, plan.session_id, plan.pos, plan.turn, save_model(db, plan.model), plan.spec_id, plan.rng, new,
            plan.prefixes,
        )  # fmt: skip
        db.execute(
            "UPDATE session SET spec_id = ?, needed = ? WHERE id = ?",
            (plan.spec_id, to_json(plan.needed), plan.session_id),
        )
        count_written(db, plan.session_id, written)
