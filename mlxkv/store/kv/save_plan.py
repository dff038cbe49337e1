"""Saving a cache, the engine thread's half: what is new, and its rows as bytes. Writing them is writer.py's half.

Chunks first, references second: a crash in between leaves a file that nothing refers to, never a reference to nothing.
Exporting rows is MLX's work, hence the engine thread; what leaves here are bytes and frozen dataclasses.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from mlxkv.store.db.sessions import Sessions
from mlxkv.store.identity import ModelIdentity, spec_id, spec_parts
from mlxkv.store.kv.arrays import to_tensors
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import ChunkHead, EncodedChunk, encode_chunk
from mlxkv.store.kv.commits import STATE, SavedChunk, saved_bytes
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup, Range, RowViews
from mlxkv.store.kv.ranges import SHORT, Grid, clip, covers, subtract
from mlxkv.store.kv.saved_rows import GroupRows, SavedRows
from mlxkv.token_ids import common_prefix

_MAX_SESSIONS = 8  # sessions
MAX_SHORT = 7  # chunks in a row; the next save writes their rows again, as one chunk with its own


@dataclass(frozen=True)
class Plan:
    """One save: the rows of `heads` are new, and with them the log before `pos` is on disk.

    `turn` is the head of the history the rows were computed from; `needed` are the ranges of each group without which
    one cannot continue at `pos`; `kept` are chunks that were saved before, of `kept_bytes`, `gone` those that have
    vanished. `states` are the recurrent states that were saved before, None where that is not known.
    """

    session_id: str
    pos: int
    turn: str
    model: ModelIdentity
    spec_id: str
    spec: Mapping[str, str]
    rng: bytes | None
    heads: tuple[ChunkHead, ...]
    needed: Mapping[str, list[Range]]
    saved: Collection[SavedChunk] = ()
    saved_bytes: int = 0
    missing: tuple[SavedChunk, ...] = ()
    states: frozenset[str] | None = None
    notice: str | None = None


class SavePlanner:
    """Remembers the saved rows of the sessions that are open (saved_rows.py), so that a save looks at what is new."""

    def __init__(self, sessions: Sessions, chunks: ChunkFiles) -> None:
        self._sessions, self._chunks = sessions, chunks
        self._saved: dict[str, SavedRows] = {}

    def plan(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, at_most: int | None = None
    ) -> Plan:
        """What has to be saved of the session's log, or of its first `at_most` tokens; `pos` 0 and a notice if that
        is not possible."""
        layout = cache.layout()
        parts, spec = spec_parts(layout, model.spec_extra), spec_id(layout, model.spec_extra)
        with self._sessions.database.reading() as db:
            history = self._sessions.history(db, session_id)
            saved = self.saved(session_id, model.model_id, spec)
            saved.update(db, history)
        pos = common_prefix(history.log, cache.log) if cache.groups else 0
        pos = pos if at_most is None else min(pos, at_most)
        for group in cache.groups:
            if group.name == STATE:  # the log may end where no state was kept
                pos = max((b for _, b in group.held() if b <= pos), default=pos)
        new = {group.name: _new(group, pos, saved.group(group.name)) for group in cache.groups}
        notice = None
        if not all(_can_stand(g, pos, saved.group(g.name), new[g.name]) for g in cache.groups):
            notice = f"The KV cache was not saved: at token {pos} it no longer holds the rows to go on from there."
            pos, new = 0, {}
        heads = []
        for name, ranges in new.items():
            keys = saved.group(name).keys
            heads += [ChunkHead(name, a, b, keys.key(history.log, a, b)) for a, b in ranges]
        needed = {group.name: group.required(pos) for group in cache.groups} if pos else {}
        return Plan(
            session_id, pos, history.head, model, spec, parts, rng, tuple(heads), needed, saved.chunks.values(),
            saved.num_bytes, tuple(saved.missing.values()), frozenset(saved.states), notice,
        )  # fmt: skip

    def saved(self, session_id: str, model_id: str, spec: str) -> SavedRows:
        """To be updated before it is used."""
        found = self._saved.get(session_id)
        if found is None or (found.model_id, found.spec_id) != (model_id, spec):
            found = self._saved[session_id] = SavedRows(session_id, model_id, spec, self._chunks.listing)
            for other in list(self._saved)[:-_MAX_SESSIONS]:
                del self._saved[other]
        return found

    def saved_bytes(self, db: sqlite3.Connection, session_id: str) -> int:
        """Bytes of the chunks that the session refers to, shared ones included."""
        found = self._saved.get(session_id)
        return saved_bytes(db, session_id) if found is None else found.update_bytes(db)

    def forget(self, session_id: str) -> None:
        self._saved.pop(session_id, None)


def encode_chunks(plan: Plan, cache: KVCacheLike) -> Iterator[EncodedChunk]:
    """The plan's chunks, one at a time: memory stays flat if the caller lets go of each before the next."""
    groups = {group.name: group for group in cache.groups}
    for head in plan.heads:
        group, shapes = groups[head.group], groups[head.group].shapes(head.b - head.a)
        if isinstance(group, RowViews):
            yield encode_chunk(head, shapes, group.views(head.a, head.b))
        else:
            tensors = to_tensors(group.export_rows(head.a, head.b), shapes)
            yield encode_chunk(head, shapes, {name: [data] for name, (_, _, data) in tensors.items()})


def _new(group: LayerGroup, pos: int, saved: GroupRows) -> list[Range]:
    """The chunks to write for one group: rows held and not saved yet, cut on its grid."""
    if group.name == STATE:
        known = {(chunk.head.a, chunk.end) for chunk in saved.chunks.values()}
        return [(a, b) for a, b in group.held() if b <= pos and (a, b) not in known]
    grid = Grid(group)
    held = clip(group.held(), pos)
    out: list[Range] = []
    for a, b in subtract(held, saved.covered):
        out += grid.cut(_merge_start(a, saved, held, grid), b)
    return out


def _merge_start(a: int, saved: GroupRows, held: list[Range], grid: Grid) -> int:
    """Where to start instead of `a`: with the short chunks just before it, if these are MAX_SHORT already.

    A save writes what is new. Short saves after each other would leave many small files, and taking in the last one
    every time would write the same rows again and again.
    """
    start, num_short = a, 0
    while not grid.is_cut(start):
        first = min(
            (x for x in saved.chunk_starts(start) if start - x < SHORT and covers(held, [(x, start)])), default=None
        )
        if first is None:
            break
        start, num_short = first, num_short + 1
    return start if num_short >= MAX_SHORT else a


def _can_stand(group: LayerGroup, pos: int, saved: GroupRows, new: list[Range]) -> bool:
    return covers([*saved.covered, *new], group.required(pos))
