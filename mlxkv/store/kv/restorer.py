"""Restore a cache from disk: find the longest saved prefix, of this session or another; read it (chunk_reader.py), or
give up where prefilling the tokens is faster; move bad chunks to quarantine.

A fault in the saved rows costs a prefill and a notice; it never raises and never changes the output. Processes that
share a model restore their parts together, up to the same position. Engine thread.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from enum import IntEnum

from mlxkv.cache.peers import Agree
from mlxkv.errors import StoreError
from mlxkv.stats import bytes_text
from mlxkv.store.db.history import EMPTY_HISTORY, pack_ids
from mlxkv.store.db.sessions import Sessions, save_model
from mlxkv.store.identity import ModelIdentity, first_difference, model_parts, spec_id, spec_parts
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_reader import BadChunkError, Read, TooSlowError, load, reads_for
from mlxkv.store.kv.commits import SavedChunk, remove_chunks, save_commit, save_spec, saved_chunks, saved_commits
from mlxkv.store.kv.prefix_lookup import find_source, restorable_positions
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup, RecurrentStates
from mlxkv.store.kv.ranges import covers
from mlxkv.store.kv.save_plan import SavePlanner
from mlxkv.store.records import Restored
from mlxkv.system.regular_file import parse_json
from mlxkv.token_ids import common_prefix

MIN_SHARED = 32  # tokens; a prefill of fewer takes no time
SMALL = 4 << 20  # bytes that any disk reads in no time: restored at any rate
_TRIAL_SHARE = 0.03  # of the time of a prefill: how long a restore may take before its rate is judged


class Outcome(IntEnum):
    """How loading ended in one of the processes that share a model; the smallest decides."""

    ENDED = 0  # too slow, or by an exception: no process tries again
    BAD = 1  # a chunk was damaged: all try a shorter prefix
    LOADED = 2


@dataclass(frozen=True)
class Saved:
    """Saved rows of a prompt.

    The chunks have rows of at most the first `limit` ids. This session's own commits cover the first `committed` ids,
    of which `own` can be restored. `rng_at`: the sampler's state by position. `head` and `log` are the session's; the
    files of `missing` chunks were deleted.
    """

    spec: str
    head: str
    log: array[int]
    chunks: tuple[SavedChunk, ...]
    missing: tuple[SavedChunk, ...]
    own: int
    committed: int
    limit: int
    rng_at: Mapping[int, bytes | None]
    notice: str | None

    def without(self, bad: Iterable[SavedChunk]) -> Saved:
        names = {chunk.digest for chunk in bad}
        return replace(self, chunks=tuple(c for c in self.chunks if c.digest not in names))


class ReadRate:
    """Compares reading `num_bytes` with a prefill of `prefill_s` seconds (None: never measured). Any thread."""

    def __init__(self, num_bytes: int, prefill_s: float | None, clock: Callable[[], float]) -> None:
        self._num_bytes, self._clock = num_bytes, clock
        self._prefill_s = prefill_s if num_bytes >= SMALL else None
        self._lock, self._started, self._done = threading.Lock(), clock(), 0

    def is_fast_enough(self, num_bytes: int) -> bool:
        """Count bytes that were read. False: a prefill takes less time than reading the rest."""
        with self._lock:
            self._done += num_bytes
            seconds = self._clock() - self._started
            if self._prefill_s is None or seconds < _TRIAL_SHARE * self._prefill_s:
                return True
            return (self._num_bytes - self._done) * seconds <= self._prefill_s * self._done

    @property
    def bytes_per_second(self) -> float:
        return self._done / max(self._clock() - self._started, 1e-9)


class Restorer:
    """The restores of one store. `planner` remembers the saved rows of open sessions.

    `prefill_tps`: the measured prefill of models by id, in tokens per second. A restore that would take longer is given
    up. That costs the tokens the cache holds: if it holds some, the last rate is checked first.
    """

    def __init__(self, sessions: Sessions, chunks: ChunkFiles, planner: SavePlanner) -> None:
        self.sessions, self.chunks, self.planner = sessions, chunks, planner
        self.prefill_tps: dict[str, float] = {}
        self._last_rate: float | None = None  # bytes per second

    def restore(
        self, session_id: str | None, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int = 0,
        agree: Agree | None = None,
    ) -> Restored:  # fmt: skip
        """See SessionStore.restore_kv, and without a session `borrow_kv`."""
        together = nullcontext(agree or _alone)
        if cache.peers is not None:
            key = None if session_id is None else self.sessions.key(session_id)
            together = cache.peers.restoring(key, ids, held, self.prefill_tps.get(model.model_id))
        with together as agree:
            return self._restore(session_id, cache, model, ids, held, agree)

    def _restore(
        self, session_id: str | None, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int,
        agree: Agree,
    ) -> Restored:  # fmt: skip
        clock = self.chunks.files.clock
        started = clock()
        try:
            packed = pack_ids(ids)
            if not held:
                cache.reset()
            saved = self._find(session_id, cache, model, packed, held)
        except BaseException:
            agree(0)  # the others do not wait
            raise
        missing, notice = saved.missing, saved.notice
        self._quarantine(missing)
        tps = self.prefill_tps.get(model.model_id)
        bad: list[SavedChunk] = []
        reads: list[Read] = []
        lacking = set[int]()  # numbers of the processes that have fewer rows than this one
        tokens, limit = 0, saved.limit
        while True:
            end = next(restorable_positions(cache.groups, saved.chunks, limit), 0)
            end = end if end > held else 0
            reads = reads_for(cache.groups, saved.chunks, end) if end else []
            num_bytes = sum(read.chunk.size for read in reads)
            if held and tps and self._last_rate and num_bytes / self._last_rate > (end - held) / tps:
                reads, notice, end = [], _slow(num_bytes, self._last_rate), 0
            offers = agree(end)
            lacking |= {number for number, offer in enumerate(offers) if offer < end}
            if (limit := min(offers)) < max(offers):
                if limit:
                    continue  # perhaps not a position where every process can continue
                reads = []
            if not limit:
                break
            rate = ReadRate(num_bytes, end / tps if tps else None, clock)
            outcome = Outcome.LOADED
            try:
                load(cache, ids[:end], reads, self.chunks, rate.is_fast_enough)
            except BadChunkError as error:
                outcome = Outcome.BAD
                bad.append(error.chunk)
                if session_id is not None:
                    self._quarantine([error.chunk])
                saved = saved.without([error.chunk])
            except TooSlowError:
                outcome, notice = Outcome.ENDED, _slow(num_bytes, rate.bytes_per_second)
            except BaseException:
                cache.reset()
                agree(Outcome.ENDED)
                raise
            if outcome == Outcome.ENDED or (outcome == Outcome.LOADED and num_bytes >= SMALL):
                self._last_rate = rate.bytes_per_second
            outcomes = agree(outcome)
            if min(outcomes) == Outcome.LOADED:
                tokens = end
                break
            lacking |= {number for number, other in enumerate(outcomes) if other < outcome}
            cache.reset()
            held, reads = 0, []
            if min(outcomes) == Outcome.ENDED:
                break
        if lacking and notice is None and cache.peers is not None:
            names = ", ".join(cache.peers.names[number] for number in sorted(lacking))
            notice = f"On {names}, part of the saved KV cache could not be restored"
        if bad or (missing and tokens < saved.committed):
            notice = f"In the saved KV cache {len(bad)} chunks were damaged and {len(missing)} missing"
        elif tokens < saved.committed and notice is None and not held:
            notice = _why_shorter(cache.groups, saved, tokens)
        is_other = notice is not None and notice == saved.notice
        restored = Restored(
            tokens, sum(read.chunk.size for read in reads), clock() - started, shared=tokens, is_other=is_other
        )
        if session_id is None:
            return restored
        if notice:
            notice += f": {tokens:,} of {len(ids):,} tokens were restored, the rest is prefilled."
        shared = max(tokens - saved.own, 0)
        if shared:
            self._adopt(session_id, cache, model, saved, packed, tokens, reads)
        self._touch(read.chunk for read in reads)
        return replace(restored, notice=notice, rng=saved.rng_at.get(saved.committed), shared=shared)

    def _find(
        self, session_id: str | None, cache: KVCacheLike, model: ModelIdentity, ids: array[int], held: int
    ) -> Saved:
        spec = spec_id(cache.layout(), model.spec_extra)
        with self.sessions.database.reading() as db:
            history = EMPTY_HISTORY if session_id is None else self.sessions.history(db, session_id)
            if session_id is not None and held:
                rows = self.planner.saved(session_id, model.model_id, spec)
                rows.update(db, history)
                beyond = held + MIN_SHARED
                if 0 < rows.reached <= held and not (
                    len(ids) >= beyond
                    and find_source(db, self.sessions, model.model_id, spec, cache.groups, ids, session_id, beyond)
                ):  # the cache holds all that is saved: the prompt ends with a long message, most often
                    return Saved(spec, history.head, history.log, (), (), held, 0, 0, {}, None)
            commits = saved_commits(db, session_id or "", history)
            mine = [c for c in commits if c.model_id == model.model_id and c.spec_id == spec]
            saved = saved_chunks(db, mine, history)
            notice = None
            if commits and not mine:
                newest = db.execute("SELECT model, spec_id FROM kv_commit WHERE id = ?", (commits[0].id,)).fetchone()
                field = _difference(db, newest, model, spec_parts(cache.layout(), model.spec_extra))
                notice = "The saved KV cache was made with another model or setting"
                notice += f" (`{field}` differs)" if field else ""
            common = common_prefix(history.log, ids)
            committed = limit = max((min(c.valid, common) for c in mine), default=0) if cache.groups else 0
            rng_at = {c.pos: c.rng for c in reversed(mine) if c.valid == c.pos == committed}
            missing = [chunk for chunk in saved if not self.chunks.has(chunk.digest, chunk.size)]
            saved = [chunk for chunk in saved if chunk not in missing]
            own = next(restorable_positions(cache.groups, saved, committed), 0)
            beyond = max(own, held) + MIN_SHARED
            if len(ids) >= beyond and cache.groups:
                other = find_source(db, self.sessions, model.model_id, spec, cache.groups, ids, session_id, beyond)
                if other is not None:
                    known = {chunk.digest for chunk in saved}
                    more = (c for c in other.chunks if c.digest not in known and self.chunks.has(c.digest, c.size))
                    saved, limit = [*saved, *more], other.limit
        return Saved(
            spec, history.head, history.log, tuple(saved), tuple(missing), own, committed, limit, rng_at, notice
        )  # fmt: skip

    def _adopt(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, saved: Saved, ids: array[int], tokens: int,
        reads: Sequence[Read],
    ) -> None:  # fmt: skip
        """Let the session refer to the chunks it restored from another one: it need not write them again, and they stay
        when the other is deleted."""
        end = min(tokens, common_prefix(saved.log, ids))
        chunks = [read.chunk for read in reads if read.chunk.head.b <= end]
        pos = next(restorable_positions(cache.groups, chunks, end), 0)
        if not pos:
            return
        with suppress(StoreError), self.sessions.database.writing() as db:
            row = db.execute("SELECT head FROM session WHERE id = ?", (session_id,)).fetchone()
            present = [chunk for chunk in chunks if self.chunks.has(chunk.digest, chunk.size)]
            if row is not None and row[0] == saved.head:
                save_spec(db, saved.spec, spec_parts(cache.layout(), model.spec_extra))
                save_commit(db, session_id, pos, saved.head, save_model(db, model), saved.spec, None, present)

    def _quarantine(self, chunks: Sequence[SavedChunk]) -> None:
        """Quarantine the files, then remove their database rows: the next commit would take a bad file under its good
        name for saved rows."""
        if not chunks:
            return
        for chunk in chunks:
            self.chunks.quarantine(chunk.digest)
        with suppress(StoreError), self.sessions.database.writing() as db:
            # On a read-only disk the chunk is only found missing again next time.
            remove_chunks(db, [chunk.digest for chunk in chunks])

    def _touch(self, chunks: Iterable[SavedChunk]) -> None:
        with suppress(StoreError), self.sessions.database.writing(lasting=False) as db:
            now = time.time()  # the disk limit removes the least recently used first
            db.executemany("UPDATE chunk SET last_used = ? WHERE digest = ?", [(now, c.digest) for c in chunks])


def _alone(number: int) -> tuple[int, ...]:
    """The answer of the only process."""
    return (number,)


def _why_shorter(groups: Sequence[LayerGroup], saved: Saved, tokens: int) -> str:
    """Why only `tokens` could be restored: all rows are there and a later state is not, or rows are missing."""
    rows = [group for group in groups if not isinstance(group, RecurrentStates)]
    ranges = {g.name: [(c.head.a, c.end) for c in saved.chunks if c.head.group == g.name] for g in rows}
    if len(rows) < len(groups) and all(covers(ranges[g.name], g.required(saved.committed)) for g in rows):
        if not tokens:
            return "No state of the recurrent layers was saved"
        return "The recurrent layers continue from their last saved state"
    return "Part of the saved KV cache is missing"


def _slow(num_bytes: int, rate: float) -> str:
    speed = f"{bytes_text(num_bytes)} from this disk ({bytes_text(rate)}/s)"
    return f"Restoring {speed} would take longer than a prefill of the chat"


def _difference(
    db: sqlite3.Connection, commit: tuple[str, str], model: ModelIdentity, parts: dict[str, str]
) -> str | None:
    """The first field in which the model, else the cache's spec, differs from a commit's."""
    try:
        old = parse_json(db.execute("SELECT json FROM model WHERE id = ?", (commit[0],)).fetchone()[0])["parts"]
        old_spec = parse_json(db.execute("SELECT json FROM spec WHERE id = ?", (commit[1],)).fetchone()[0])
        return first_difference(model_parts(old), model_parts(model.parts)) or first_difference(old_spec, parts)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # the description of the commit's model or spec is damaged too
