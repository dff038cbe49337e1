"""Token ids: how far two lists agree, packed or not."""

from array import array
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.token_ids import common_prefix

ids = st.lists(st.integers(0, 2), max_size=40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [list, tuple, lambda x: array("i", x)])
@given(a=ids, b=ids)
def test_the_common_prefix_is_all_that_agrees(
    kind: Callable[[list[int]], Sequence[int]], a: list[int], b: list[int]
) -> None:
    for n in (common_prefix(kind(a), kind(b)), common_prefix(kind(a), b)):
        assert a[:n] == b[:n]
        assert n == min(len(a), len(b)) or a[n] != b[n]


def test_one_that_begins_with_the_other() -> None:
    assert common_prefix(range(1000), range(900)) == 900
