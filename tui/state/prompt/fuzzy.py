"""Fuzzy matching of commands, files, models and chats. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nsmallest
from typing import TypeVar

T = TypeVar("T")
BREAKS = frozenset("/_-. ")


def rank(typed: str, text: str) -> tuple[int, int, int] | None:
    """Rank of a match, smaller is better; None if `text` lacks the letters of `typed` in order. Both are lower case.

    Best is a prefix, then a match at the start of a word, any substring, and scattered letters by their spread.
    """
    if not typed:
        return (0, 0, len(text))
    at = text.find(typed)
    if at == 0:
        return (0, 0, len(text))
    if at > 0:
        while at > 0 and text[at - 1] not in BREAKS and (later := text.find(typed, at + 1)) > 0:
            at = later  # a later one may start a word
        return (1 if text[at - 1] in BREAKS else 2, at, len(text))
    at = start = text.find(typed[0])
    for letter in typed[1:]:
        at = text.find(letter, at + 1)
        if at < 0:
            return None
    return (3, at - start, len(text)) if start >= 0 else None


def best(typed: str, items: Iterable[T], names: Callable[[T], Iterable[str]], limit: int = 50) -> list[T]:
    """Items with a matching name, best first; ties, and all items if nothing is typed, keep their order."""
    typed = typed.casefold()
    if not typed:
        return [item for item, _ in zip(items, range(limit), strict=False)]
    ranked = []
    for index, item in enumerate(items):
        ranks = [found for name in names(item) if (found := rank(typed, name.casefold())) is not None]
        if ranks:
            ranked.append((min(ranks), index, item))
    return [item for _, _, item in nsmallest(limit, ranked, key=lambda entry: entry[:2])]
