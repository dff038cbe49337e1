"""The window with a fake engine: keys in, screen out. Every wait is for a condition."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from textual.events import MouseDown, MouseMove, MouseScrollDown, MouseScrollUp, MouseUp, Paste
from textual.geometry import Offset
from textual.pilot import Pilot
from textual.selection import Selection

from mlxkv import tui
from mlxkv.config import Folders, Settings
from mlxkv.events import (
    Command,
    EngineStopped,
    Failed,
    FirstScreen,
    ListChats,
    LoadModel,
    ModelCard,
    NewChat,
    OpenChat,
    Send,
    TextDelta,
    TurnFinished,
)
from mlxkv.tui.app import ChatApp
from mlxkv.tui.help import HelpScreen
from mlxkv.tui.picker import ChatPicker
from tests.tui.fake_engine import REPLY, STATS, STATUS, FakeEngine, reply_events

FIRST = FirstScreen((ModelCard("tutor", 1_400_000, "MIT", "built in"),))


class Window:
    """An app under a pilot, and what a test wants to know of it."""

    def __init__(self, app: ChatApp, engine: FakeEngine, pilot: Pilot[int]) -> None:
        self.app, self.engine, self.pilot = app, engine, pilot

    async def until(self, condition: Callable[[], object], why: str = "") -> None:
        for _ in range(400):
            if condition():
                return
            await self.pilot.pause(0.01)
        raise AssertionError(f"never happened: {why or condition}\n{self.screen()}")

    async def type(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(*(key if len(key) > 1 and " " in key else [key]))

    async def ask(self, text: str) -> None:
        self.app.prompt.put(text)
        await self.pilot.press("enter")

    def said(self) -> str:
        return "\n".join(strip.text for strip in map(self.app.transcript.lines.line, range(self.height)))

    @property
    def height(self) -> int:
        return self.app.transcript.lines.height

    def bar(self, name: str) -> str:
        return getattr(self.app.view, name).render().plain

    def queued(self) -> str:
        return self.app.view.queued.render().plain

    def screen(self) -> str:
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    def sent(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.engine.commands if isinstance(command, kind)]


@asynccontextmanager
async def window(
    engine: FakeEngine | None = None,
    size: tuple[int, int] = (80, 24),
    model: str | None = "org/Qwen3-8B-4bit",
    ask: str | None = None,
    settings: Settings | None = None,
    folders: Folders | None = None,
) -> AsyncIterator[Window]:
    engine = engine or FakeEngine()
    commands: list[Command] = [LoadModel(model)] if model else []
    app = ChatApp(engine, FIRST, settings or Settings(), folders, [*commands, NewChat()], ask)
    async with app.run_test(size=size) as pilot:
        here = Window(app, engine, pilot)
        await here.until(lambda: engine.started, "engine started")
        if model and model != "missing":
            await here.until(lambda: app.state.is_ready, "model ready")
        yield here


async def test_a_question_and_its_reply() -> None:
    async with window() as w:
        await w.ask("Why?")
        await w.until(lambda: "5,871 cached" in w.said())
        said = w.said()
        assert " ❯ Why?" in said
        assert "List<String>" in said
        assert "42.1 tok/s · 312 tok · first 0.21s · read 27+5,871 cached · KV 916 MB" in said
        assert w.app.prompt.text == ""
        assert "ctx ▰▱▱▱▱▱▱▱ 19%" in w.bar("header")
        assert "Qwen3-8B-4bit · Why?" in w.bar("header")
        await w.until(lambda: "KV 936 MB · 6.3k/32k tok · mem 5.6/27 GB · saved ✓" in w.bar("footer"))


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


async def test_keys_can_be_rebound() -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.app.set_keymap({"prompt.send": "ctrl+s", "prompt.newline": "enter"})
        await w.pilot.press("a", "enter", "b", "ctrl+s")
        await w.until(lambda: w.sent(Send))
        assert [c.text for c in w.sent(Send) if isinstance(c, Send)] == ["a\nb"]


async def test_a_paste_never_sends_and_is_cleaned() -> None:
    async with window() as w:
        w.app.prompt.post_message(Paste("one\r\ntwo\x1b[2J\n"))
        await w.until(lambda: w.app.prompt.text)
        assert w.app.prompt.text == "one\ntwo␛[2J\n"
        assert not w.sent(Send)


async def test_prompts_queue_while_a_reply_runs() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("one")
        await w.until(lambda: w.app.state.turn)
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


async def test_a_question_from_the_command_line_waits_for_the_model() -> None:
    async with window(ask="first thing") as w:
        await w.until(lambda: "5,871 cached" in w.said())
        assert [type(c) for c in w.engine.commands] == [LoadModel, NewChat, Send]


async def test_escape_stops_and_keeps() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.turn)
        w.engine.say([TextDelta("Because", 1)])
        await w.until(lambda: "Because" in w.said())
        assert "esc to stop" in w.bar("activity")
        await w.pilot.press("x", "escape")
        await w.until(lambda: w.engine.stopped == 1)
        assert "stopping" in w.bar("activity")
        w.engine.say([TurnFinished("stopped", "Because", STATS)])
        await w.until(lambda: w.app.state.turn is None)
        assert "Because" in w.said()
        await w.pilot.press("escape")
        await w.until(lambda: "esc again clears" in w.bar("activity"))
        await w.pilot.press("escape")
        await w.until(lambda: w.app.prompt.text == "")


async def test_control_c() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.turn)
        w.app.prompt.put("text")
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.app.prompt.text == "")
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.engine.stopped == 1)
        w.engine.say([TurnFinished("stopped", "", STATS)])
        await w.until(lambda: w.app.state.turn is None)
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
        w.app.screen.selections = {w.app.transcript: Selection(Offset(3, row), Offset(8, row + 2))}
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.app.clipboard)
        assert w.app.clipboard == "Three ways out:\n\n   1. Cl"
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


async def test_commands() -> None:
    async with window() as w:
        await w.ask("/new")
        await w.until(lambda: len(w.sent(NewChat)) == 2)
        await w.ask("/model tutor")
        await w.until(lambda: LoadModel("tutor") in w.engine.commands)
        await w.ask("/model")
        await w.until(lambda: "Loaded: tutor." in w.said())
        await w.ask("/model missing")
        await w.until(lambda: "✗ There is no model “missing”" in w.said())
        await w.ask("/resume porto")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)
        await w.until(lambda: "✓ resumed 12,288 tok (1.8 GB) in 0.4s – nothing re-read" in w.said())
        await w.ask("/bye")
        await w.until(lambda: w.app.return_value == 0)


async def test_picking_a_chat() -> None:
    async with window() as w:
        await w.ask("/resume")
        await w.until(lambda: w.app.query(ChatPicker))
        await w.until(lambda: isinstance(w.app.focused, ChatPicker))
        await w.until(lambda: "Rust lifetimes" in w.screen())
        await w.pilot.press(*"porto")
        await w.until(lambda: w.app.query_one(ChatPicker).option_count == 1)
        await w.pilot.press("enter")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)
        await w.until(lambda: not w.app.query(ChatPicker) and w.app.focused is w.app.prompt)
        await w.ask("/chats")
        await w.until(lambda: w.app.query(ChatPicker))
        await w.pilot.press("escape")
        await w.until(lambda: not w.app.query(ChatPicker) and w.app.focused is w.app.prompt)
        assert w.app.transcript.display
        assert len(w.sent(ListChats)) == 2


async def test_help() -> None:
    async with window() as w:
        for key in ("?", "f1"):
            await w.pilot.press(key)
            await w.until(lambda: isinstance(w.app.screen, HelpScreen))
            await w.pilot.press("escape")
            await w.until(lambda: not isinstance(w.app.screen, HelpScreen))
        await w.pilot.press("f1")
        await w.until(lambda: isinstance(w.app.screen, HelpScreen))
        w.engine.say([STATUS])  # the window goes on under the help
        await w.until(lambda: "KV 936 MB" in w.bar("footer"))
        await w.pilot.press("escape")
        await w.pilot.press("a", "?")
        await w.until(lambda: w.app.prompt.text == "a?")


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


async def test_first_screen_without_a_model_is_not_a_dialog() -> None:
    async with window(model=None) as w:
        assert w.app.view.welcome.display
        assert "tutor" in w.screen()
        assert "/model <repo id or folder>" in w.screen()
        await w.pilot.press(*"hi")
        await w.until(lambda: w.app.prompt.text == "hi")
        await w.ask("/model tutor")
        await w.until(lambda: "tutor is ready" in w.screen())


async def test_errors_are_lines_in_the_transcript() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.turn)
        w.engine.say([Failed("Out of \x1bmemory [bold]now[/bold]")])
        await w.until(lambda: "✗ Out of ␛memory [bold]now[/bold]" in w.said())
        w.engine.say([EngineStopped("Metal said no")])
        await w.until(lambda: "The engine stopped: Metal said no" in w.said())
        await w.ask("more")
        await w.until(lambda: "engine has stopped" in w.bar("activity"))
        assert w.app.prompt.text == "more"
        await w.ask("/quit")
        await w.until(lambda: w.app.return_value == 1)


async def test_following_and_scrolling() -> None:
    async with window(FakeEngine(manual=True)) as w:
        transcript = w.app.transcript
        await w.ask("long")
        await w.until(lambda: w.app.state.turn)
        w.engine.say([TextDelta(f"para {i}\n\n", i) for i in range(50)])
        await w.until(lambda: "para 49" in w.screen())
        await w.pilot.press("pageup")
        await w.until(lambda: not transcript.follow)
        top = transcript.scroll_offset.y
        w.engine.say([TextDelta(f"more {i}\n\n", i) for i in range(50)])
        await w.until(lambda: "more 49" in w.said())
        assert transcript.scroll_offset.y == top
        assert "End ↓ to follow" in w.bar("activity")
        await w.pilot.press("end")
        await w.until(lambda: transcript.follow and "more 49" in w.screen())


async def test_a_resize_keeps_the_place() -> None:
    async with window(size=(120, 30)) as w:
        transcript = w.app.transcript
        text = "\n\n".join(f"paragraph {i} " + "word " * 40 for i in range(60))
        w.engine.manual = True
        await w.ask("long")
        await w.until(lambda: w.app.state.turn)
        w.engine.say([TextDelta(text, 1), TurnFinished("stop", text, STATS)])
        await w.until(lambda: "5,871 cached" in w.screen())
        transcript.scroll_to(y=60, animate=False, immediate=True)
        await w.until(lambda: not transcript.follow)
        lines = transcript.lines
        before = lines.index_at(transcript.scroll_offset.y)
        await w.pilot.resize_terminal(60, 30)
        await w.until(lambda: lines.width < 70 and lines.is_exact, "everything wrapped again")
        assert lines.index_at(transcript.scroll_offset.y) == before
        assert transcript.virtual_size.height == lines.height


@pytest.mark.parametrize("size", [(29, 24), (80, 7)])
async def test_too_small(size: tuple[int, int]) -> None:
    async with window(size=size) as w:
        await w.until(lambda: "need 30×8" in w.screen())
        await w.pilot.resize_terminal(80, 24)
        await w.until(lambda: w.app.focused is w.app.prompt)
        assert "need 30×8" not in w.screen()


async def test_tiers() -> None:
    async with window(size=(50, 20)) as w:
        await w.ask("why")
        await w.until(lambda: "42 tok/s · 312 tok" in w.screen())
        assert "mlxkv" not in w.screen()
        await w.until(lambda: w.bar("footer").strip() == "19% ctx")
        await w.pilot.resize_terminal(80, 10)
        await w.until(lambda: not w.app.view.footer.display)
        assert w.app.prompt.size.height == 1


async def test_an_unknown_theme_is_only_a_line() -> None:
    async with window(settings=Settings(theme="no-such")) as w:
        await w.until(lambda: "no theme 'no-such'" in w.said())


async def test_mouse_fuzz_while_streaming() -> None:
    """A press over a streaming Markdown widget crashes Textual 8.2.8 (Textual#6643); ours must not care."""
    rng = random.Random(7)
    async with window(FakeEngine(manual=True), size=(60, 20)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.turn)
        deltas = reply_events(REPLY * 6, piece=7)[1:-2]
        sent, shift = 0, False
        for step in range(500):
            x, y = rng.randrange(60), rng.randrange(20)
            kind = rng.choice([MouseDown, MouseUp, MouseMove, MouseMove, MouseScrollUp, MouseScrollDown])
            button = 1 if kind in (MouseDown, MouseUp) else 0
            w.app.post_message(kind(None, x, y, 0, 0, button, shift, False, False, screen_x=x, screen_y=y))
            if step % 5 == 0:
                w.engine.say(deltas[sent : sent + 2])
                sent += 2
            if step % 25 == 0:
                await w.pilot.pause(0.01)
                _ = w.app.screen.get_selected_text()
        w.engine.say([TurnFinished("stop", "", STATS)])
        await w.until(lambda: w.app.state.turn is None)
        assert w.app.is_running
        assert "The borrow of map" in w.said()


def test_run_closes_the_engine_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    def broken(self: ChatApp) -> int:
        raise RuntimeError("window")

    monkeypatch.setattr(ChatApp, "run", broken)
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    with pytest.raises(RuntimeError, match="window"):
        tui.run(engine, FIRST, Settings(), Folders.from_env())
    assert engine.closed == 1


def test_run_asks_for_the_model_the_chat_and_then_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ChatApp] = []
    monkeypatch.setattr(ChatApp, "run", lambda self: made.append(self) or 3)
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    assert tui.run(FakeEngine(), FIRST, Settings(), Folders.from_env(), "q", "c1", "tutor") == 3
    assert made[0].first_commands == (LoadModel("tutor"), OpenChat("c1"))
