"""Saving a cache, the engine thread's half: what is new, and its rows as bytes. Writing them is writer.py's half.

Chunks first, references second: a crash in between leaves a file that nothing refers to, never a reference to nothing.
Exporting rows is MLX's work, hence the engine thread; what leaves here are bytes and frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlxkv.ids import common_prefix
from mlxkv.store.arrays import to_tensors
from mlxkv.store.chunks import ChunkFiles
from mlxkv.store.format import ChunkHead, Encoded, encode_chunk, prefix_keys
from mlxkv.store.history import pack_ids
from mlxkv.store.identity import ModelIdentity, spec_id, spec_parts
from mlxkv.store.ports import KVCacheLike, LayerGroup, Range, RowViews
from mlxkv.store.ranges import SHORT, Grid, clipped, covers, without
from mlxkv.store.refs import STATE, SavedChunk, saved_chunks, saved_commits, seed
from mlxkv.store.sessions import Sessions

MOST_SHORT = 7  # chunks in a row; the next save writes their rows again, as one chunk with its own


@dataclass(frozen=True)
class Plan:
    """One save: the rows of `heads` are new, and with them the log before `pos` is on disk.

    `turn` is the head of the history the rows were computed from; `needed` are the ranges of each group without which
    one cannot go on at `pos`; `kept` are chunks that were saved before, `gone` those of them that have vanished.
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
    kept: tuple[SavedChunk, ...]
    gone: tuple[SavedChunk, ...]
    notice: str | None = None


@dataclass(frozen=True)
class Committer:
    sessions: Sessions
    chunks: ChunkFiles

    def plan(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, at_most: int | None = None
    ) -> Plan:
        """What has to be saved of the session's log, or of its first `at_most` tokens; `pos` 0 and a notice if that
        is not possible."""
        layout = cache.layout()
        parts, spec = spec_parts(layout, model.spec_extra), spec_id(layout, model.spec_extra)
        with self.sessions.database.reading() as db:
            history = self.sessions.history(db, session_id)
            mine = [
                c for c in saved_commits(db, session_id, history) if c.model_id == model.model_id and c.spec_id == spec
            ]
            saved = saved_chunks(db, mine, history)
        present, gone = [], []
        for chunk in saved:
            (present if self.chunks.has(chunk.digest, chunk.size) else gone).append(chunk)
        pos = common_prefix(history.log, pack_ids(cache.tokens)) if cache.groups else 0
        pos = pos if at_most is None else min(pos, at_most)
        for group in cache.groups:
            if group.name == STATE:  # the log may end where no state was kept
                pos = max((b for _, b in group.held() if b <= pos), default=pos)
        new = {group.name: _new(group, pos, present) for group in cache.groups}
        notice = None
        if not all(_can_stand(g, pos, present, new[g.name]) for g in cache.groups):
            notice = f"The KV cache was not saved: at token {pos} it no longer holds the rows to go on from there."
            pos, new = 0, {}
        heads = []
        for group, ranges in new.items():
            keys = prefix_keys(history.log, seed(model.model_id, spec, group), ranges)
            heads += [ChunkHead(group, a, b, keys[a, b]) for a, b in ranges]
        needed = {group.name: group.required(pos) for group in cache.groups} if pos else {}
        return Plan(session_id, pos, history.head, model, spec, parts, rng, tuple(heads), needed, tuple(present),
                    tuple(gone), notice)  # fmt: skip


def encoded(plan: Plan, cache: KVCacheLike) -> Iterator[Encoded]:
    """The plan's chunks, one at a time: memory stays flat if the caller lets go of each before the next."""
    groups = {group.name: group for group in cache.groups}
    for head in plan.heads:
        group, shapes = groups[head.group], groups[head.group].shapes(head.b - head.a)
        if isinstance(group, RowViews):
            yield encode_chunk(head, shapes, group.views(head.a, head.b))
        else:
            tensors = to_tensors(group.export_rows(head.a, head.b), shapes)
            yield encode_chunk(head, shapes, {name: [data] for name, (_, _, data) in tensors.items()})


def _new(group: LayerGroup, pos: int, saved: list[SavedChunk]) -> list[Range]:
    """The chunks to write for one group: rows held and not saved yet, cut on its grid."""
    if group.name == STATE:
        known = {(chunk.head.a, chunk.end) for chunk in saved if chunk.head.group == STATE}
        return [(a, b) for a, b in group.held() if b <= pos and (a, b) not in known]
    grid = Grid(group)
    held = clipped(group.held(), pos)
    mine = [chunk for chunk in saved if chunk.head.group == group.name]
    out: list[Range] = []
    for a, b in without(held, [(chunk.head.a, chunk.end) for chunk in mine]):
        out += grid.cut(_merge_start(a, mine, held, grid), b)
    return out


def _merge_start(a: int, saved: list[SavedChunk], held: list[Range], grid: Grid) -> int:
    """Where to start instead of `a`: with the short chunks just before it, if these are MOST_SHORT already.

    A save writes what is new. Short saves after each other would leave many small files, and taking in the last one
    every time would write the same rows again and again.
    """
    start, num_short = a, 0
    while not grid.is_cut(start):
        before = [chunk.head.a for chunk in saved if chunk.end == start == chunk.head.b]
        first = min((x for x in before if start - x < SHORT and covers(held, [(x, start)])), default=None)
        if first is None:
            break
        start, num_short = first, num_short + 1
    return start if num_short >= MOST_SHORT else a


def _can_stand(group: LayerGroup, pos: int, saved: list[SavedChunk], new: list[Range]) -> bool:
    have = [(chunk.head.a, chunk.end) for chunk in saved if chunk.head.group == group.name]
    return covers([*have, *new], group.required(pos))
