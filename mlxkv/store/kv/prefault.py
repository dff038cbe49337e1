"""Prefault memory before rows are read into it: page faults one by one take longer than the reading.

Linux 5.14 or newer; elsewhere, and if the kernel declines, nothing happens and pages fault one by one. No MLX; any
thread.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence

from mlxkv.cache.interchange import Places

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE: makes pages present and writable; their contents stay
_BETWEEN = 256 << 10  # bytes; prefaulting so few more is cheaper than another call


def runs(places: Sequence[Places]) -> Iterator[memoryview]:
    """The memory of the rows wanted by any of `places`, all in the same tensors: one run per head, from its first to
    its last row, or one run for all heads where little is between them."""
    spans = [(row, row + b - a) for at in places for a, b, row in at.spans if row is not None]
    if not spans:
        return
    low, high = min(spans)[0], max(end for _, end in spans)
    for x in places[0].tensors.values():
        if (x.rows - (high - low)) * x.row_bytes <= _BETWEEN:
            yield x.data[low * x.row_bytes : ((x.heads - 1) * x.rows + high) * x.row_bytes]
        else:
            for first in range(0, x.heads * x.rows, x.rows):
                yield x.data[(first + low) * x.row_bytes : (first + high) * x.row_bytes]


def prefault(run: memoryview) -> None:
    """Prefault the whole pages of a writable `run`. Releases the GIL meanwhile."""
    advise = _madvise()
    if advise is None:
        return
    begin = ctypes.addressof(ctypes.c_char.from_buffer(run))
    start, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + len(run)) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        advise(start, end - start, _POPULATE_WRITE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
