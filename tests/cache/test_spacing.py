"""The rule by which checkpoints are dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.cache.recurrent.spacing import SLACK, needed, superfluous


def worst(kept: set[int], targets: list[int], end: int) -> float:
    """Tokens prefilled again as a share of what the rule allows, for the worst target."""
    back = ((t, max((p for p in kept if p <= t), default=0)) for t in targets)
    return max(((t - at) / ((end - t) / 2 + SLACK) for t, at in back), default=0.0)


@given(
    st.sets(st.integers(1, 4000), min_size=1, max_size=12),
    st.integers(1, 8),
    st.sets(st.integers(1, 4000), max_size=2),
)
def test_what_is_kept(positions: set[int], most: int, pinned: set[int]) -> None:
    end = max(positions)
    dropped = superfluous(positions, end, most, pinned, sorted(positions))
    kept = positions - dropped
    assert dropped <= positions
    assert end in kept
    assert pinned & positions <= kept
    assert len(kept) <= max(most, len((pinned & positions) | {end}))
    if len(positions) <= most:
        assert not dropped


@given(st.sets(st.integers(1, 4000), min_size=2, max_size=9))
def test_what_is_needed_obeys_the_rule_and_not_one_can_be_spared(positions: set[int]) -> None:
    end, targets = max(positions), sorted(positions)
    kept = needed(positions, end, len(positions), (), targets)
    assert worst(kept, targets, end) <= 1
    assert all(worst(kept - {p}, targets, end) > 1 for p in kept - {end})


@pytest.mark.parametrize(
    ("positions", "most", "dropped"),
    [
        ([100, 200, 300, 400], 4, set()),
        ([100, 200, 300, 400], 3, {100}),  # the least needed: 100 tokens again where 278 are allowed
        ([1000, 2000, 3000], 2, {1000}),  # the rule needs all: the oldest
    ],
)
def test_the_least_needed_goes_first_then_the_oldest(positions: list[int], most: int, dropped: set[int]) -> None:
    assert superfluous(positions, positions[-1], most, (), positions) == dropped
