"""Token ids: how far two lists of them agree. Pure; any thread."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def common_prefix(a: Sequence[int] | str, b: Sequence[int] | str) -> int:
    """How many leading ids, or characters, are equal.

    Halving on whole compares, since Python loops over 100,000 ids are slow.
    """
    low, high = 0, min(len(a), len(b))
    if isinstance(a, array) and isinstance(b, array):
        x, y = memoryview(a), memoryview(b)
    elif isinstance(a, str) and isinstance(b, str):
        x, y = a, b
    else:
        x, y = list(a), list(b)
    while low < high:
        middle = (low + high + 1) // 2
        if x[low:middle] == y[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
