"""Token ids: how far two lists of them agree. Pure; any thread."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids are equal: halving on whole compares, since Python loops over 100,000 ids are slow."""
    low, high = 0, min(len(a), len(b))
    if isinstance(a, array) and isinstance(b, array):
        x, y = memoryview(a), memoryview(b)
    else:
        x, y = list(a), list(b)
    while low < high:
        middle = (low + high + 1) // 2
        if x[low:middle] == y[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
