"""Plan a save: find the rows that are new and export them as bytes. writer.py writes them.

Engine thread, since exporting rows needs MLX; the results are bytes and frozen dataclasses.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from mlxkv.store.db.sessions import Sessions
from mlxkv.store.identity import ModelIdentity, spec_id, spec_parts
from mlxkv.store.kv.arrays import to_tensors
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import ChunkHead, EncodedChunk, encode_chunk
from mlxkv.store.kv.commits import STATE, SavedChunk, saved_bytes
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup, Range, RecurrentStates, RowViews
from mlxkv.store.kv.ranges import SHORT, Grid, clip, covers, merge, subtract
from mlxkv.store.kv.saved_rows import GroupRows, SavedRows
from mlxkv.store.kv.state_saves import Occasion, StateChoice, choose_states
from mlxkv.token_ids import common_prefix

_MAX_SESSIONS = 8  # whose saved rows are remembered
MAX_SHORT = 7  # chunks in a row; the next save writes their rows again, in one chunk with the new ones


@dataclass(frozen=True)
class Plan:
    """One save: the new rows of `heads` complete the log before `pos` on disk.

    `turn` is the head of the history the rows were computed from; `needed` are the ranges of each group that continuing
    at `pos` takes. `saved` are the chunks of earlier saves, `saved_bytes` in all, without `missing`, whose files have
    vanished. `states` are the digests of the recurrent states of earlier saves, None if unknown; those at other
    positions than `kept_states` are removed, except those written at `prefixes` once.
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
    kept_states: frozenset[int] = frozenset()
    prefixes: frozenset[int] = frozenset()
    notice: str | None = None


class SavePlanner:
    """Plans saves. Remembers the saved rows of open sessions (saved_rows.py), so that a save only reads new commits."""

    def __init__(self, sessions: Sessions, chunks: ChunkFiles) -> None:
        self._sessions, self._chunks = sessions, chunks
        self._saved: dict[str, SavedRows] = {}
        self._paused_at: dict[str, int] = {}  # the state of a session that the last pause wrote

    def plan(
        self,
        session_id: str,
        cache: KVCacheLike,
        model: ModelIdentity,
        rng: bytes | None,
        at_most: int | None,
        occasion: Occasion,
        resume_at: Callable[[], int] | None,
    ) -> Plan:
        """Plan to save the rows of the session's log, or of its first `at_most` tokens; `pos` 0 and a notice if that is
        impossible. `resume_at`: see `choose_states`; None: the end of the log."""
        layout = cache.layout()
        parts, spec = spec_parts(layout, model.spec_extra), spec_id(layout, model.spec_extra)
        with self._sessions.database.reading() as db:
            history = self._sessions.history(db, session_id)
            saved = self.saved(session_id, model.model_id, spec)
            saved.update(db, history)
        pos = common_prefix(history.log, cache.log) if cache.groups else 0
        pos = pos if at_most is None else min(pos, at_most)
        rows = [group for group in cache.groups if not isinstance(group, RecurrentStates)]
        new = {group.name: _new(group, pos, saved.group(group.name)) for group in rows}
        notice, states, at, prefixes = None, StateChoice((), frozenset()), pos, frozenset[int]()
        for group in cache.groups:
            if isinstance(group, RecurrentStates):
                held = [b for _, b in group.held() if b <= pos]
                there = [c.end for c in saved.group(group.name).chunks.values() if c.end == c.head.b]
                turns = [turn.start for turn in history.turns if turn.role == "user" and turn.start is not None]
                paused_at, prefixes = self._paused_at.get(session_id, 0), frozenset(group.prefixes)
                states = choose_states(
                    held, there, group.prefixes, occasion, turns, resume_at or (lambda: pos), paused_at
                )  # fmt: skip
                new[group.name] = [(p - 1, p) for p in states.write]
                at = max((p for p in states.keep if p <= pos), default=0)  # where the chat is resumed
        if not all(can_resume_at(g, pos, saved.group(g.name), new[g.name]) for g in rows):
            notice = f"The KV cache was not saved: it no longer holds the rows needed to continue at token {pos}."
            pos, new = 0, {}
        heads = []
        for name, ranges in new.items():
            keys = saved.group(name).keys
            heads += [ChunkHead(name, a, b, keys.key(history.log, a, b)) for a, b in ranges]
        needed = {group.name: merge([*group.required(at), *group.required(pos)]) for group in rows} if pos else {}
        needed |= {g.name: g.required(at) for g in cache.groups if g.name not in needed and pos}
        return Plan(
            session_id, pos, history.head, model, spec, parts, rng, tuple(heads), needed, saved.chunks.values(),
            saved.num_bytes, tuple(saved.missing.values()), frozenset(saved.states),
            states.keep, prefixes, notice,
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

    def note_pause(self, plan: Plan) -> None:
        """Remember the state that a pause writes: the next state of the session replaces it."""
        if written := [head.b for head in plan.heads if head.group == STATE]:
            self._paused_at[plan.session_id] = max(written)

    def forget(self, session_id: str) -> None:
        self._saved.pop(session_id, None)
        self._paused_at.pop(session_id, None)


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
