"""What keys, pastes and commands do, with a fake engine. Every wait is for a condition."""

from __future__ import annotations

import pytest
from textual.events import Paste
from textual.geometry import Offset
from textual.selection import Selection

from mlxkv.config import Folders
from mlxkv.events import TextDelta, TurnFinished
from mlxkv.protocol.commands import ChangeSettings, Send
from tests.tui.fake_engine import STATS, FakeEngine, reply_events
from tests.tui.window import window

pytestmark = pytest.mark.slow


async def test_typed_letters_and_enter_arrive_in_order() -> None:
    """A priority binding for Enter once sent "hel" for "hello"."""
    async with window(FakeEngine(manual=True)) as w:
        await w.pilot.press(*"hello", "enter", *"next")
        await w.until(lambda: w.sent(Send))
        assert [c.text for c in w.sent(Send) if isinstance(c, Send)] == ["hello"]
        await w.until(lambda: w.app.prompt.text == "next")


@pytest.mark.parametrize("newline", [["ctrl+j"], ["shift+enter"], ["alt+enter"], ["\\", "enter"]])
async def test_newlines(newline: list[str]) -> None:
    async with window() as w:
        await w.pilot.press("a", *newline, "b")
        await w.until(lambda: w.app.prompt.text == "a\nb")
        assert not w.sent(Send)


async def test_a_command_runs_below_an_empty_line() -> None:
    async with window() as w:
        await w.pilot.press("ctrl+j", *"/stats", "enter")
        await w.until(lambda: "/stats" not in w.app.prompt.text)
        await w.pilot.press(*"//stats", "enter")
        await w.until(lambda: w.sent(Send))
        assert [c.text for c in w.sent(Send) if isinstance(c, Send)] == ["/stats"]


async def test_keys_can_be_rebound() -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.app.set_keymap({"prompt.send": "ctrl+s", "prompt.newline": "enter"})
        await w.pilot.press("a", "enter", "b", "ctrl+s")
        await w.until(lambda: w.sent(Send))
        assert [c.text for c in w.sent(Send) if isinstance(c, Send)] == ["a\nb"]


async def test_a_paste_never_sends_and_is_cleaned() -> None:
    async with window() as w:
        w.app.post_message(Paste("one\r\ntwo\x1b[2J\n"))
        await w.until(lambda: w.app.prompt.text)
        assert w.app.prompt.text == "one\ntwo␛[2J\n"
        assert not w.sent(Send)


async def test_prompts_queue_while_a_reply_runs() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("one")
        await w.until(lambda: w.app.state.transcript.reply)
        await w.ask("two")
        await w.ask("three")
        await w.until(lambda: "❯ three" in w.queued())
        assert "waiting for the current reply · ↑ to edit" in w.queued()
        await w.pilot.press("up")
        await w.until(lambda: w.app.prompt.text == "three")
        assert "three" not in w.queued()
        w.engine.say(reply_events())
        await w.until(lambda: len(w.sent(Send)) == 2)
        assert " ❯ two" in w.said()


async def test_without_a_model_what_is_typed_waits_for_one_and_a_small_window_says_less() -> None:
    async with window(model=None, size=(40, 14)) as w:
        await w.ask("one")
        await w.until(lambda: "no model: /model loads one" in w.queued())
        assert w.app.prompt.placeholder == "Ask anything"  # more would take two lines


async def test_escape_stops_and_keeps() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.transcript.reply)
        w.engine.say([TextDelta("Because", 1)])
        await w.until(lambda: "Because" in w.said())
        assert "esc to stop" in w.bar("activity")
        await w.pilot.press("x", "escape")
        await w.until(lambda: w.engine.stopped == 1)
        assert "stopping" in w.bar("activity")
        w.engine.say([TurnFinished("stopped", "Because", STATS)])
        await w.until(lambda: w.app.state.transcript.reply is None)
        assert "Because" in w.said()
        await w.pilot.press("escape")
        await w.until(lambda: "esc again clears" in w.bar("activity"))
        await w.pilot.press("escape")
        await w.until(lambda: w.app.prompt.text == "")


async def test_control_c() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.transcript.reply)
        w.app.prompt.put("text")
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.app.prompt.text == "")
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.engine.stopped == 1)
        w.engine.say([TurnFinished("stopped", "", STATS)])
        await w.until(lambda: w.app.state.transcript.reply is None)
        await w.pilot.press("ctrl+c")
        await w.until(lambda: "ctrl+c again quits" in w.bar("activity"))
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.app.return_value == 0)


async def test_control_c_comes_after_the_letters_before_it() -> None:
    async with window() as w:
        await w.pilot.press("x", "ctrl+c")
        await w.until(lambda: w.app.prompt.text == "")
        assert "again" not in w.bar("activity")


async def test_selected_text_is_copied() -> None:
    async with window() as w:
        await w.ask("why")
        await w.until(lambda: "5,871 cached" in w.said())
        row = w.said().split("\n").index("   Three ways out:")
        w.app.screen.selections = {w.app.transcript.view: Selection(Offset(3, row), Offset(8, row + 2))}
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.app.clipboard)
        assert w.app.clipboard == "Three ways out:\n\n1. Cl"
        assert "clipboard" in w.bar("activity")


async def test_control_d_quits_only_when_empty() -> None:
    async with window() as w:
        w.app.prompt.put("x")
        await w.pilot.press("home", "ctrl+d")
        await w.until(lambda: w.app.prompt.text == "")
        assert w.app.return_value is None
        await w.pilot.press("ctrl+d")
        await w.until(lambda: w.app.return_value == 0)


async def test_an_unknown_command_keeps_the_text() -> None:
    async with window() as w:
        await w.pilot.press(*"/hepl", "enter")
        await w.until(lambda: "No command /hepl. Did you mean /help?" in w.bar("activity"))
        assert w.app.prompt.text == "/hepl"
        assert not w.sent(Send)


async def test_a_literal_slash() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("//new is a command")
        await w.until(lambda: w.sent(Send))
        assert [c.text for c in w.sent(Send) if isinstance(c, Send)] == ["/new is a command"]


async def test_history_across_runs(tmp_path: object) -> None:
    folders = Folders.from_env()
    async with window(folders=folders) as w:
        await w.ask("remember me")
        await w.until(lambda: (folders.state / "prompts.jsonl").exists())
    async with window(folders=folders) as w:
        await w.pilot.press(*"dra", "up")
        await w.until(lambda: w.app.prompt.text == "remember me")
        await w.pilot.press("down")
        await w.until(lambda: w.app.prompt.text == "dra")


async def test_what_a_command_says_stays_on_the_screen() -> None:
    """The prompt becoming empty wiped it away at once."""
    async with window() as w:
        await w.ask("/copy 5")
        await w.until(lambda: "There is no reply yet." in w.bar("activity"))
        await w.pilot.pause()
        await w.pilot.pause()
        assert "There is no reply yet." in w.bar("activity")
        await w.pilot.press("x")
        await w.until(lambda: "There is no reply yet." not in w.bar("activity"))
        await w.pilot.press("ctrl+c")
        await w.ask("/think maybe")
        await w.until(lambda: "There is no /think maybe: it is on or off." in w.said())
        assert not w.sent(ChangeSettings)
