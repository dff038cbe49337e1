"""An answer to a command is seen wherever the reader is; what nobody asked for does not pull them away."""

from __future__ import annotations

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from tests.tui.fake_engine import STATS, FakeEngine, reply_events
from tests.tui.window import Window, window

pytestmark = pytest.mark.slow

LONG = "\n\n".join(f"paragraph {n}" for n in range(60))


def shown(w: Window) -> str:
    top, page = w.app.transcript.view.scroll_offset.y, w.app.transcript.size.height
    return "\n".join(w.app.transcript.lines.line(y).text for y in range(top, top + page))


async def scrolled_up(w: Window, engine: FakeEngine, ends: bool) -> None:
    """A long reply, finished or still being made, of which the beginning is seen."""
    w.app.state.prompt("tell me")
    w.app.chat.sync()
    await w.until(lambda: w.app.state.transcript.reply)
    engine.say(reply_events(LONG) if ends else reply_events(LONG)[:-2])
    await w.until(lambda: w.height > 100 and (w.app.state.transcript.reply is None) is ends)
    await w.until(lambda: "paragraph 59" in w.screen())
    await w.pilot.press("pageup")
    await w.until(lambda: not w.app.transcript.view.follow)


COMMANDS = (
    ("/compact now", "/compact asks first"),
    ("/set temp", "temperature is none"),
    ("/set temp hot", "must be a number"),
    ("/fork 9", "There is no question 9"),
    ("/export pdf", "pdf is not an export format"),
)


@pytest.mark.parametrize("ends", [True, False])
async def test_an_answer_is_seen(ends: bool) -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        await scrolled_up(w, engine, ends)
        for command, answer in COMMANDS:
            w.app.transcript.view.scroll_page(-1)
            await w.until(lambda: not w.app.transcript.view.follow)
            await w.ask(command)
            await w.until(lambda answer=answer: answer in shown(w), command)


@pytest.mark.parametrize(
    "last", [ev.TurnFinished("stop", LONG, STATS), ev.Failed("It ran out of memory.", ev.FailureKind.MEMORY)]
)
async def test_what_was_not_asked_for_pulls_nobody(last: ev.EngineEvent) -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        await scrolled_up(w, engine, ends=False)
        before = w.app.transcript.view.scroll_offset.y
        notice, done = ev.Notice("The oldest part rotates out."), ev.PullProgress("org/m", ev.PullState.DONE)
        for event in (ev.TextDelta("\n\nmore and more", 99), notice, done, ev.SaveProgress(1, 2), last):
            engine.say([event])
            await w.until(lambda: not engine.events)
            await w.pilot.pause()
            assert w.app.transcript.view.scroll_offset.y == before, event
            assert not w.app.transcript.view.follow


async def test_a_reader_who_asked_beside_a_reply_stays_with_the_answer() -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        await scrolled_up(w, engine, ends=False)
        await w.ask("/set temp")
        await w.until(lambda: "temperature is" in shown(w))
        engine.say([ev.TextDelta("\n\nmore" * 60, 200)])
        await w.until(lambda: w.height > 200)
        assert "temperature is" in shown(w)
        assert len(w.sent(cmd.Send)) == 1
