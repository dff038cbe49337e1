"""Prefix keys of a log that grows: what a chunk's rows were computed from, at the price of the ids since the last mark.

`format.prefix_keys` says what a key is. Pure; any thread.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right

EVERY = 1024  # ids between two marks


class PrefixKeys:
    """Keys by one `seed`. Marks are hashes of the log's beginnings; `cut` when the log no longer begins so."""

    def __init__(self, seed: str) -> None:
        self._ends = [0]
        self._marks = [hashlib.blake2b(seed.encode(), digest_size=16)]

    def cut(self, length: int) -> None:
        """Only the first `length` ids are what they were."""
        keep = bisect_right(self._ends, length)
        del self._ends[keep:], self._marks[keep:]

    def key(self, log: array[int], a: int, b: int, shared: int | None = None) -> str:
        """Of the rows [a, b) of `log`, whose first `shared` ids (all by default) are those of the log it is about."""
        view = memoryview(log).cast("B")
        most = b if shared is None else min(b, shared)
        while self._ends[-1] + EVERY <= most:
            end, mark = self._ends[-1], self._marks[-1].copy()
            mark.update(view[4 * end : 4 * (end + EVERY)])
            self._ends.append(end + EVERY)
            self._marks.append(mark)
        at = bisect_right(self._ends, most) - 1
        h = self._marks[at].copy()
        h.update(view[4 * self._ends[at] : 4 * b])
        h.update(a.to_bytes(8, "little") + b.to_bytes(8, "little"))
        return h.hexdigest()
