"""Restoring a cache: find the longest prefix that is saved and sound, of this session or another; decide whether it is
faster to read than to prefill; read it (chunk_loader.py); set bad chunks aside.

Whatever is wrong with the saved rows costs a re-prefill and a notice, never an exception and never other output.
The engine thread calls this.
"""

from __future__ import annotations

import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from mlxkv.errors import StoreError
from mlxkv.stats import bytes_text
from mlxkv.store.db.history import NOTHING_SAID, pack_ids
from mlxkv.store.db.sessions import Sessions, save_model
from mlxkv.store.identity import ModelIdentity, first_difference, model_parts, spec_id, spec_parts
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_loader import BadChunkError, Read, TooSlowError, load, reads_for
from mlxkv.store.kv.commits import SavedChunk, remove_chunks, save_commit, save_spec, saved_chunks, saved_commits
from mlxkv.store.kv.pacing import Offer, Pace, Watch, choose
from mlxkv.store.kv.prefix_lookup import find_source
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup
from mlxkv.store.kv.ranges import covers, merged
from mlxkv.store.kv.save_plan import Committer
from mlxkv.store.records import Restored
from mlxkv.system.regular_file import parse_json
from mlxkv.token_ids import common_prefix

WORTH_SHARING = 32  # tokens; fewer are read in no time
_MOST_OFFERS = 4


@dataclass(frozen=True)
class Saved:
    """What the disk has for a prompt.

    `limit`: how many of its first ids the chunks may be rows of; `own`: how many this session has the rows of, which
    once had `promised`. `rng_at`: the sampler's state by position. `head` and `log` are the session's; `missing` chunks
    have no file any more.
    """

    spec: str
    head: str
    log: array[int]
    chunks: tuple[SavedChunk, ...]
    missing: tuple[SavedChunk, ...]
    own: int
    promised: int
    limit: int
    rng_at: Mapping[int, bytes | None]
    notice: str | None

    def without(self, bad: Iterable[SavedChunk]) -> Saved:
        names = {chunk.digest for chunk in bad}
        return replace(self, chunks=tuple(c for c in self.chunks if c.digest not in names))


