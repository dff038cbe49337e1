"""The window with a fake engine: events in, screen out. Every wait is for a condition."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.color import Color
from rich.style import Style
from textual.events import MouseDown, MouseMove, MouseScrollDown, MouseScrollUp, MouseUp

from mlxkv import tui
from mlxkv.config import Folders, Settings
from mlxkv.events import Message, TextDelta, TurnFinished
from mlxkv.protocol.commands import ListChats, LoadModel, NewChat, OpenChat, Send
from mlxkv.protocol.events import ChatOpened, EngineStopped, Failed, SaveProgress
from mlxkv.protocol.status import SaveState
from mlxkv.tui.app import ChatApp
from mlxkv.tui.widgets.picker import Picker
from tests.tui.fake_engine import REPLY, STATS, FakeEngine, reply_events
from tests.tui.window import FIRST, window


@pytest.mark.slow
async def test_a_question_and_its_reply() -> None:
    async with window() as w:
        await w.ask("Why?")
        await w.until(lambda: "5,871 cached" in w.said())
        said = w.said()
        assert " ❯ Why?" in said
        assert "List<String>" in said
        assert "42.1 tok/s · KV 916 MB · TTFT 0.21s · 312 tok · prompt 27 + 5,871 cached" in said
        assert w.app.prompt.text == ""
        assert "ctx ▰▱▱▱▱▱▱▱ 19%" in w.bar("header")
        assert "Qwen3-8B-4bit · Why?" in w.bar("header")
        await w.until(lambda: "KV 936 MB · 6.3k/32k tok · mem 5.6/27 GB · saved ✓" in w.bar("footer"))


@pytest.mark.slow
async def test_a_question_from_the_command_line_waits_for_the_model() -> None:
    async with window(ask="first thing") as w:
        await w.until(lambda: "5,871 cached" in w.said())
        assert [type(c) for c in w.engine.commands] == [LoadModel, NewChat, Send]  # the list of chats can wait


@pytest.mark.slow
async def test_commands() -> None:
    async with window() as w:
        await w.ask("/new")
        await w.until(lambda: len(w.sent(NewChat)) == 2)
        await w.ask("/model tutor")
        await w.until(lambda: LoadModel("tutor") in w.engine.commands)
        await w.ask("/model")
        await w.until(lambda: "On this machine" in w.screen())
        await w.pilot.press("escape")
        await w.ask("/model missing")
        await w.until(lambda: "✗ There is no model “missing”" in w.said())
        await w.ask("/resume porto")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)
        await w.until(lambda: "✓ restored 12,288 tok (1.8 GB) in 0.4s · nothing to prefill" in w.said())
        await w.ask("/bye")
        await w.until(lambda: w.app.return_value == 0)


@pytest.mark.slow
async def test_picking_a_chat() -> None:
    async with window() as w:
        await w.ask("/resume")
        await w.until(lambda: w.app.query(Picker))
        await w.until(lambda: isinstance(w.app.focused, Picker))
        await w.until(lambda: "Rust lifetimes" in w.screen())
        await w.pilot.press(*"porto")
        await w.until(lambda: w.app.query_one(Picker).option_count == 1)
        await w.pilot.press("enter")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)
        await w.until(lambda: not w.app.query(Picker) and w.app.focused is w.app.prompt)
        await w.ask("/chats")
        await w.until(lambda: w.app.query(Picker))
        await w.pilot.press("escape")
        await w.until(lambda: not w.app.query(Picker) and w.app.focused is w.app.prompt)
        assert w.app.transcript.display
        assert len(w.sent(ListChats)) >= 2


@pytest.mark.slow
async def test_an_empty_chat_offers_the_last_ones() -> None:
    async with window() as w:
        await w.until(lambda: "⏎ opens an earlier chat" in w.screen())
        assert "Trip to Porto" in w.screen()
        await w.pilot.press("enter")
        await w.until(lambda: isinstance(w.app.focused, Picker))
        await w.pilot.press("enter")
        await w.until(lambda: OpenChat("c1") in w.engine.commands)
        w.engine.say([ChatOpened("c1", "Rust lifetimes", (), prompt="why")])  # back before its first question
        await w.until(lambda: w.app.prompt.text == "why")  # which Enter sends
        assert "is ready" in w.screen()
        assert "⏎ opens an earlier chat" not in w.screen()


@pytest.mark.slow
async def test_help() -> None:
    async with window() as w:
        for key in ("?", "f1"):
            await w.pilot.press(key)
            await w.until(lambda: "send, or queue" in w.screen())
            await w.pilot.press("escape")
            await w.until(lambda: "send, or queue" not in w.screen())
        await w.pilot.press("f1")
        await w.until(lambda: w.app.chat.has_pane)
        await w.pilot.press("f1")
        await w.until(lambda: not w.app.chat.has_pane)
        await w.pilot.press("a", "?")
        await w.until(lambda: w.app.prompt.text == "a?")


@pytest.mark.slow
async def test_first_screen_without_a_model_is_not_a_dialog() -> None:
    async with window(model=None) as w:
        assert w.app.chat.welcome.display
        assert "tutor" in w.screen()
        assert "/model <repo id or folder>" in w.screen()
        await w.pilot.press(*"hi")
        await w.until(lambda: w.app.prompt.text == "hi")
        await w.ask("/model tutor")
        await w.until(lambda: "tutor is ready" in w.screen())


@pytest.mark.slow
async def test_errors_are_lines_in_the_transcript() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.transcript.reply)
        w.engine.say([Failed("Out of \x1bmemory [bold]now[/bold]")])
        await w.until(lambda: "✗ Out of ␛memory [bold]now[/bold]" in w.said())
        w.engine.say([EngineStopped("Metal said no")])
        await w.until(lambda: "The engine stopped: Metal said no" in w.said())
        await w.ask("more")
        await w.until(lambda: "engine has stopped" in w.bar("activity"))
        assert w.app.prompt.text == "more"
        await w.ask("/quit")
        await w.until(lambda: w.app.return_value == 1)


@pytest.mark.slow
async def test_following_and_scrolling() -> None:
    async with window(FakeEngine(manual=True)) as w:
        transcript = w.app.transcript
        await w.ask("long")
        await w.until(lambda: w.app.state.transcript.reply)
        w.engine.say([TextDelta(f"para {i}\n\n", i) for i in range(50)])
        await w.until(lambda: "para 49" in w.screen())
        await w.pilot.press("pageup")
        await w.until(lambda: not transcript.view.follow)
        top = transcript.view.scroll_offset.y
        w.engine.say([TextDelta(f"more {i}\n\n", i) for i in range(50)])
        await w.until(lambda: "more 49" in w.said())
        assert transcript.view.scroll_offset.y == top
        assert "End ↓ to follow" in w.bar("activity")
        await w.pilot.press("end")
        await w.until(lambda: transcript.view.follow and "more 49" in w.screen())


@pytest.mark.slow
async def test_a_resize_keeps_the_place() -> None:
    async with window(size=(120, 30)) as w:
        transcript = w.app.transcript
        text = "\n\n".join(f"paragraph {i} " + "word " * 40 for i in range(60))
        w.engine.manual = True
        await w.ask("long")
        await w.until(lambda: w.app.state.transcript.reply)
        w.engine.say([TextDelta(text, 1), TurnFinished("stop", text, STATS)])
        await w.until(lambda: "5,871 cached" in w.screen())
        transcript.view.scroll_to(y=60, animate=False, immediate=True)
        await w.until(lambda: not transcript.view.follow)
        lines = transcript.lines
        before = lines.index_at(transcript.view.scroll_offset.y)
        await w.pilot.resize_terminal(60, 30)
        await w.until(lambda: lines.width < 70 and lines.is_exact, "everything wrapped again")
        assert lines.index_at(transcript.view.scroll_offset.y) == before
        assert transcript.view.virtual_size.height == lines.height


@pytest.mark.slow
@pytest.mark.parametrize("size", [(29, 24), (80, 7)])
async def test_too_small(size: tuple[int, int]) -> None:
    async with window(size=size) as w:
        await w.until(lambda: "need 30×8" in w.screen())
        await w.pilot.resize_terminal(80, 24)
        await w.until(lambda: w.app.focused is w.app.prompt)
        assert "need 30×8" not in w.screen()


@pytest.mark.slow
async def test_tiers() -> None:
    async with window(size=(50, 20)) as w:
        await w.ask("why")
        await w.until(lambda: "42.1 tok/s · KV 916 MB" in w.screen())
        assert "mlxkv" not in w.screen()
        await w.until(lambda: w.bar("footer").strip() == "19% ctx")
        await w.pilot.resize_terminal(80, 10)
        await w.until(lambda: not w.app.chat.footer.display)
        assert w.app.prompt.size.height == 1


@pytest.mark.slow
async def test_an_unknown_theme_is_only_a_line() -> None:
    async with window(settings=Settings(theme="no-such")) as w:
        await w.until(lambda: "no theme 'no-such'" in w.said())


@pytest.mark.slow
async def test_mouse_fuzz_while_streaming() -> None:
    """A press over a streaming Markdown widget crashes Textual 8.2.8 (Textual#6643); ours must not care."""
    rng = random.Random(7)
    async with window(FakeEngine(manual=True), size=(60, 20)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.transcript.reply)
        deltas = reply_events(REPLY * 6, piece=7)[1:-2]
        sent, shift = 0, False
        for step in range(2000):
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
        await w.until(lambda: w.app.state.transcript.reply is None)
        assert w.app.is_running
        assert "The borrow of map" in w.said()


def test_run_closes_the_engine_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    def broken(self: ChatApp, mouse: bool) -> int:
        raise RuntimeError("window")

    monkeypatch.setattr(ChatApp, "run", broken)
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    with pytest.raises(RuntimeError, match="window"):
        tui.run(engine, FIRST, Settings(), Folders.from_env())
    assert engine.closed == 1


def test_run_gives_the_engine_what_to_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ChatApp] = []
    monkeypatch.setattr(ChatApp, "run", lambda self, mouse: made.append(self) or (3 if mouse else 4))
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    start = (LoadModel("tutor"), OpenChat("c1"))
    assert tui.run(FakeEngine(), FIRST, Settings(), Folders.from_env(), start, "q") == 3
    assert made[0].first_commands == start
    assert tui.run(FakeEngine(), FIRST, Settings(mouse=False), Folders.from_env()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["ansi-dark", "ansi-light"])
