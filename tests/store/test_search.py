"""Full-text search: what is found, in which order, and that no query can be more than words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.config import Folders
from mlxkv.store import SessionStore, TurnRecord
from tests.store.fake import model

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A fox, a fox, and once more a fox: foxes everywhere.",
    "brown dogs and quick cats",
    "Ein Größenwahn über Äpfel und naïve Cafés",
    "今天天气很好，我们去公园散步。",
    "print(values[0]) # don't panic AND stay",
    'He said "to be or not to be" and left',
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionStore]:
    home = tmp_path_factory.mktemp("search")
    with SessionStore.open(Folders(*(home / name for name in ("config", "data", "cache", "state")))) as opened:
        for i, text in enumerate(TEXTS):
            session_id = opened.create(f"chat {i}", model())
            opened.add_turn(session_id, TurnRecord("user", text, (i,)))
        yield opened


def found(store: SessionStore, query: str, limit: int = 50) -> list[int]:
    return [int(hit.title.split()[1]) for hit in store.search(query, limit)]


@pytest.mark.parametrize(
    ("query", "chats"),
    [
        ("fox", [1, 0]),  # more often, in a text as long: better
        ("brown quick", [0, 2]),
        ("quick brown", [0, 2]),
        ('"quick brown"', [0]),
        ('"brown quick"', []),
        ('"not to be', [6]),
        ("everywh", [1]),
        ('"everywh"', []),
        ("everywh fox", []),  # only the last word may be a beginning
        ("größenwahn", [3]),
        ("GROSSENWAHN", []),
        ("grossenwahn naive", []),
        ("cafes apfel", [3]),  # marks above letters do not count
        ("公园", [4]),
        ("天气 散步", [4]),
        ("公园 散步 fox", []),
        ("don't", [5]),
        ("AND stay", [5]),
        ("fox OR dog", []),
        ("fox NOT dog", []),
        ("values[0]", [5]),
        ("", []),
        ("   ", []),
        ('"', []),
        ("*", []),
    ],
)
def test_what_is_found(store: SessionStore, query: str, chats: list[int]) -> None:
    assert sorted(found(store, query)) == sorted(chats)
    if query == "fox":
        assert found(store, query) == chats


@pytest.mark.parametrize(
    ("query", "marked"), [("lazy", "[lazy]"), ("qui", "[quick]"), ("公园", "[公园]"), ('"to be or"', "[to be or]")]
)
def test_the_match_is_marked(store: SessionStore, query: str, marked: str) -> None:
    assert marked in "".join(hit.snippet for hit in store.search(query))


def test_the_limit_holds(store: SessionStore) -> None:
    assert len(found(store, "fox", 1)) == 1


@given(st.text(alphabet="ab\"*()^:-+{}.,\\'%_\0 \nANDORNEAR天", max_size=40))
def test_no_query_is_more_than_words(store: SessionStore, query: str) -> None:
    store.search(query)


@pytest.mark.parametrize(
    "query",
    ['"', '""', 'fox" OR 1', "fox*", "-fox", "^fox", "text:fox", "NEAR(fox dog, 2)", "fox\0dog",
     "'; DROP TABLE turn; --", "fox AND", "(fox", "{fox}", "a" * 100_000, "fox " * 10_000, "%天%"],
)  # fmt: skip
def test_operators_and_quotes_are_harmless(store: SessionStore, query: str) -> None:
    store.search(query)
    assert found(store, "fox") == [1, 0]
