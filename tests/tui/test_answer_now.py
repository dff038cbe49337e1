"""Ctrl+Y ends the reasoning of a reply, and the window says after how many tokens it ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxkv.protocol import events as ev
from mlxkv.tui.state.chat_state import ChatState
from tests.tui.fake_engine import STATS, FakeEngine
from tests.tui.test_state import Clock, feed
from tests.tui.window import window


def test_only_reasoning_can_be_ended() -> None:
    clock = Clock()
    state = ChatState(clock)
    assert not state.answer_now()
    feed(state, ev.TurnStarted("q"))
    assert not state.answer_now()  # it does not reason yet
    feed(state, ev.TextDelta("hm", 1, thinking=True))
    assert state.activity(80)[1] == "ctrl+y answer now · esc to stop"
    assert state.activity(50)[1] == "esc to stop"
    assert state.answer_now()
    assert state.activity(80)[0].endswith("ending the reasoning …")
    feed(state, ev.TextDelta("yes", 9))
    assert not state.answer_now()
    assert state.activity(80)[1] == "esc to stop"


@pytest.mark.slow
async def test_the_key_reaches_the_engine_and_the_cut_is_shown() -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        await w.ask("is it?")
        await w.until(lambda: w.app.state.transcript.reply)
        await w.pilot.press("ctrl+y")  # of reasoning that is marked only at its end, nothing is known yet
        await w.until(lambda: "Nothing is marked as reasoning yet" in w.bar("activity"))
        assert engine.answered == 0
        engine.say([ev.TextDelta("hm", 512, thinking=True)])
        w.app.chat.show_hint("")
        await w.until(lambda: "answer now" in w.screen())
        await w.pilot.press("ctrl+y")
        await w.until(lambda: engine.answered == 1)
        engine.say(
            [ev.TextDelta("yes", 513), ev.TurnFinished("stop", "yes", replace(STATS, reasoning_cut_at=512), "hm")]
        )
        await w.until(lambda: w.app.state.transcript.reply is None)
        assert "▲ reasoning cut at 512 tokens" in w.said()