@dataclass(frozen=True)
class Restorer:
    """`pace` is what was measured before; `committer` knows what open sessions have saved."""

    sessions: Sessions
    chunks: ChunkFiles
    pace: Pace
    committer: Committer | None = None

    def restore(
        self, session_id: str | None, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int], held: int = 0
    ) -> tuple[Restored, float | None]:
        """See SessionStore.restore_kv, and without a session `borrow_kv`. Also how fast it was read (bytes per second),
        None where too little was."""
        clock = self.chunks.files.clock
        started, packed = clock(), pack_ids(ids)
        if not held:
            cache.reset()
        saved = self._find(session_id, cache, model, packed, held)
        missing = saved.missing
        self._set_aside(missing)
        bad: list[SavedChunk] = []
        reads: list[Read] = []
        tokens, read_bps, notice = 0, None, saved.notice
        while offers := [o for o in _offers(cache.groups, saved) if o.tokens > held]:
            offer = choose(offers, len(ids), held, self.pace)
            if offer is None:
                notice = _slow(offers[0], self.pace.read_bps)
                read_bps = 2 * (self.pace.read_bps or 0)  # a disk that was slow has another chance some other time
                break
            reads = reads_for(cache.groups, saved.chunks, offer.tokens)
            watch = Watch(offer, held, self.pace, clock)
            try:
                load(cache, ids[: offer.tokens], reads, self.chunks, watch)
            except BadChunkError as error:
                cache.reset()
                held = 0
                bad.append(error.chunk)
                if session_id is not None:
                    self._set_aside([error.chunk])
                saved, reads = saved.without([error.chunk]), []
                continue
            except BaseException as error:
                cache.reset()
                if not isinstance(error, TooSlowError):
                    raise
                reads, read_bps = [], watch.read_bps
                notice = _slow(offer, read_bps)
                break
            tokens, read_bps = offer.tokens, watch.read_bps
            break
        if bad or (missing and tokens < saved.promised):
            notice = f"Of the saved KV cache {len(bad)} chunks were damaged and {len(missing)} missing"
        elif tokens < saved.promised and notice is None and not held:
            notice = "Not all of the saved KV cache is there any more"
        if session_id is None:
            return Restored(tokens, sum(r.chunk.size for r in reads), clock() - started, shared=tokens), read_bps
        if notice:
            notice += f": {tokens} of {len(ids)} tokens came from disk, the rest is read again."
        shared = max(tokens - saved.own, 0)
        if shared:
            self._adopt(session_id, cache, model, saved, packed, tokens, reads)
        self._touch(read.chunk for read in reads)
        return Restored(
            tokens, sum(read.chunk.size for read in reads), clock() - started, notice, saved.rng_at.get(tokens),
            shared,
        ), read_bps  # fmt: skip

    def _find(
        self, session_id: str | None, cache: KVCacheLike, model: ModelIdentity, ids: array[int], held: int
    ) -> Saved:
        spec = spec_id(cache.layout(), model.spec_extra)
        with self.sessions.database.reading() as db:
            history = NOTHING_SAID if session_id is None else self.sessions.history(db, session_id)
            names = [group.name for group in cache.groups]
            if session_id is not None and self.committer is not None and held:
                rows = self.committer.saved(session_id, model.model_id, spec)
                rows.update(db, history)
                beyond = held + WORTH_SHARING
                if 0 < rows.reached <= held and not (
                    len(ids) >= beyond
                    and find_source(db, self.sessions, model.model_id, spec, names, ids, session_id, beyond)
                ):  # nothing is saved beyond what the cache holds: a long message, most often
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
            promised = limit = max((min(c.kept, common) for c in mine), default=0) if cache.groups else 0
            rng_at = {c.pos: c.rng for c in reversed(mine) if c.kept == c.pos == promised}
            missing = [chunk for chunk in saved if not self.chunks.has(chunk.digest, chunk.size)]
            saved = [chunk for chunk in saved if chunk not in missing]
            own = next(_standing(cache.groups, saved, promised), 0)
            beyond = max(own, held) + WORTH_SHARING
            if len(ids) >= beyond and cache.groups:
                other = find_source(db, self.sessions, model.model_id, spec, names, ids, session_id, beyond)
                if other is not None:
                    known = {chunk.digest for chunk in saved}
                    there = (c for c in other.chunks if c.digest not in known and self.chunks.has(c.digest, c.size))
                    saved, limit = [*saved, *there], other.limit
        return Saved(
            spec, history.head, history.log, tuple(saved), tuple(missing), own, promised, limit, rng_at, notice
        )  # fmt: skip

    def _adopt(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, saved: Saved, ids: array[int], tokens: int,
        reads: Sequence[Read],
    ) -> None:  # fmt: skip
        """Let the session refer to what it took from another one: then it need not be written again, and stays when
        the other is deleted."""
        end = min(tokens, common_prefix(saved.log, ids))
        chunks = [read.chunk for read in reads if read.chunk.head.b <= end]
        pos = next(_standing(cache.groups, chunks, end), 0)
        if not pos:
            return
        with suppress(StoreError), self.sessions.database.writing() as db:
            row = db.execute("SELECT head FROM session WHERE id = ?", (session_id,)).fetchone()
            there = [chunk for chunk in chunks if self.chunks.has(chunk.digest, chunk.size)]
            if row is not None and row[0] == saved.head:
                save_spec(db, saved.spec, spec_parts(cache.layout(), model.spec_extra))
                save_commit(db, session_id, pos, saved.head, save_model(db, model), saved.spec, None, there)

    def _set_aside(self, chunks: Sequence[SavedChunk]) -> None:
        """File first: a bad file under its good name would be taken for saved by the next commit."""
        if not chunks:
            return
        for chunk in chunks:
            self.chunks.quarantine(chunk.digest)
        with suppress(StoreError), self.sessions.database.writing() as db:
            # On a read-only disk the chunk is merely found missing again next time.
            remove_chunks(db, [chunk.digest for chunk in chunks])

    def _touch(self, chunks: Iterable[SavedChunk]) -> None:
        with suppress(StoreError), self.sessions.database.writing(lasting=False) as db:
            now = time.time()  # only the order of eviction goes by it
            db.executemany("UPDATE chunk SET last_used = ? WHERE digest = ?", [(now, c.digest) for c in chunks])


def _offers(groups: Sequence[LayerGroup], saved: Saved) -> list[Offer]:
    """The longest prefixes at which one can go on, and what reading them takes."""
    positions = islice(_standing(groups, saved.chunks, saved.limit), _MOST_OFFERS)
    return [Offer(p, sum(read.chunk.size for read in reads_for(groups, saved.chunks, p))) for p in positions]


def _standing(groups: Sequence[LayerGroup], chunks: Sequence[SavedChunk], limit: int) -> Iterator[int]:
    """The positions up to `limit` at which every group can stand, from the last on.

    Only `limit` and the ends of what is saved need a look: as the position goes down, so does the first row required,
    so a gap is only escaped by going back to where it begins.
    """
    spans = {g.name: [(c.head.a, c.end) for c in chunks if c.head.group == g.name] for g in groups}
    have = {name: merged(ranges) for name, ranges in spans.items()}
    for p in sorted({limit, *(b for ranges in spans.values() for _, b in ranges if b < limit)}, reverse=True):
        if p > 0 and all(covers(have[g.name], g.required(p)) for g in groups):
            yield p


def _slow(offer: Offer, read_bps: float | None) -> str:
    speed = f" ({bytes_text(read_bps)}/s)" if read_bps else ""
    return f"Reading {bytes_text(offer.bytes)} from this disk{speed} would take longer than reading the chat again"


def _difference(
    db: sqlite3.Connection, commit: tuple[str, str], model: ModelIdentity, parts: dict[str, str]
) -> str | None:
    """The first field in which the model, else the cache's spec, differs from what a commit was made with."""
    try:
        old = parse_json(db.execute("SELECT json FROM model WHERE id = ?", (commit[0],)).fetchone()[0])["parts"]
        old_spec = parse_json(db.execute("SELECT json FROM spec WHERE id = ?", (commit[1],)).fetchone()[0])
        return first_difference(model_parts(old), model_parts(model.parts)) or first_difference(old_spec, parts)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # what it was made with is damaged as well
