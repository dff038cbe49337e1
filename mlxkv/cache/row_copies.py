"""Copies rows of one cache into another that pins other tokens. Knows no text. On the MLX thread.

Rows have the same values in both while nothing was evicted: the next tokens attend all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlxkv.cache.groups.ring_group import RingGroup
from mlxkv.cache.prompt_cache import PromptCache


@dataclass(frozen=True)
class RowCopies:
    """Rows of the tokens `ids`, by the name of their group."""

    ids: tuple[int, ...]
    rows: dict[str, dict[str, mx.array]]


def export(cache: PromptCache) -> RowCopies:
    """All rows; none if the cache has evicted tokens, keeps other than rows, or has only a part of each."""
    n = cache.offset if cache.peers is None else 0
    rings = _rings(cache, n) if n else ()
    return RowCopies(tuple(cache.log), {ring.name: ring.export_rows(0, n) for ring in rings})


def restore(cache: PromptCache, copies: RowCopies) -> None:
    """Continue an empty cache from these rows; it stays empty if it would have evicted some of them."""
    n = len(copies.ids)
    if not copies.rows or not (rings := _rings(cache, n)):
        return
    cache.begin_restore(copies.ids)
    for ring in rings:
        ring.import_rows(0, n, copies.rows[ring.name])
    cache.finish_restore()


def _rings(cache: PromptCache, offset: int) -> list[RingGroup]:
    """All groups of the cache if they hold every row at `offset`, else none."""
    rings = [g for g in cache.groups if isinstance(g, RingGroup) and not g.geometry.flushes(offset)]
    return rings if len(rings) == len(cache.groups) else []
