"""Arithmetic on position ranges: subtract saved ones, cut new ones into chunks, cover wanted ones with chunks.

Pure integers; knows no files and no rows. Any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from mlxkv.store.kv.protocols import LayerGroup, Range

MAX_ROWS = 1024  # of a chunk
SHORT = 64  # rows; chunks shorter than this are merged once there are too many of them
MAX_CHUNK = 32 << 20  # bytes

T = TypeVar("T")


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The union of `ranges`: ascending, disjoint, without empty ones."""
    out: list[Range] = []
    for a, b in sorted(ranges):
        if a >= b:
            continue
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def clip(ranges: Iterable[Range], end: int) -> list[Range]:
    return merge((a, min(b, end)) for a, b in ranges)


def subtract(ranges: Iterable[Range], minus: Iterable[Range]) -> list[Range]:
    out = merge(ranges)
    for c, d in merge(minus):
        out = [part for a, b in out for part in ((a, min(b, c)), (max(a, d), b)) if part[0] < part[1]]
    return out


def covers(ranges: Iterable[Range], wanted: Iterable[Range]) -> bool:
    return not subtract(wanted, ranges)


def rows_per_chunk(row_bytes: int) -> int:
    """The largest power of two in 64..1024 that keeps a chunk under 32 MiB."""
    rows = MAX_ROWS
    while rows > SHORT and rows * row_bytes >= MAX_CHUNK:
        rows //= 2
    return rows


class Grid:
    """Positions where a group's chunks may end: multiples of the chunk size beyond the sinks, so that a prefix is cut
    the same in every session, and the last whole block if both sides are long enough."""

    def __init__(self, group: LayerGroup) -> None:
        self.sinks, self.block = group.sinks, max(1, group.block)
        self.rows = rows_per_chunk(group.row_bytes)
        self.unit = self.block * (self.rows // self.block) or self.rows

    def next_cut(self, a: int) -> int:
        """The first boundary of a grid cell after `a`; one is the end of the sinks."""
        if a < self.sinks:
            return min(self.sinks, (a // self.rows + 1) * self.rows)
        return self.sinks + ((a - self.sinks) // self.unit + 1) * self.unit

    def is_cut(self, a: int) -> bool:
        return a == 0 or self.next_cut(a - 1) == a

    def cut(self, a: int, b: int) -> list[Range]:
        """Cut [a, b) into chunks: grid cells, and separately a long tail that is not a whole block yet."""
        out: list[Range] = []
        whole = self.sinks + (b - self.sinks) // self.block * self.block if b > self.sinks else b
        while a < b:
            end = min(b, self.next_cut(a))
            if whole - a >= SHORT and end - whole >= SHORT:
                end = whole
            out.append((a, end))
            a = end
        return out


def cover(spans: Sequence[tuple[int, int, T]], wanted: Range) -> list[tuple[T, int, int]] | None:
    """The fewest spans that cover `wanted`, as (item, from, to) in order; None if they leave a gap."""
    out: list[tuple[T, int, int]] = []
    a, b = wanted
    while a < b:
        best = max((s for s in spans if s[0] <= a < s[1]), key=lambda s: s[1], default=None)
        if best is None:
            return None
        out.append((best[2], a, min(b, best[1])))
        a = best[1]
    return out
