"""A chat that another mlxkv has open: shown, and continued here once the other has ended."""

from __future__ import annotations

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.tui.state.chat_state import ChatState
from tests.tui.fake_engine import FakeEngine
from tests.tui.window import window

SAID = (ev.Message("user", "one"), ev.Message("assistant", "1\n\n" + "line\n\n" * 60))
MORE = (*SAID, ev.Message("user", "two"), ev.Message("assistant", "2"))
LOCKED = "Session c1 is open in process 7; close it there or fork the session."


def test_it_is_opened_again_once_the_other_has_ended() -> None:
    state = ChatState(lambda: 100.0)
    state.begin([cmd.LoadModel("tutor"), cmd.OpenChat("c1")])
    state.apply(ev.ModelReady("tutor", 1, 0.1, True))
    state.apply(ev.ChatOpened("c1", "Numbers", SAID, read_only=LOCKED))
    state.outbox.clear()
    state.apply(ev.ChatReleased("c9"))  # of a chat that was in front before
    assert not state.outbox
    state.apply(ev.ChatReleased("c1"))
    state.apply(ev.ChatReleased("c1"))
    assert list(state.outbox) == [cmd.OpenChat("c1")]
    state.apply(ev.ChatOpened("c1", "Numbers", MORE))
    assert not state.refusal()
    assert state.transcript.messages == list(MORE)
    last = state.transcript.take_change().settled[-1]
    assert last.text == "The other mlxkv has closed this chat: you can continue here."
    state.prompt("three")
    assert isinstance(state.outbox[-1], cmd.Send)


@pytest.mark.slow
async def test_a_reader_stays_where_they_are_and_what_was_typed_stays_too() -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        engine.say([ev.ChatOpened("c1", "Numbers", SAID, read_only=LOCKED)])
        await w.until(lambda: "Read-only until it is closed there" in w.screen())
        await w.ask("three")
        await w.until(lambda: "open in another mlxkv" in w.bar("activity"))
        await w.pilot.press("pageup", "pageup")
        await w.until(lambda: not w.app.transcript.view.follow)
        seen = w.screen().splitlines()[2:12]
        engine.history = MORE
        engine.say([ev.ChatReleased("c1")])
        await w.until(lambda: "you can continue here" in w.said())
        assert (w.app.prompt.text, w.app.transcript.view.follow) == ("three", False)
        assert w.screen().splitlines()[2:12] == seen
        await w.pilot.press("enter")
        await w.until(lambda: w.sent(cmd.Send))
