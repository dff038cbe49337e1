"""Save the KV rows of sessions: cut a save to the disk limit, submit it to the writer, report an error once.

Owns the newest save of each session; save_plan.py finds the new rows, writer.py writes them. Engine thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace

from mlxkv.stats import bytes_text
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import EncodedChunk
from mlxkv.store.kv.commits import STATE
from mlxkv.store.kv.protocols import KVCacheLike, RecurrentStates
from mlxkv.store.kv.quota import Quota
from mlxkv.store.kv.save_plan import Plan, SavePlanner, encode_chunks
from mlxkv.store.kv.state_saves import Occasion
from mlxkv.store.kv.writer import ATTEMPTS, ChunkVanishedError, Job, Writer
from mlxkv.store.records import KVCommit


class Saver:
    """The saves of one store. Arguments and errors are those of SessionStore's methods."""

    def __init__(self, sessions: Sessions, chunks: ChunkFiles, quota: Quota, writer: Writer) -> None:
        self._sessions, self._chunks, self._quota, self._writer = sessions, chunks, quota, writer
        self.planner = SavePlanner(sessions, chunks)
        self._newest: dict[str, tuple[Job, Mapping[str, tuple[str, int]]]] = {}  # with groups and sizes by digest
        self._last_notices: dict[str, str] = {}  # of a session, not to be repeated

    def save(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, occasion: Occasion,
        resume_at: Callable[[], int] | None,
    ) -> KVCommit:  # fmt: skip
        """Return once the cache may change; see SessionStore.save_kv."""
        failed = self.flush(session_id)
        _, commit = self._submit(session_id, cache, model, rng, occasion, resume_at)
        return replace(commit, notice=commit.notice or failed)

    def save_and_wait(self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None) -> KVCommit:
        """Return once it is on disk; see SessionStore.commit_kv."""
        self.flush(session_id)
        written = attempt = 0
        while True:
            attempt += 1
            job, commit = self._submit(session_id, cache, model, rng, Occasion.CLOSING, None)
            if job is None:
                return commit
            self._writer.wait(job)
            written += job.bytes_written
            del self._newest[session_id]
            if job.error is None:
                return replace(commit, bytes_written=written)
            if not isinstance(job.error, ChunkVanishedError) or attempt == ATTEMPTS:
                raise job.error

    def flush(self, session_id: str) -> str | None:
        """Wait until the session's rows are on disk; returns one sentence if that failed, once per failure."""
        self.wait(session_id)
        job, _ = self._newest.pop(session_id, (None, {}))
        if job is None or job.failure is None:
            return None
        said = "" if "the chat itself is saved" in str(job.failure) else " The chat itself is saved."
        return self._unless_repeated(session_id, f"{job.failure}{said}")

    def wait(self, session_id: str) -> None:
        """Wait until no save of the session is running; `flush` reports its error."""
        if session_id in self._newest:
            self._writer.wait(self._newest[session_id][0])

    def pending_sizes(self, session_id: str, group: str | None = None) -> Mapping[str, int]:
        """Sizes by digest of the session's chunks, or those of one group, that are being written. Call before reading
        the database."""
        job, chunks = self._newest.get(session_id, (None, {}))
        if job is None or job.is_done:
            return {}
        return {digest: size for digest, (name, size) in chunks.items() if group in (None, name)}

    def pending_sessions(self) -> list[str]:
        return [session_id for session_id in self._newest if self.pending_sizes(session_id)]

    def _submit(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, occasion: Occasion,
        resume_at: Callable[[], int] | None,
    ) -> tuple[Job | None, KVCommit]:  # fmt: skip
        plan = self._plan(session_id, cache, model, rng, occasion, resume_at)
        notice = self._unless_repeated(session_id, plan.notice)
        if not plan.pos:
            return None, KVCommit(0, 0, notice)
        new, chunks = 0, dict[str, tuple[str, int]]()

        def counted() -> Iterator[EncodedChunk]:
            nonlocal new
            for chunk in encode_chunks(plan, cache):
                chunks[chunk.digest] = chunk.head.group, chunk.size
                new += 0 if self._chunks.has(chunk.digest, chunk.size) else chunk.size
                yield chunk

        failures = nullcontext(list[str]())
        if cache.peers is not None:
            has_states = any(isinstance(group, RecurrentStates) for group in cache.groups)
            at = resume_at() if resume_at is not None and has_states else plan.pos
            failures = cache.peers.saving(self._sessions.key(session_id), plan.pos, occasion, at)
        with failures as failed:
            job = self._writer.submit(plan, counted(), _num_bytes(plan, cache))
            if occasion == Occasion.PAUSE:
                self.planner.note_pause(plan)
            self._newest[session_id] = job, chunks
        notice = notice or self._unless_repeated(session_id, next(iter(failed), None))
        return job, KVCommit(plan.pos, new, notice)

    def _plan(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, occasion: Occasion,
        resume_at: Callable[[], int] | None,
    ) -> Plan:  # fmt: skip
        """Plan to save the whole log, or the longest prefix, in sixteenths, that fits the disk limit."""
        planner = self.planner
        whole = plan = planner.plan(session_id, cache, model, rng, None, occasion, resume_at)
        if self._quota.fits(plan, cache.groups):
            return plan
        ends = {whole.pos * n // 16 for n in range(1, 16)} | {chunk.end for chunk in whole.saved}
        for at_most in sorted((end for end in ends if end < whole.pos), reverse=True):
            plan = planner.plan(session_id, cache, model, rng, at_most, occasion, resume_at)
            can_resume = plan.needed.get(STATE) != []  # rows alone, without a state to continue from, are of no use
            if plan.pos and can_resume and self._quota.fits(plan, cache.groups):
                what = f"{plan.pos:,} of {whole.pos:,} tokens"
                break
        else:
            plan, what = replace(whole, pos=0, heads=()), "Nothing"
        state = next((group.row_bytes for group in cache.groups if group.name == STATE), 0)
        takes = f", and a recurrent state takes {bytes_text(state)}" if state else ""
        limit = self._quota.description(self._sessions.database)
        notice = f"{what} of this chat's KV cache fits {limit}{takes}; raise `disk_limit`."
        return replace(plan, notice=notice)

    def _unless_repeated(self, session_id: str, notice: str | None) -> str | None:
        """The notice; None if it repeats the last one, apart from numbers."""
        if notice is None or self._last_notices.get(session_id) == (text := re.sub(r"[\d,]+", "#", notice)):
            return None
        self._last_notices[session_id] = text
        return notice


def _num_bytes(plan: Plan, cache: KVCacheLike) -> int:
    """Bytes of the rows to write, without the files' headers."""
    row_bytes = {group.name: group.row_bytes for group in cache.groups}
    return sum((head.b - head.a) * row_bytes[head.group] for head in plan.heads)
