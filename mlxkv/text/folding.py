"""Folds text for searching: ignores case, width, line ends, and accents if the query has none.

`ｶﾞｲﾄﾞ` equals `ガイド`, `Ｃ＋＋` equals `c++`, and a Hangul syllable equals its letters; matches are spans of the
original text. Pure; any thread.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[int, int]

_JOINING = re.compile("[\u1160-\u11ff\u3131-\u318e\uff9e\uff9f\uffa0-\uffdc]")
"""Letters, other than combining marks, that NFKC may join to those before them."""

_ACCENTS = re.compile("[\u0300-\u036f]+")


def folded(text: str, accents: bool = True) -> str:
    """`text` for comparison; without `accents` those of Latin, Greek and Cyrillic letters are removed."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text).casefold()
    if not accents:
        text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", text)


def origins(line: str, change: Callable[[str], str]) -> list[Span]:
    """The span of `line` behind each character of `change(line)`; each letter is changed with its marks."""
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
    """A query: words in this order, with any whitespace between them."""

    pattern: re.Pattern[str]
    accents: bool

    @classmethod
    def of(cls, words: str) -> Wanted | None:
        """None if `words` is empty."""
        accents = folded(words) != folded(words, accents=False)
        parts = [re.escape(part) for part in folded(words, accents).split()]
        return cls(re.compile(r"\s+".join(parts)), accents) if parts else None

    def is_in(self, text: str) -> bool:
        return self.pattern.search(folded(text, self.accents)) is not None

    def places(self, text: str) -> Iterator[Span]:
        """Spans of the matches in `text`, ascending."""
        found = [match.span() for match in self.pattern.finditer(folded(text, self.accents))]
        if not found:
            return
        spans = origins(text, lambda piece: folded(piece, self.accents))
        for start, end in found:
            yield spans[start][0], spans[end - 1][1]
