"""PromptLookup against a search through the whole text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mlxkv.inference.drafting.lookup import GRAM, MAX_DRAFT, PromptLookup


def longest_match(ids: Sequence[int]) -> int:
    """The longest run at the end that occurs before, by trying each place."""
    found = 0
    for at in range(1, len(ids)):
        n = 0
        while n < at and ids[at - 1 - n] == ids[len(ids) - 1 - n] >= 0:
            n += 1
        found = max(found, n)
    return found if found >= GRAM else 0


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_a_search_finds(seed: int) -> None:
    rng = random.Random(seed)
    ids = [rng.randrange(6) for _ in range(60)]
    lookup = PromptLookup(ids[:20])
    for end in range(20, len(ids)):
        lookup.add(ids[end])
        text = ids[: end + 1]
        match, best = lookup.match(), longest_match(text)
        assert match <= best
        assert (match > 0) == (best > 0)
        assert match == best or text.count(text[-1]) > 8  # only the latest occurrences are compared
        draft = lookup.propose(1)
        if match:
            assert any(
                text[i : i + match] + draft == text[-match:] + text[i + match : i + match + 1] for i in range(end)
            )


def test_a_draft_continues_the_longest_match() -> None:
    ids = [1, 2, 3, 4, 5, 9, 3, 4, 5, 8, 7, 1, 2, 3, 4, 5]
    lookup = PromptLookup(ids)
    assert lookup.match() == 5
    assert lookup.propose(3) == [9, 3, 4]  # not 8, which followed the shorter and later 3, 4, 5


def test_of_equal_matches_the_latest_counts() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3])
    assert lookup.match() == 3
    assert lookup.propose(1) == [5]


def test_what_repeats_is_continued_beyond_the_end() -> None:
    lookup = PromptLookup([7, 1, 2, 1, 2, 1, 2])
    assert lookup.match() == 4
    assert lookup.propose(5) == [1, 2, 1, 2, 1]
    assert len(lookup.propose(100)) == MAX_DRAFT


def test_ends_and_imported_tokens_are_not_proposed() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 99, 5, 1, 2, 3], ends=[99])
    assert lookup.match() == 3
    assert lookup.propose(5) == [4]
    imported = PromptLookup([-1, -1, -1, -1, -1, -1])
    assert imported.match() == 0
    assert imported.propose(5) == []
    mixed = PromptLookup([1, 2, 3, -1, 5, 1, 2, 3])
    assert mixed.match() == 3
    assert mixed.propose(5) == []


def test_a_match_grows_with_each_token_that_it_predicted() -> None:
    lookup = PromptLookup([*range(20), *range(3)])
    found = []
    for token in range(3, 12):
        found.append(lookup.match())
        lookup.add(token)
    assert found == list(range(3, 12))
    lookup.add(1000)
    assert lookup.match() == 0


def test_a_long_prompt_is_indexed_in_parts() -> None:
    """A few milliseconds each, while the model computes."""
    ids = [*range(30_000), 5, 6, 7]
    lookup = PromptLookup(ids)
    waits = 0
    while not lookup.match():
        waits += 1
        assert waits < 10
    assert waits > 1
    assert lookup.propose(2) == [8, 9]


def test_only_the_end_of_a_very_long_prompt_is_indexed() -> None:
    lookup = PromptLookup([1, 2, 3, 4, *range(10, 200_000), 1, 2, 3])
    for _ in range(100):
        assert lookup.match() == 0
    lookup.add(199_000)
    lookup.add(199_001)
    lookup.add(199_002)
    assert lookup.match() == 3
    assert lookup.propose(1) == [199_003]
