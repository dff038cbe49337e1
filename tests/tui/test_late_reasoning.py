"""Reasoning of which only the end is marked: shown as text at first, and as what it is from then on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.protocol import events as ev
from tests.chat.test_thinking import CHATML, CONFIG, loaded, script
from tests.tui.fake_engine import STATS, FakeEngine
from tests.tui.window import window


def test_the_stream_says_what_the_reply_says(tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", "ring", CHATML)
    script(model, "so be it\n\n</think>\n\nyes")
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=100)
    text = thinking = ""
    *events, finished = chat.send("is it?")
    for event in events:
        if isinstance(event, ev.TextDelta):
            text, thinking = ("", "") if event.restarts else (text, thinking)
            text, thinking = (text, thinking + event.text) if event.thinking else (text + event.text, thinking)
    assert isinstance(finished, ev.TurnFinished)
    assert (text, thinking) == (finished.text, finished.thinking) == ("yes", "so be it")
    assert sum(isinstance(event, ev.TextDelta) and event.restarts for event in events) == 1
    model.close()


@pytest.mark.slow
async def test_the_window_takes_it_back_and_folds_it() -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        await w.ask("is it?")
        await w.until(lambda: w.app.state.transcript.reply)
        engine.say([ev.TextDelta("so *be*\n\n```\nit\n```\n\nor", 9)])
        await w.until(lambda: "so be" in w.said())
        engine.say([ev.TextDelta("so *be*\n\n```\nit\n```\n\nor not", 12, thinking=True, restarts=True)])
        engine.say([ev.TextDelta("yes", 13)])
        await w.until(lambda: "yes" in w.said())
        assert "so be" not in w.said()
        assert "▸ thought" in w.said()
        assert "12 tok" in w.said()
        assert "is it?" in w.said()
        engine.say([ev.TurnFinished("stop", "yes", STATS, "so *be*\n\n```\nit\n```\n\nor not")])
        await w.until(lambda: w.app.state.transcript.reply is None)
        assert w.said().count("yes") == 1
        w.app.transcript.fold_all()
        await w.until(lambda: "or not" in w.said())
