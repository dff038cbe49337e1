"""The dispatcher with a real model: a message that was stopped before its reply, or that is too long, is not sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxkv.errors import DiskError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.store.session_store import SessionStore
from tests.engine.test_engine_chats import Said, texts

LONG = " ".join(f"word {i}" for i in range(30))


@pytest.fixture
def here(home: Path, tiny_path: Path) -> Iterator[Said]:
    """Two questions and their replies."""
    here = Said()
    here.ask(cmd.LoadModel(str(tiny_path)))
    for text in ("one", "two"):
        here.one(cmd.Send(text, 0.0), ev.TurnFinished)
    yield here
    here.context.close()


def stop_at(here: Said, kind: type[ev.EngineEvent], closing: bool = False) -> None:
    """Stop at the first event of this kind that the dispatcher tells."""
    tell = here.dispatcher._emit

    def told(event: ev.EngineEvent) -> None:
        tell(event)
        if isinstance(event, kind):
            here.dispatcher.stop(closing=closing)

    here.dispatcher._emit = told
    here.context.num_submitted = here.context.num_started = 1  # a window counts its commands


def one(events: list[ev.EngineEvent], kind: type[ev.EngineEvent]) -> ev.EngineEvent:
    (found,) = [event for event in events if isinstance(event, kind)]
    return found


def test_a_message_stopped_in_prefill_leaves_the_chat_and_comes_back(here: Said, tmp_path: Path) -> None:
    stop_at(here, ev.PrefillProgress)
    events = here.ask(cmd.Send(LONG, 0.0))
    finished = one(events, ev.TurnFinished)
    assert isinstance(finished, ev.TurnFinished)
    assert (finished.reason, finished.unanswered, finished.returned) == ("stopped", True, LONG)
    assert not any(isinstance(e, ev.TextDelta | ev.ChatOpened) for e in events)
    status = events[-1]
    assert isinstance(status, ev.SessionStatus)
    assert status.saved == "saved"
    target = tmp_path / "out.md"
    here.ask(cmd.ExportChat("md", str(target)))
    assert "two" in target.read_text()
    assert "word" not in target.read_text()
    assert [c.num_turns for c in here.one(cmd.ListChats(), ev.ChatList).chats] == [4]


def test_a_new_chat_that_was_stopped_is_in_no_list(here: Said) -> None:
    here.ask(cmd.NewChat())
    stop_at(here, ev.PrefillProgress)
    status = here.ask(cmd.Send(LONG, 0.0))[-1]
    assert isinstance(status, ev.SessionStatus)
    assert (status.session_id, status.saved) == (None, "")
    assert len(here.one(cmd.ListChats(), ev.ChatList).chats) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "returned"), [(cmd.Retry(1), ""), (cmd.Edit(0, LONG, 0.0), LONG)], ids=["retry", "edit"]
)
def test_a_retry_or_an_edit_that_is_stopped_gives_the_old_branch_back(
    here: Said, command: cmd.Command, returned: str
) -> None:
    before = here.context.current_chat.messages
    stop_at(here, ev.PrefillProgress)
    events = here.ask(command)
    kinds = [type(e) for e in events]
    last = max(i for i, kind in enumerate(kinds) if kind is ev.ChatOpened)
    opened, finished = events[last], one(events, ev.TurnFinished)
    assert last < kinds.index(ev.TurnFinished)
    assert isinstance(opened, ev.ChatOpened)
    assert opened.messages == before
    assert isinstance(finished, ev.TurnFinished)
    assert (finished.unanswered, finished.returned) == (True, returned)
    assert len(here.one(cmd.ListChats(), ev.ChatList).chats) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [cmd.Retry(1), cmd.Edit(0, LONG, 0.0)], ids=["retry", "edit"])
def test_a_retry_or_an_edit_that_the_disk_refuses_gives_the_old_branch_back(
    here: Said, command: cmd.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = here.context.current_chat.messages

    def refuse(*_: object, **__: object) -> None:
        raise DiskError("There is no room.")

    monkeypatch.setattr(SessionStore, "fork", refuse)
    *_, opened = [event for event in here.ask(command) if isinstance(event, ev.ChatOpened)]
    assert opened.messages == before


@pytest.mark.slow
def test_a_message_that_nobody_is_left_to_take_back_stays(here: Said, tiny_path: Path) -> None:
    """The window was closed while it was prefilled. Then it can be asked again, in place."""
    stop_at(here, ev.PrefillProgress, closing=True)
    here.ask(cmd.Send(LONG, 0.0))
    session = str(here.context.current_chat.session_id)
    here.context.close()
    again = Said()
    again.ask(cmd.LoadModel(str(tiny_path)))
    opened = again.one(cmd.OpenChat(session), ev.ChatOpened)
    assert texts(opened) == ["one", "two", LONG]
    assert opened.messages[-1].role == "user"
    assert again.one(cmd.Retry(), ev.TurnFinished).text
    assert len(again.one(cmd.ListChats(), ev.ChatList).chats) == 1
    again.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda text: cmd.Send(text, 0.0), lambda text: cmd.Edit(2, text, 0.0)])
def test_a_message_too_long_for_the_window_is_asked_about(here: Said, make: Callable[[str], cmd.Command]) -> None:
    before = here.context.current_chat.turns
    much = "much " * 200
    command = make(much)
    events = here.ask(command)
    asked = one(events, ev.MessageTooLong)
    assert isinstance(asked, ev.MessageTooLong)
    assert not any(isinstance(e, ev.Failed | ev.TurnFinished | ev.PrefillProgress) for e in events)
    assert [(t.role, t.text) for t in here.context.current_chat.turns] == [(t.role, t.text) for t in before]
    assert (asked.text, asked.overflow.capacity) == (much, here.context.current_chat.cache.capacity)
    window = asked.overflow.window
    here.ask(cmd.ChangeSettings({"window": window}))
    assert here.one(command, ev.TurnFinished).stats.evicted_tokens == 0


@pytest.mark.slow
def test_what_is_sent_anyway_says_what_is_evicted(here: Said) -> None:
    events = here.ask(cmd.Send("much " * 200, 0.0, anyway=True))
    assert one(events, ev.PromptEvicted)
    assert one(events, ev.TurnFinished)


def test_a_chat_that_is_not_saved_can_be_given_a_larger_window(tiny_path: Path) -> None:
    there = Said(save=False)
    there.ask(cmd.LoadModel(str(tiny_path)))
    assert there.one(cmd.Send("much " * 200, 0.0), ev.MessageTooLong).overflow.window
    there.ask(cmd.Send("hi", 0.0))
    window = there.one(cmd.Send("much " * 200, 0.0), ev.MessageTooLong).overflow.window
    applied = there.one(cmd.ChangeSettings({"window": window}), ev.SettingsApplied)
    assert f"prefills {len(there.context.current_chat.log)} tokens of this chat again" in applied.text
    assert there.one(cmd.Send("much " * 200, 0.0), ev.TurnFinished).stats.evicted_tokens == 0
    assert len(there.context.current_chat.messages) == 4
    there.context.close()


def test_what_cannot_be_sent_comes_back_with_the_reason() -> None:
    here = Said()
    assert here.one(cmd.Send("hi", 0.0), ev.Failed).returned == "hi"


def test_a_window_beyond_what_the_model_was_trained_for_is_said_to_be(here: Said) -> None:
    trained = here.context.ready_model.loaded.trained_length
    assert trained
    for window in (2 * trained, trained):
        applied = here.one(cmd.ChangeSettings({"window": window}), ev.SettingsApplied)
        assert (f"larger than the {trained:,} that this model was trained for" in applied.text) is (window > trained)
