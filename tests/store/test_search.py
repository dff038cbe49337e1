"""Full-text search: what is found, in which order, and that no query can be more than words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.config import Folders
from mlxkv.protocol.status import SearchHit
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
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
            session_id = opened.sessions.create(f"chat {i}", model())
            opened.add_turn(session_id, TurnRecord("user", text, (i,)))
        yield opened


def found(store: SessionStore, query: str, limit: int = 50) -> list[int]:
    return [int(hit.title.split()[1]) for hit in store.sessions.search(query, limit)]


@pytest.mark.slow
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
        ('"quick bro"', [0]),  # no word, and so a part of the text
        ("everywh fox", [1]),  # only the last word may be a beginning; else parts of words are found
        ("ox ats", []),
        ("wher", [1]),
        ("größenwahn", [3]),
        ("GROSSENWAHN", [3]),
        ("grossenwahn naive", [3]),
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
        ('"', [6]),
        ("*", []),
        ("[0]", [5, 0]),  # the sign first, then the word alone
        (")", [5]),
        ("dog.", [0]),
        ("fox,", [1, 0]),
    ],
)
def test_what_is_found(store: SessionStore, query: str, chats: list[int]) -> None:
    assert sorted(found(store, query)) == sorted(chats)
    if query in ("fox", "[0]", "fox,"):
        assert found(store, query) == chats


def marked(hit: SearchHit) -> list[str]:
    assert list(hit.marks) == sorted(hit.marks)
    assert "\n" not in hit.snippet
    return [hit.snippet[a:b] for a, b in hit.marks]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("lazy", ["lazy"]),
        ("qui", ["quick"]),
        ("公园", ["公园"]),
        ("散步 天气", ["天气", "散步"]),
        ('"to be or"', ["to be or"]),
        ("values", ["values"]),  # in a text that has brackets
        ("naive cafes", ["naïve", "Cafés"]),
    ],
)
def test_what_was_looked_for_is_marked(store: SessionStore, query: str, expected: list[str]) -> None:
    hit = store.sessions.search(query)[0]
    assert marked(hit) == expected
    assert hit.snippet.strip("…") in TEXTS[found(store, query)[0]]


@pytest.fixture
def own(folders: Folders) -> Iterator[SessionStore]:
    with SessionStore.open(folders) as opened:
        yield opened


def told(store: SessionStore, title: str, *texts: str) -> str:
    session = store.sessions.create(title, model())
    for i, text in enumerate(texts):
        store.add_turn(session, TurnRecord("user", text, (i,)))
    return session


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("a [needle] in [hay]", "needle", ["needle"]),
        ("<needle> <b>needle</b> \x02needle\x03", "needle", ["needle"] * 3),
        ("İİİİ 公园 İ", "公园", ["公园"]),  # lower case has more letters there
        ("İ ISTANBUL 公园", "istanbul 公园", ["ISTANBUL", "公园"]),
        ("one\n\n\ttwo three\u2028four", '"two three four"', ["two three four"]),
        ("one\n\n\ttwo\n é three\nfour", '"two é three four"', ["two é three four"]),
    ],
)
def test_marks_are_of_the_text_whatever_it_says(own: SessionStore, text: str, query: str, expected: list[str]) -> None:
    told(own, "x", text)
    (hit,) = own.sessions.search(query)
    assert marked(hit) == expected
    assert hit.snippet.split() == text.split()


def test_titles_are_found_too_and_come_first(own: SessionStore) -> None:
    named = told(own, "Größere [Reise] nach Porto", "Which train?")
    said = told(own, "trains", "the train to Porto")
    hits = own.sessions.search("port")
    assert [(h.session_id, h.turn, h.role, marked(h)) for h in hits] == [
        (named, None, "title", ["Porto"]),
        (said, 0, "user", ["Porto"]),
    ]
    assert hits[0].snippet == "Größere [Reise] nach Porto"
    assert [h.session_id for h in own.sessions.search("großere reise")] == [named]
    assert [h.session_id for h in own.sessions.search('"nach porto"')] == [named]
    assert own.sessions.search("porto which") == ()  # the words stand together, in a title or in a turn
    assert len(own.sessions.search("port", 1)) == 1
    own.sessions.rename(named, "公园散步")
    assert [(h.session_id, h.role, marked(h)) for h in own.sessions.search("散步")] == [(named, "title", ["散步"])]
    own.delete(named)
    assert own.sessions.search("散步") == ()


def test_a_title_that_repeats_how_the_chat_begins_is_no_hit_of_its_own(own: SessionStore) -> None:
    """Every chat is called by its first line until the user gives it a name."""
    text = "Why is the sky blue at noon and red in the evening, and what has the air to do with it?"
    session = told(own, text[:59] + "…", text)
    fork = own.fork(session, 1)
    assert [(h.session_id, h.turn) for h in own.sessions.search("sky")] == [(fork, 0), (session, 0)]
    own.sessions.rename(session, "the sky")
    assert [(h.session_id, h.turn) for h in own.sessions.search("sky")] == [(session, None), (fork, 0), (session, 0)]


def test_the_limit_holds(store: SessionStore) -> None:
    assert len(found(store, "fox", 1)) == 1


@pytest.mark.slow
@given(st.text(alphabet="ab\"*()^:-+{}.,\\'%_\0 \nANDORNEAR天", max_size=40))
def test_no_query_is_more_than_words(store: SessionStore, query: str) -> None:
    store.sessions.search(query)


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    ['"', '""', 'fox" OR 1', "fox*", "-fox", "^fox", "text:fox", "NEAR(fox dog, 2)", "fox\0dog",
     "'; DROP TABLE turn; --", "fox AND", "(fox", "{fox}", "a" * 100_000, "fox " * 10_000, "%天%"],
)  # fmt: skip
def test_operators_and_quotes_are_harmless(store: SessionStore, query: str) -> None:
    store.sessions.search(query)
    assert found(store, "fox") == [1, 0]
