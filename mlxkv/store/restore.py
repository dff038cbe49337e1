"""Loading a cache: find the longest prefix that is saved and sound, read its chunks in order, set bad ones aside.

Whatever is wrong with the saved rows costs a re-prefill and a notice, never an exception and never other output.
The engine thread calls this.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mlxkv.errors import CorruptError, StoreError
from mlxkv.store.arrays import load_chunk
from mlxkv.store.chunks import ChunkFiles
from mlxkv.store.history import pack_ids
from mlxkv.store.identity import ModelIdentity, first_difference, model_parts, spec_id, spec_parts
from mlxkv.store.ports import KVCacheLike, LayerGroup
from mlxkv.store.ranges import common_prefix, cover, covers, merged
from mlxkv.store.records import Restored
from mlxkv.store.refs import SavedChunk, saved_chunks, saved_commits
from mlxkv.store.sessions import Sessions


class _BadChunk(Exception):
    def __init__(self, chunk: SavedChunk) -> None:
        self.chunk = chunk


Step = tuple[LayerGroup, SavedChunk, int, int]
"""Import rows [from, to) of a chunk into a group."""


@dataclass(frozen=True)
class Restorer:
    sessions: Sessions
    chunks: ChunkFiles

    def restore(self, session_id: str, cache: KVCacheLike, model: ModelIdentity, ids: Sequence[int]) -> Restored:
        """Fill the cache with the longest saved prefix of `ids`; see SessionStore.restore_kv."""
        started = time.perf_counter()
        cache.reset()
        spec = spec_id(cache.layout(), model.spec_extra)
        with self.sessions.database.reading() as db:
            history = self.sessions.history(db, session_id)
            commits = saved_commits(db, session_id, history)
            mine = [c for c in commits if c.model_id == model.model_id and c.spec_id == spec]
            saved = saved_chunks(db, mine, history)
            notice = None
            if commits and not mine:
                newest = db.execute("SELECT model, spec_id FROM kv_commit WHERE id = ?", (commits[0].id,)).fetchone()
                field = _difference(db, newest, model, spec_parts(cache.layout(), model.spec_extra))
                notice = f"The saved KV cache was made with another model or setting (`{field}` differs)"
        missing = [chunk for chunk in saved if not self.chunks.has(chunk.digest, chunk.size)]
        self._set_aside(missing)
        saved = [chunk for chunk in saved if chunk not in missing]
        common = common_prefix(history.log, pack_ids(ids))
        limit = max((min(c.kept, common) for c in mine), default=0) if cache.groups else 0
        tokens, num_bytes, bad = self._fill(cache, saved, ids, limit)
        if bad or (missing and tokens < limit):
            notice = f"Of the saved KV cache {len(bad)} chunks were damaged and {len(missing)} missing"
        elif tokens < limit:
            notice = "The history changed before the rows that were saved"
        if notice:
            notice += f": {tokens} of {len(ids)} tokens came from disk, the rest is read again."
        rng = next((c.rng for c in mine if c.kept == c.pos == limit), None)
        return Restored(tokens, num_bytes, time.perf_counter() - started, notice, rng)

    def _fill(
        self, cache: KVCacheLike, saved: list[SavedChunk], ids: Sequence[int], limit: int
    ) -> tuple[int, int, list[SavedChunk]]:
        """Load the longest prefix of at most `limit` tokens. Returns tokens, bytes read, chunks that were bad."""
        bad: list[SavedChunk] = []
        while True:
            usable = [chunk for chunk in saved if chunk not in bad]
            tokens = _longest(cache.groups, usable, limit)
            if tokens == 0:
                return 0, 0, bad
            try:
                cache.begin_restore(ids[:tokens])
                num_bytes = sum(self._import(step) for step in _merge_reads(_steps(cache.groups, usable, tokens)))
                cache.finish_restore()
            except _BadChunk as error:
                cache.reset()
                bad.append(error.chunk)
                self._set_aside([error.chunk])
            except BaseException:
                cache.reset()
                raise
            else:
                self._touch(usable)
                return tokens, num_bytes, bad

    def _import(self, read: tuple[SavedChunk, list[tuple[LayerGroup, int, int]]]) -> int:
        chunk, targets = read
        head = chunk.head
        shapes = targets[0][0].shapes(head.b - head.a)
        try:
            arrays = load_chunk(self.chunks.path(chunk.digest), chunk.digest, chunk.size, head, shapes)
        except CorruptError as error:
            raise _BadChunk(chunk) from error
        for group, a, b in targets:
            rows = arrays
            if (a, b) != (head.a, head.b):
                rows = {name: x[..., a - head.a : b - head.a, :] for name, x in arrays.items()}
            group.import_rows(a, b, rows)
        return chunk.size

    def _set_aside(self, chunks: list[SavedChunk]) -> None:
        """File first: a bad file under its good name would be taken for saved by the next commit."""
        if not chunks:
            return
        for chunk in chunks:
            self.chunks.quarantine(chunk.digest)
        try:
            with self.sessions.database.writing() as db:
                db.executemany("DELETE FROM chunk WHERE digest = ?", [(chunk.digest,) for chunk in chunks])
        except StoreError:
            pass  # a read-only disk: the chunk is merely found missing again next time

    def _touch(self, chunks: Iterable[SavedChunk]) -> None:
        try:
            with self.sessions.database.writing() as db:
                now = time.time()
                db.executemany("UPDATE chunk SET last_used = ? WHERE digest = ?", [(now, c.digest) for c in chunks])
        except StoreError:
            pass  # only the order of eviction suffers


def _spans(group: LayerGroup, saved: Iterable[SavedChunk]) -> list[tuple[int, int, SavedChunk]]:
    return [(chunk.head.a, chunk.end, chunk) for chunk in saved if chunk.head.group == group.name]


def _longest(groups: Sequence[LayerGroup], saved: list[SavedChunk], limit: int) -> int:
    """The most tokens, at most `limit`, at which every group can stand.

    Only `limit` and the ends of what is saved need a look: as the position goes down, so does the first row required,
    so a gap is only escaped by going back to where it begins.
    """
    have = {g.name: merged((a, b) for a, b, _ in _spans(g, saved)) for g in groups}
    ends = {limit, *(b for ranges in have.values() for _, b in ranges if b < limit)}
    return next((p for p in sorted(ends, reverse=True) if all(covers(have[g.name], g.required(p)) for g in groups)), 0)


def _steps(groups: Sequence[LayerGroup], saved: list[SavedChunk], tokens: int) -> Iterator[Step]:
    for group in groups:
        spans = _spans(group, saved)
        for wanted in sorted({*group.required(tokens), *group.optional(tokens)}):
            for chunk, a, b in cover(spans, wanted) or ():  # None only for an optional range
                yield group, chunk, a, b


def _merge_reads(steps: Iterable[Step]) -> Iterator[tuple[SavedChunk, list[tuple[LayerGroup, int, int]]]]:
    """Neighbouring steps on one chunk become one read of its file."""
    chunk: SavedChunk | None = None
    targets: list[tuple[LayerGroup, int, int]] = []
    for group, next_chunk, a, b in steps:
        if chunk is not None and next_chunk is not chunk:
            yield chunk, targets
            targets = []
        chunk = next_chunk
        targets.append((group, a, b))
    if chunk is not None:
        yield chunk, targets


def _difference(
    db: sqlite3.Connection, commit: tuple[str, str], model: ModelIdentity, parts: dict[str, str]
) -> str | None:
    """The first field in which the model, else the cache's spec, differs from what a commit was made with."""
    old = json.loads(db.execute("SELECT json FROM model WHERE id = ?", (commit[0],)).fetchone()[0])
    old_spec = json.loads(db.execute("SELECT json FROM spec WHERE id = ?", (commit[1],)).fetchone()[0])
    return first_difference(model_parts(old["parts"]), model_parts(model.parts)) or first_difference(old_spec, parts)
