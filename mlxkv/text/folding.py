"""Text compared as people read it: without regard to case, width, accents that were not asked for, and line ends.

`ｶﾞｲﾄﾞ` is `ガイド`, `Ｃ＋＋` is `c++`, and a Hangul syllable is what its letters spell; a place that is found
is one of the text as it is. Pure; any thread.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[int, int]

_JOINING = re.compile("[\u1160-\u11ff\u3131-\u318e\uff9e\uff9f\uffa0-\uffdc]")
"""Letters that NFKC may join to those before them, beside combining marks."""

_ACCENTS = re.compile("[\u0300-\u036f]+")


def folded(text: str, accents: bool = True) -> str:
    """`text` for comparing. Not `accents`: without those of Latin, Greek and Cyrillic letters."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text).casefold()
    if not accents:
        text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", text)


def origins(line: str, change: Callable[[str], str]) -> list[Span]:
    """For each character of `change(line)` the span of `line` that it comes from; `change` treats each letter with its
    marks by itself."""
    if line.isascii():
        return [(i, i + 1) for i in range(len(line))]
    out: list[Span] = []
    start = 0
    for end in range(1, len(line) + 1):
        if end == len(line) or not _joins(line[start:end], line[end]):
            out += [(start, end)] * len(change(line[start:end]))
            start = end
    return out


def _joins(piece: str, letter: str) -> bool:
    if unicodedata.category(letter)[0] == "M":
        return True
    if not _JOINING.match(letter):
        return False
    whole, *parts = (unicodedata.normalize("NFKC", text) for text in (piece + letter, piece, letter))
    return whole != "".join(parts)


@dataclass(frozen=True)
class Wanted:
    """Words in this order, with whatever space between them."""

    pattern: re.Pattern[str]
    accents: bool

    @classmethod
    def of(cls, words: str) -> Wanted | None:
        """None: there is nothing to look for."""
        accents = folded(words) != folded(words, accents=False)
        parts = [re.escape(part) for part in folded(words, accents).split()]
        return cls(re.compile(r"\s+".join(parts)), accents) if parts else None

    def is_in(self, text: str) -> bool:
        return self.pattern.search(folded(text, self.accents)) is not None

    def places(self, text: str) -> Iterator[Span]:
        """Where they stand in `text`, ascending."""
        found = [match.span() for match in self.pattern.finditer(folded(text, self.accents))]
        if not found:
            return
        spans = origins(text, lambda piece: folded(piece, self.accents))
        for start, end in found:
            yield spans[start][0], spans[end - 1][1]
