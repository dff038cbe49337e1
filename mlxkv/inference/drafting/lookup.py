"""PromptLookup: drafts the tokens that followed where the end of the text occurred before, in prompt or reply.

An index of runs of three tokens, each linked to its previous occurrence, so that adding a token and looking one up take
constant time. Knows no model; pure Python.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from mlxkv.token_ids import packed

MAX_DRAFT = 16  # tokens
GRAM = 3  # tokens that must agree
_CANDIDATES = 8  # most recent occurrences that are compared
_LONGEST = 32  # tokens compared; longer matches are equally good
_INDEXED_AT_ONCE = 4096  # tokens; milliseconds, while the model computes
_MOST_INDEXED = 1 << 17  # last tokens of a prompt


class PromptLookup:
    """The tokens of a prompt and its reply so far.

    Args:
        ids: the prompt; ids below zero (imported tokens, which have none) are never proposed.
        ends: ids that are never proposed: a reply ends there.
    """

    def __init__(self, ids: Sequence[int], ends: Collection[int] = ()) -> None:
        self._ids: array[int] = packed(ids)[:]
        self._ends = frozenset(ends)
        self._last: dict[tuple[int, ...], int] = {}  # the newest position after each run
        # For each position, the one before with the same run before it; -1: none.
        self._earlier = array("i", [-1]) * max(len(self._ids) - _MOST_INDEXED, 0)
        self._at = -1  # the position that the last `match` found, which continues with each token that it predicted
        self._length = 0
        self._looked = -1  # len(ids) at the last `match`

    @property
    def ids(self) -> Sequence[int]:
        """All tokens so far; do not change them."""
        return self._ids

    def add(self, token: int) -> None:
        if self._at >= 0 and self._looked == len(self._ids):
            predicted = self._ids[self._at] if self._at < len(self._ids) else -1
            self._at, self._length = (self._at + 1, self._length + 1) if token == predicted else (-1, 0)
        else:
            self._at = -1
        self._ids.append(token)
        self._looked = len(self._ids)

    def match(self) -> int:
        """The number of tokens at the end that occurred before, at least GRAM; 0 if they did not."""
        self._index()
        ids, end = self._ids, len(self._ids)
        if len(self._earlier) <= end:
            return 0
        best, length = self._at, self._length
        at = self._earlier[end]
        for _ in range(_CANDIDATES):
            if at < 0 or length >= _LONGEST:
                break
            # A longer match agrees where the best one so far ends.
            if at > length and ids[at - 1 - length] == ids[end - 1 - length]:
                common = _common_suffix(ids, at, end)
                best, length = (at, common) if common > length else (best, length)
            at = self._earlier[at]
        self._at, self._length, self._looked = best, length, end
        return length if best >= 0 else 0

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the last `match`; what repeats without end is continued likewise."""
        draft: list[int] = []
        if self._at < 0:
            return draft
        for i in range(min(most, MAX_DRAFT)):
            beyond = self._at + i - len(self._ids)
            token = self._ids[self._at + i] if beyond < 0 else draft[beyond]
            if token < 0 or token in self._ends:
                break
            draft.append(token)
        return draft

    def _index(self) -> None:
        """Index the runs that end at tokens added since the last time; some of a long prompt each time."""
        ids, last, earlier = self._ids, self._last, self._earlier
        for _ in range(len(earlier), min(GRAM, len(ids) + 1)):
            earlier.append(-1)
        start = len(earlier) - GRAM  # of the first run not indexed yet
        new = ids[max(start, 0) : start + _INDEXED_AT_ONCE]
        for at, run in enumerate(zip(*(new[i:] for i in range(GRAM)), strict=False), len(earlier)):
            earlier.append(last.get(run, -1) if min(run) >= 0 else -1)
            last[run] = at


def _common_suffix(ids: Sequence[int], a: int, b: int) -> int:
    """How many tokens before positions `a` < `b` are equal, up to _LONGEST."""
    n = 0
    while n < min(a, _LONGEST) and ids[a - 1 - n] == ids[b - 1 - n]:
        n += 1
    return n
