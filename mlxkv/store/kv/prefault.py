"""Memory for rows about to be read, asked of the kernel in long runs: page by page, as rows are written, getting it
takes longer than the reading.

Linux 5.14 or newer; elsewhere, and where the kernel declines, nothing happens and the pages come one by one. No MLX;
any thread.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence

from mlxkv.store.kv.protocols import PlacesLike

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE: pages are there and writable afterwards; what they hold stays
_BETWEEN = 256 << 10  # bytes; so few are cheaper to have than to leave out


def runs(places: Sequence[PlacesLike]) -> Iterator[memoryview]:
    """Where the rows that are wanted of any of `places`, all in the same tensors, lie: from the first to the last of
    each head, and heads as one where little is between them."""
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
    """Ask for the whole pages of a writable `run`. The GIL is released meanwhile."""
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