async def test_without_colours_an_ansi_theme_is_the_terminals_own(theme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was black on black. And of a list one still sees which row is chosen."""
    monkeypatch.setenv("NO_COLOR", "1")
    async with window(FakeEngine(manual=True), settings=Settings(theme=theme)) as w:
        await w.pilot.press("ctrl+k")
        await w.until(lambda: "Rust lifetimes" in w.screen() and w.app.chat.picker and w.app.chat.picker.has_focus)

        def styles(row: int) -> list[Style]:
            return [segment.style for segment in w.app.screen._compositor.render_strips()[row] if segment.style]

        assert all(s.color == s.bgcolor == Color.default() for row in range(24) for s in styles(row))
        assert any(s.underline for s in styles(3))
        assert not any(s.underline for s in styles(4))


@pytest.mark.slow
async def test_a_title_too_long_for_the_header_is_cut_not_left_out() -> None:
    async with window(size=(120, 30)) as w:
        for title, shown in (("short", " short "), ("long " * 30, " long long "), ("x", " x ")):
            w.app.state.transcript.title = title.strip()
            w.app.chat.show()
            header = w.bar("header")
            assert shown in header
            assert cell_len(header) <= 120
            assert ("…" in header) is (title.startswith("long"))


@pytest.mark.slow
async def test_the_header_says_which_fork_and_the_footer_how_much_of_the_rows_is_saved() -> None:
    for size in ((120, 30), (80, 24)):
        async with window(size=size) as w:
            w.app.state.apply(ChatOpened("c2", "Rust lifetimes", (Message("user", "q"),)))
            w.app.state.apply(
                replace(w.app.state.status, kv_bytes=10**6, cache_tokens=1, cache_window=9, saved=SaveState.SAVED)
            )
            for event, said in ((SaveProgress(412, 1000), "saving KV 41%"), (SaveProgress(1000, 1000), "saved ✓")):
                w.app.state.apply(event)
                w.app.chat.show()
                assert said in w.bar("footer")
            assert "⑂" not in w.bar("header")
            w.app.state.apply(replace(w.app.state.status, fork=2))
            w.app.chat.show()
            assert "Rust lifetimes ⑂2" in w.bar("header")


@pytest.mark.slow
async def test_the_dearer_a_frame_the_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share of the time is what the model loses on a machine with few cores."""
    waits: list[float] = []
    async with window() as w:
        monkeypatch.setattr(w.app, "set_timer", lambda delay, callback: waits.append(delay))
        monkeypatch.setattr(w.app, "clock", lambda: 10.0)
        for cost in (0.0, 0.002, 0.004, 0.03, 0.1):
            w.app._schedule_drain(10.0 - cost)
    assert waits[:5] == pytest.approx([0.1, 0.1, 0.16, 0.2, 0.4])
