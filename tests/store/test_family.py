"""Families of forks: the tree, the versions of a message, and what deleting one of the family leaves of both."""

from __future__ import annotations

import pytest

from mlxkv.errors import StoreError
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model


def say(store: SessionStore, session: str, *texts: str) -> None:
    for text in texts:
        store.add_turn(session, TurnRecord("user", text, tuple(map(ord, text))))


def family(store: SessionStore) -> tuple[str, str, str, str]:
    """a0 a1 a2; from it b0 = a0, a1, b2; from that c = a0, c1; and from a: d = a0, d1."""
    a = store.sessions.create("a", model(), system="be")
    say(store, a, "a0", "a1", "a2")
    b = store.fork(a, 2)
    say(store, b, "b2")
    c = store.fork(b, 1)
    say(store, c, "c1")
    d = store.fork(a, 1)
    say(store, d, "d1")
    return a, b, c, d


def tree(store: SessionStore, session: str) -> list[tuple[str, str | None, int | None]]:
    return [(x.session_id, x.parent, x.forked_at) for x in store.tree(session)]


def versions(store: SessionStore, session: str) -> list[list[str]]:
    return [[s.text for s in of_turn] for of_turn in store.siblings(session)]


def test_each_chat_stands_before_its_forks(store: SessionStore) -> None:
    a, b, c, d = family(store)
    stranger = store.sessions.create("stranger", model(), system="be")
    say(store, stranger, "x0")
    expected = [(a, None, None), (b, a, 2), (c, b, 1), (d, a, 1)]
    assert all(tree(store, x) == expected for x in (a, b, c, d))
    assert [x.session_id for x in store.tree(c) if x.is_current] == [c]
    assert tree(store, stranger) == [(stranger, None, None)]
    assert tree(store, "0" * 26) == []


def test_versions_of_a_message_are_those_with_the_same_past(store: SessionStore) -> None:
    a, b, c, _ = family(store)
    stranger = store.sessions.create("stranger", model(), system="be")
    say(store, stranger, "a0", "z1")  # begins like the others by chance: none of the family
    assert versions(store, a) == [["a0"], ["a1", "c1", "d1"], ["a2", "b2"]]
    assert versions(store, c) == [["a0"], ["a1", "c1", "d1"]]
    assert versions(store, stranger) == [["a0"], ["z1"]]
    assert [[s.is_current for s in x] for x in store.siblings(c)] == [[True], [False, True, False]]
    say(store, c, "c2")  # its own past lies before it
    assert versions(store, c)[2] == ["c2"]
    say(store, b, "b3")
    assert store.siblings(c)[1][0].session_id == b  # of the two that have a1, the one used last


def test_deleting_one_leaves_the_others_one_family(store: SessionStore) -> None:
    a, b, c, d = family(store)
    store.delete(b)
    assert tree(store, d) == [(a, None, None), (c, a, 1), (d, a, 1)]
    store.delete(a)
    assert tree(store, d) == [(c, None, None), (d, c, 1)]
    assert versions(store, c) == [["a0"], ["c1", "d1"]]
    store.delete(c)
    assert tree(store, d) == [(d, None, None)]


def test_a_reply_that_goes_on_keeps_its_place_and_its_rows(store: SessionStore) -> None:
    a = store.sessions.create("a", model())
    say(store, a, "a0")
    store.add_turn(a, TurnRecord("assistant", "so", (1, 2), state="stopped"))
    fork = store.fork(a, 2)
    store.update_open_turn(a, TurnRecord("assistant", "so it", (1, 2, 3), state="open"), reopen=True)
    store.update_open_turn(a, TurnRecord("assistant", "so it is", (1, 2, 3, 4)))
    assert versions(store, a) == [["a0"], ["so it is", "so"]]
    assert [t.text for t in store.load(fork).turns] == ["a0", "so"]
    assert store.load(a).log == (*map(ord, "a0"), 1, 2, 3, 4)


def test_rows_that_were_saved_at_a_reply_stay_saved_while_it_grows(store: SessionStore) -> None:
    ids, cache = tuple(range(200)), FakeCache()
    a = store.sessions.create("a", model())
    store.add_turn(a, TurnRecord("user", "x", ids[:100]))
    store.add_turn(a, TurnRecord("assistant", "y", ids[100:150], state="stopped"))
    cache.feed(ids[:150])
    store.commit_kv(a, cache, model())
    for n, state in ((160, "open"), (180, "done")):
        store.update_open_turn(a, TurnRecord("assistant", "y", ids[100:n], state=state), reopen=True)
        restored = store.restore_kv(a, FakeCache(run=1), model(), ids[:n])
        assert (restored.tokens, restored.notice) == (150, None)
    with pytest.raises(StoreError, match="finished"):  # another reply is another turn
        store.update_open_turn(a, TurnRecord("assistant", "z", ids[50:100]), reopen=True)
