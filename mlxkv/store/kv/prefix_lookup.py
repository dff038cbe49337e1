"""Find another session's saved rows with the same prefix as a prompt: the same system prompt, the same document.

Chunks are found by their prefix keys, which identify model, cache layout and all ids before them; then the ids of their
session are compared as well. Reads inside the caller's transaction. Engine thread.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mlxkv.errors import StoreError
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.kv.chunk_format import prefix_keys
from mlxkv.store.kv.commits import SavedChunk, saved_chunks, saved_commits, seed
from mlxkv.store.kv.protocols import LayerGroup
from mlxkv.store.kv.ranges import MAX_ROWS, covers, merge
from mlxkv.store.records import is_chunk
from mlxkv.token_ids import common_prefix

_MAX_SOURCES = 4  # sessions that share the same chunk; the one with the longest common prefix is taken


@dataclass(frozen=True)
class Source:
    """Chunks of a session whose rows [head.a, end) are those of the first `limit` ids of a prompt."""

    chunks: tuple[SavedChunk, ...]
    limit: int


def find_source(
    db: sqlite3.Connection, sessions: Sessions, model_id: str, spec_id: str, groups: Sequence[LayerGroup],
    ids: array[int], exclude: str | None, at_least: int = 0,
) -> Source | None:  # fmt: skip
    """The session, other than `exclude`, with the longest saved prefix of `ids` that can be restored, if it has
    `at_least` ids."""
    best, most = None, 0
    names = [group.name for group in groups]
    for session_id in _candidates(db, model_id, spec_id, names, ids, exclude, at_least):
        try:
            history = sessions.history(db, session_id, fresh=True)  # it is not open here
        except StoreError:
            continue  # damaged or just deleted: its rows cannot be used
        common = common_prefix(history.log, ids)
        commits = [c for c in saved_commits(db, session_id, history) if (c.model_id, c.spec_id) == (model_id, spec_id)]
        limit = max((min(c.valid, common) for c in commits), default=0)
        if limit > most:
            saved = saved_chunks(db, commits, history)
            chunks = tuple(replace(c, end=min(c.end, limit)) for c in saved if c.head.a < limit)
            if (tokens := next(restorable_positions(groups, chunks, limit), 0)) > most:
                best, most = Source(chunks, limit), tokens
    return best if most >= at_least else None


def restorable_positions(groups: Sequence[LayerGroup], chunks: Sequence[SavedChunk], limit: int) -> Iterator[int]:
    """The positions up to `limit` at which every group can be resumed, the last one first.

    Only `limit` and the ends of saved ranges are candidates: the first row required moves down with the position, so
    that only a position before a gap avoids it.
    """
    spans = {g.name: [(c.head.a, c.end) for c in chunks if c.head.group == g.name] for g in groups}
    have = {name: merge(ranges) for name, ranges in spans.items()}
    for p in sorted({limit, *(b for ranges in spans.values() for _, b in ranges if b < limit)}, reverse=True):
        if p > 0 and all(covers(have[g.name], g.required(p)) for g in groups):
            yield p


def _candidates(
    db: sqlite3.Connection, model_id: str, spec_id: str, groups: Sequence[str], ids: array[int],
    exclude: str | None, at_least: int,
) -> list[str]:  # fmt: skip
    """Sessions that refer to the chunk with the longest prefix of `ids`, newest first."""
    least = min(at_least, len(ids) - MAX_ROWS)  # a longer prefix has a chunk that ends there, or a little before
    saved: dict[str, list[tuple[int, int, str, str]]] = {}
    for digest, size, group, a, b, key in db.execute(
        "SELECT digest, size, grp, a, b, prefix_key FROM chunk WHERE spec_id = ? AND b <= ? AND b >= ?",
        (spec_id, len(ids), least),
    ):
        if is_chunk(digest, size, group, a, b, key):
            saved.setdefault(group, []).append((a, b, key, digest))
    found: list[tuple[int, str]] = []
    for group in groups:
        keys = prefix_keys(ids, seed(model_id, spec_id, group), {(a, b) for a, b, *_ in saved.get(group, ())})
        found += [(b, digest) for a, b, key, digest in saved.get(group, ()) if keys[a, b] == key]
    out: list[str] = []
    for _, digest in sorted(found, reverse=True):
        for (session_id,) in db.execute(
            "SELECT DISTINCT c.session FROM kv_ref r JOIN kv_commit c ON c.id = r.kv_commit"
            " JOIN session s ON s.id = c.session WHERE r.chunk = ? AND NOT s.flags & 1"  # imported rows are not shared
            " ORDER BY c.session DESC LIMIT ?",
            (digest, _MAX_SOURCES + 1),
        ):
            if session_id != exclude and session_id not in out:
                out.append(session_id)
        if len(out) >= _MAX_SOURCES:
            break
    return out[:_MAX_SOURCES]
