"""Ranges against sets of integers, and the rule by which rows are cut."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.store.kv.chunk_format import prefix_keys
from mlxkv.store.kv.ranges import Grid, cover, covers, merge, rows_per_chunk, subtract

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)


def points(found: list[tuple[int, int]]) -> set[int]:
    return {p for a, b in found for p in range(a, b)}


@given(ranges, ranges)
def test_ranges_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    assert points(merge(a)) == points(a)
    assert all(x[1] < y[0] for x, y in pairwise(merge(a)))
    assert points(subtract(a, b)) == points(a) - points(b)
    assert covers(a, b) == (points(b) <= points(a))


@given(ranges, st.integers(0, 40), st.integers(0, 40))
def test_cover_covers(spans: list[tuple[int, int]], a: int, b: int) -> None:
    found = cover([(x, y, (x, y)) for x, y in spans], (a, b))
    if found is None:
        assert not set(range(a, b)) <= points(spans)
    else:
        assert [p for _, x, y in found for p in range(x, y)] == list(range(a, b))
        assert all(s[0] <= x < y <= s[1] for s, x, y in found)


@dataclass(frozen=True)
class Shape:
    row_bytes: int = 1000
    sinks: int = 4
    block: int = 256


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(1, 1024), (32767, 1024), (32768, 512), (131071, 256), (131072, 128), (1 << 30, 64)]
)
def test_chunks_stay_under_32_mib(row_bytes: int, rows: int) -> None:
    assert rows_per_chunk(row_bytes) == rows
    assert rows * row_bytes < 32 << 20 or rows == 64


@given(
    st.integers(0, 3000), st.integers(1, 3000), st.sampled_from([0, 4, 37, 2000]), st.sampled_from([16, 100, 256, 2048])
)
def test_a_cut_is_in_order_and_ends_at_cells(a: int, n: int, sinks: int, block: int) -> None:
    grid = Grid(Shape(sinks=sinks, block=block))  # type: ignore[arg-type]
    pieces = grid.cut(a, a + n)
    assert pieces[0][0] == a
    assert pieces[-1][1] == a + n
    assert all(x[1] == y[0] for x, y in pairwise(pieces))
    for x, y in pieces:
        assert 0 < y - x <= 1024
        assert not x < sinks < y
    # all but the end and the last whole block are cell boundaries
    assert sum(not grid.is_cut(y) for _, y in pieces) <= 2


def test_the_grid_by_example() -> None:
    grid = Grid(Shape())  # type: ignore[arg-type]
    assert grid.cut(0, 2000) == [(0, 4), (4, 1028), (1028, 1796), (1796, 2000)]
    assert grid.cut(1796, 2100) == [(1796, 2052), (2052, 2100)]


def test_a_prefix_key_depends_on_the_ids_and_not_on_the_cuts() -> None:
    ids = array("i", range(100))
    keys = prefix_keys(ids, "s", [(0, 10), (10, 50), (50, 100), (60, 100)])
    assert keys[50, 100] == prefix_keys(ids, "s", [(50, 100)])[50, 100]
    assert len(set(keys.values())) == 4
    other = array("i", [7, *range(1, 100)])
    assert prefix_keys(other, "s", [(50, 100)])[50, 100] != keys[50, 100]
    assert prefix_keys(ids, "t", [(50, 100)])[50, 100] != keys[50, 100]
    assert prefix_keys(ids[:50], "s", [(10, 50)])[10, 50] == keys[10, 50]
