"""Plan a save: find the rows that are new and export them as bytes. writer.py writes them.

Engine thread, since exporting rows needs MLX; the results are bytes and frozen dataclasses.
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

_MAX_SESSIONS = 8  # whose saved rows are remembered
MAX_SHORT = 7  # chunks in a row; the next save writes their rows again, in one chunk with the new ones


@dataclass(frozen=True)
class Plan:
    """One save: the new rows of `heads` complete the log before `pos` on disk.

    `turn` is the head of the history the rows were computed from; `needed` are the ranges of each group that continuing
    at `pos` takes. `saved` are the chunks of earlier saves, `saved_bytes` in all, without `missing`, whose files have
    vanished. `states` are the recurrent states of earlier saves, None if unknown.
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
    """Plans saves. Remembers the saved rows of open sessions (saved_rows.py), so that a save only reads new commits."""

    def __init__(self, sessions: Sessions, chunks: ChunkFiles) -> None:
        self._sessions, self._chunks = sessions, chunks
        self._saved: dict[str, SavedRows] = {}

    def plan(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, at_most: int | None = None
    ) -> Plan:
        """Plan to save the rows of the session's log, or of its first `at_most` tokens; `pos` 0 and a notice if that is
        impossible."""
        layout = cache.layout()
        parts, spec = spec_parts(layout, model.spec_extra), spec_id(layout, model.spec_extra)
        with self._sessions.database.reading() as db:
            history = self._sessions.history(db, session_id)
            saved = self.saved(session_id, model.model_id, spec)
            saved.update(db, history)
        pos = common_prefix(history.log, cache.log) if cache.groups else 0
        pos = pos if at_most is None else min(pos, at_most)
        for group in cache.groups:
            if group.name == STATE:  # the log may end at a position without a state
                pos = max((b for _, b in group.held() if b <= pos), default=pos)
        new = {group.name: _new(group, pos, saved.group(group.name)) for group in cache.groups}
        notice = None
        if not all(can_resume_at(g, pos, saved.group(g.name), new[g.name]) for g in cache.groups):
            notice = f"The KV cache was not saved: it no longer holds the rows needed to continue at token {pos}."
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
        """The saved rows of a session; call `update` on them before use."""
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
    """The plan's chunks, one at a time: memory use stays flat if the caller drops each before the next."""
    groups = {group.name: group for group in cache.groups}
    for head in plan.heads:
        group, shapes = groups[head.group], groups[head.group].shapes(head.b - head.a)
        if isinstance(group, RowViews):
            yield encode_chunk(head, shapes, group.views(head.a, head.b))
        else:
            tensors = to_tensors(group.export_rows(head.a, head.b), shapes)
            yield encode_chunk(head, shapes, {name: [data] for name, (_, _, data) in tensors.items()})


def _new(group: LayerGroup, pos: int, saved: GroupRows) -> list[Range]:
    """The chunks to write for one group: rows that are held and not saved, cut on its grid."""
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
    """The start of the short chunks just before `a` if there are MAX_SHORT, so that they are written again as one; else
    `a`.

    Short saves would leave many small files, and merging with the last one every time would write the same rows again
    and again.
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


def can_resume_at(group: LayerGroup, pos: int, saved: GroupRows, new: list[Range]) -> bool:
    """Whether the saved and the new rows are enough to continue at `pos`."""
    return covers([*saved.covered, *new], group.required(pos))
