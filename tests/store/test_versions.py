"""What is listed as a chat: versions are not, whatever becomes of their family; and the names of branches."""

from __future__ import annotations

import shlex

import pytest

from mlxkv.store.continuing import continue_command
from mlxkv.store.db.database import IS_FORK, IS_VERSION
from mlxkv.store.records import Kind, TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import model


def say(store: SessionStore, session: str, *texts: str) -> str:
    for text in texts:
        store.add_turn(session, TurnRecord("assistant" if text.isupper() else "user", text, (1,)))
    return session


def listed(store: SessionStore) -> dict[str, tuple[str, ...]]:
    """The chats, newest first, each with its versions."""
    return {chat.id: chat.versions for chat in store.list() if chat.kind == "chat"}


def branches(store: SessionStore, session: str) -> list[tuple[str, str]]:
    return [(branch.session_id, branch.name) for branch in store.tree(session)]


@pytest.fixture
def first(store: SessionStore) -> str:
    return say(store, store.sessions.create("a", model()), "what?", "THIS", "why?", "SO")


def version(store: SessionStore, of: str, num_turns: int, *texts: str) -> str:
    return say(store, store.fork(of, num_turns, is_version=True), *texts)


def test_the_version_continued_last_is_the_chat(store: SessionStore, first: str) -> None:
    retried = version(store, first, 2, "why?", "BECAUSE")
    edited = version(store, retried, 0, "who?", "ME")
    assert listed(store) == {edited: (retried, first)}
    say(store, first, "and?")
    assert listed(store) == {first: (edited, retried)}
    undone = version(store, first, 2)  # continues nothing
    assert listed(store) == {first: (undone, edited, retried)}
    assert store.sessions.latest() == undone  # -c opens what was left
    assert store.sessions.find("a") == first
    assert [c.title for c in store.list()] == ["a"] * 4
    assert branches(store, first) == [
        (first, "a"),
        (retried, "another reply to “why?”"),
        (edited, "who? · from the start"),
        (undone, "after “what?”"),
    ]


def test_the_versions_of_a_renamed_chat_are_named_by_where_they_depart(store: SessionStore, first: str) -> None:
    """All were once called by its title."""
    store.sessions.rename(first, "mine")
    retried = version(store, first, 2, "why?", "BECAUSE")
    assert branches(store, first) == [(first, "mine"), (retried, "another reply to “why?”")]
    store.sessions.rename(retried, "yours")
    assert branches(store, first) == [(first, "mine"), (retried, "yours")]


def test_a_fork_is_a_chat_named_by_its_question(store: SessionStore, first: str) -> None:
    fork = say(store, store.fork(first, 2), "how?", "THUS")
    again = version(store, fork, 2, "how so?", "THUS")
    version(store, first, 2, "why?", "NO")
    found = {chat.id: chat for chat in store.list() if chat.kind == "chat"}
    assert found[again].name == "how so? · after “what?”"
    assert found[again].parent == next(id for id in found if id != again)  # the version that its origin is listed as
    store.sessions.rename(again, "mine")
    assert next(c.name for c in store.list() if c.id == again) == "mine"
    assert listed(store)[again] == (fork,)


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "a later one"])
def test_a_version_that_is_renamed_becomes_a_chat_of_its_own(store: SessionStore, first: str, which: int) -> None:
    b = version(store, first, 2, "why?", "B")
    c = version(store, b, 2, "why?", "C")
    renamed = [first, b][which]
    store.sessions.rename(c, "chat")  # the one that is listed: a new title, no more
    assert listed(store) == {c: (b, first)}
    store.sessions.rename(renamed, "kept")
    assert listed(store) == {c: (first,) if which else (b,), renamed: ()}
    assert {branch.session_id for branch in store.tree(c)} == {first, b, c}


@pytest.mark.parametrize("fork_first", [False, True])
def test_deleting_a_session_leaves_its_versions_one_chat(store: SessionStore, first: str, fork_first: bool) -> None:
    fork = store.fork(first, 2) if fork_first else ""
    b = version(store, first, 2, "why?", "B")
    c = version(store, first, 2, "why?", "C")
    fork = fork or store.fork(first, 2)
    say(store, fork, "how?")
    store.delete(first)
    assert listed(store) == {fork: (), c: (b,)}
    store.delete_chat(b)
    assert listed(store) == {fork: ()}


def test_an_empty_fork_is_replaced_by_one_of_its_kind(store: SessionStore, first: str) -> None:
    fork = store.fork(first)
    store.sessions.rename(fork, "mine")
    replaced = store.fork(first, 2, like=fork)
    store.delete(fork)
    assert listed(store).keys() == {replaced, first}
    assert next(c.title for c in store.list() if c.id == replaced) == "mine"


def test_runs_of_print_mode_are_no_chats_until_they_are_renamed(store: SessionStore, first: str) -> None:
    run = say(store, store.sessions.create("a run", model(), kind=Kind.RUN), "once")
    assert (listed(store), store.sessions.latest(), store.sessions.latest(runs=False)) == ({first: ()}, run, first)
    assert store.sessions.find("a") == first
    assert store.sessions.find("a r") == run
    store.sessions.rename(run, "kept")
    assert listed(store) == {run: (), first: ()}


def test_of_an_older_store_only_retries_are_versions(store: SessionStore, first: str) -> None:
    retried = say(store, store.fork(first, 2), "why?", "B")
    other = say(store, store.fork(first, 2), "how?", "C")
    with store._database.writing() as db:
        db.execute(f"UPDATE session SET flags = flags & ~{IS_FORK | IS_VERSION}")
    assert listed(store) == {other: (), retried: (first,)}
    store.sessions.rename(first, "kept")
    assert listed(store) == {other: (), retried: (), first: ()}


def test_the_command_that_continues_a_chat_opens_that_one(store: SessionStore, first: str) -> None:
    store.sessions.rename(first, "it's \x1b[31m" + "long " * 20)
    other = version(store, first, 2, "why?", "B")
    sky = say(store, store.sessions.create("sky", model()), "x")
    say(store, store.sessions.create("a run", model(), kind=Kind.RUN), "once")
    commands = [continue_command(store.sessions, session) for session in (sky, other, first)]
    assert commands == ["mlxkv -c", """mlxkv -r 'it'"'"'s ␛[31mlong long long long long long'""", f"mlxkv -r {first}"]
    for command, session in zip(commands[1:], (other, first), strict=True):
        assert store.sessions.find(shlex.split(command)[2]) == session
