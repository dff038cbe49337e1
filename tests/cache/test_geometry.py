"""The ring's arithmetic against a simulation that moves labelled rows one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.cache.rings.geometry import Geometry

geometries = st.builds(
    lambda sinks, block, blocks, undo: Geometry(sinks, block * blocks, block, undo),
    st.integers(0, 9),
    st.integers(1, 7),
    st.integers(2, 6),
    st.integers(0, 3),
)


class Simulation:
    """Rows as a list of positions, moved as ring-cache.md says."""

    def __init__(self, g: Geometry) -> None:
        self.g, self.rows, self.offset = g, [-1] * g.rows, 0

    def write(self) -> None:
        g, p = self.g, self.offset
        full = p - g.sinks - g.window
        if full >= 0 and full % g.block == 0:
            n = full // g.block
            old, R = g.sinks + (n % (g.window // g.block - 1)) * g.block, g.block
            if g.undo:
                u = g.sinks + g.window + (n % g.undo) * R
                self.rows[u : u + R] = self.rows[old : old + R]
            self.rows[old : old + R] = self.rows[g.sinks + g.window - R : g.sinks + g.window]
        at = p if full < 0 else g.sinks + g.window - g.block + full % g.block
        self.rows[at] = p
        self.offset += 1


@given(geometries, st.integers(1, 120))
def test_every_held_position_lies_where_the_simulation_put_it(g: Geometry, tokens: int) -> None:
    sim = Simulation(g)
    for _ in range(tokens):
        sim.write()
    undo = min(g.undo, g.flushes(tokens))
    held = [(0, min(g.sinks, tokens)), (g.first_kept(tokens, undo), tokens)]
    for a, b in held:
        for s in g.segments(a, max(a, b), tokens):
            assert sim.rows[s.row : s.row + s.b - s.a] == list(range(s.a, s.b))


@given(geometries, st.integers(1, 120))
def test_the_attended_rows_are_a_prefix_and_exactly_the_visible_set(g: Geometry, tokens: int) -> None:
    sim = Simulation(g)
    for _ in range(tokens):
        sim.write()
    p = tokens - 1
    evicted = 0 if p < g.sinks + g.window else ((p - g.sinks - g.window) // g.block + 1) * g.block
    visible = [j for j in range(tokens) if j < g.sinks or j >= g.sinks + evicted]
    assert sorted(sim.rows[: g.live(tokens)]) == visible
    assert g.live(tokens) <= g.capacity
    if tokens > g.capacity:
        assert g.live(tokens) - g.sinks >= g.window - g.block + 1


@given(geometries, st.integers(0, 200))
def test_a_call_that_keeps_to_the_room_never_crosses_a_boundary(g: Geometry, offset: int) -> None:
    n = g.tokens_to_boundary(offset)
    assert n >= 1
    assert g.next_row(offset) == (g.live(offset + 1) - 1, n)
    assert g.blocks_evicted(offset) == g.blocks_evicted(offset + n - 1)
    if offset >= g.capacity:
        assert g.blocks_evicted(offset + n) == g.blocks_evicted(offset) + 1


@given(geometries, st.integers(1, 200))
def test_the_undo_area_takes_back_at_least_its_size(g: Geometry, tokens: int) -> None:
    undo = min(g.undo, g.flushes(tokens))
    floor = g.rewind_floor(tokens, undo)
    assert 0 <= floor <= tokens
    assert g.flushes(tokens) - g.flushes(floor) <= undo
    assert tokens - floor >= min(tokens, undo * g.block)


@pytest.mark.parametrize(("window", "block"), [(10, 4), (4, 4), (0, 1)])
def test_what_is_no_ring_is_refused(window: int, block: int) -> None:
    with pytest.raises(ValueError, match="not a ring"):
        Geometry(0, window, block, 1)
