"""Reading a chat: message cursor, folding, search, links, copying, the mouse. Every wait is for a condition."""

from __future__ import annotations

import pytest
from rich.segment import Segment
from textual.events import Key, Paste
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

from mlxkv.events import Message, TextDelta, TurnFinished
from mlxkv.protocol.commands import Fork, OpenChat, Retry, Send
from mlxkv.protocol.events import ChatOpened, Sibling, Versions
from mlxkv.tui.screens.chat import CURSOR_KEYS
from mlxkv.tui.screens.link import LinkScreen, host_note, is_web
from mlxkv.tui.state.transcript.blocks import Kind
from mlxkv.tui.widgets.find_bar import FindBar, FindInput
from mlxkv.tui.widgets.line_painter import MATCH, paint
from tests.tui.fake_engine import REPLY, STATS, FakeEngine
from tests.tui.window import Window, window

LINKED = "See [the docs](https://example.org/a) or http://x.example/b?c=1, not [this](javascript:alert(1))."


async def chat(w: Window, *texts: str) -> None:
    """A chat with these messages, the user's first."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text, STATS if i % 2 else None) for i, text in enumerate(texts))
    w.engine.say([ChatOpened("c9", "test", messages)])
    await w.until(lambda: len(w.app.state.transcript.messages) == len(texts))
    await w.until(lambda: w.app.transcript.size.height > 5)


@pytest.mark.slow
async def test_the_cursor_walks_over_messages_and_says_what_it_can_do() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two", "three", REPLY)
        transcript = w.app.transcript
        await w.pilot.press("alt+up")
        await w.until(lambda: transcript.cursor == 3 and w.app.focused is transcript)
        assert "y copy · c code" in w.bar("activity")
        assert "▌" in w.screen()
        await w.pilot.press("up", "k")
        await w.until(lambda: transcript.cursor == 1)
        await w.pilot.press("down", "y")
        await w.until(lambda: w.app.clipboard == "three")
        await w.pilot.press("down", "y")
        await w.until(lambda: w.app.clipboard == REPLY.strip())
        await w.pilot.press("c")
        await w.until(lambda: w.app.clipboard.startswith("let n = map"))
        assert "```" not in w.app.clipboard
        await w.pilot.press("down")  # below the last one: back to the prompt
        await w.until(lambda: transcript.cursor is None and w.app.focused is w.app.prompt)
        assert not transcript.can_focus
        assert "y copy" not in w.bar("activity")


@pytest.mark.slow
async def test_letters_that_mean_nothing_to_the_cursor_go_to_the_prompt() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two")
        await w.pilot.press("alt+up", *"hey")
        await w.until(lambda: w.app.prompt.text == "hey")
        assert w.app.transcript.cursor is None


@pytest.mark.slow
async def test_wishes() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two", "three", "four")
        await w.pilot.press("alt+up", "f")
        await w.until(lambda: w.sent(Fork) == [Fork(3)])
        await w.until(lambda: w.app.focused is w.app.prompt)
        w.engine.say([ChatOpened("c10", "copy", ())])
        await w.until(lambda: not w.app.state.transcript.messages)
        await chat(w, "one", "two", "three", "four")
        await w.pilot.press("alt+up", "up", "e")
        await w.until(lambda: w.app.prompt.text == "three")
        w.app.prompt.put("")
        await w.pilot.press("alt+up", "r")
        await w.until(lambda: w.sent(Retry) == [Retry(3)])


@pytest.mark.slow
async def test_there_is_no_other_version() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two")
        await w.pilot.press("alt+up", "[")
        await w.until(lambda: "no other version" in w.bar("activity"))
        assert not w.sent(OpenChat)


@pytest.mark.slow
async def test_the_cursor_stays_while_versions_are_turned() -> None:
    """It once left after the first, and the second `[` was typed into the prompt."""
    async with window(FakeEngine(manual=True)) as w:
        versions = tuple(Sibling(f"v{i}", "two", float(i), i == 2) for i in range(3))
        w.engine.say([Versions(((), versions))])
        await chat(w, "one", "two")
        await w.pilot.press("alt+up")
        for turned in (1, 2):
            await w.pilot.press("[")
            await w.until(lambda n=turned: len(w.sent(OpenChat)) == n and w.app.state.session_id == "v1")
            await w.pilot.pause()
            assert (w.app.transcript.cursor, w.app.prompt.text) == (1, "")
        assert CURSOR_KEYS[:50] in w.bar("activity")
        w.engine.history = w.engine.history[:1]  # this version has no reply
        await w.pilot.press("[")
        await w.until(lambda: w.app.focused is w.app.prompt)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["ctrl+f"], ["ctrl+k"], ["f1"], ["ctrl+p"]])
async def test_ctrl_c_closes_what_is_open_and_then_arms(keys: list[str]) -> None:
    def is_clear() -> bool:
        chat = w.app.chat
        return (chat.find_bar, chat.picker, chat.has_pane, w.app.screen) == (None, None, False, chat)

    async with window() as w:
        await w.pilot.press(*keys)
        await w.until(lambda: not is_clear())
        await w.pilot.press("ctrl+c")
        await w.until(is_clear)
        assert "quits" not in w.bar("activity")
        await w.until(lambda: w.app.focused is w.app.prompt)
        await w.pilot.press("ctrl+c")
        await w.until(lambda: "ctrl+c again quits" in w.bar("activity"))


@pytest.mark.slow
async def test_reasoning_unfolds() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("why")
        await w.until(lambda: w.sent(Send))
        w.engine.say([TextDelta("Let me think.\nFirst", i, thinking=True) for i in range(1, 4)])
        await w.until(lambda: "▸ thinking" in w.said())
        assert "First" not in w.said()
        await w.pilot.press("ctrl+o")
        await w.until(lambda: "│ Let me think." in w.said())
        w.engine.say([TextDelta("Because.", 5), TurnFinished("stop", "Because.", STATS)])
        await w.until(lambda: "▾ thought" in w.said())
        assert " tok" in w.said()
        await w.pilot.press("ctrl+o")
        await w.until(lambda: "Let me think" not in w.said() and "▸ thought" in w.said())
        await w.pilot.press("alt+up", "space")
        await w.until(lambda: "│ Let me think." in w.said())
        await w.pilot.press("escape")
        y = next(i for i, line in enumerate(w.screen().split("\n")) if "▾ thought" in line)
        await w.pilot.click(offset=(2, y))
        await w.until(lambda: "▸ thought" in w.said())
        await w.ask("/copy")
        await w.until(lambda: w.app.clipboard == "Because.")  # what was thought is not the reply


@pytest.mark.slow
async def test_reasoning_of_an_earlier_run_is_there() -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.engine.say([ChatOpened("c9", "t", (Message("user", "q"), Message("assistant", "a", STATS, "hm " * 40)))])
        await w.until(lambda: "▸ thought · ~29 tok" in w.said())
        await w.pilot.press("ctrl+o")
        await w.until(lambda: "│ hm hm" in w.said())


@pytest.mark.slow
async def test_a_long_question_unfolds_with_a_click() -> None:
    async with window(FakeEngine(manual=True), size=(80, 40)) as w:
        await chat(w, "\n".join(f"row {i}" for i in range(20)), "short")
        assert "row 19" not in w.said()
        y = next(i for i, line in enumerate(w.screen().split("\n")) if "12 more lines" in line)
        await w.pilot.click(offset=(6, y))
        await w.until(lambda: "row 19" in w.said())


@pytest.mark.slow
async def test_copy_command() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "q", "first\n\n```\na\n```\n\n```\nb\n```", "q", "second")
        for argument, wanted in (("", "second"), ("2 code 2", "b"), ("2 code", "a\n\nb"), ("1", "second")):
            await w.ask(f"/copy {argument}")
            await w.until(lambda wanted=wanted: w.app.clipboard == wanted, argument)
        for argument, said in (("3", "no reply 3: they are 1 to 2"), ("code", "no code"), ("2 code 9", "no number 9")):
            await w.ask(f"/copy {argument}")
            await w.until(lambda said=said: said in w.bar("activity"), argument)


@pytest.mark.slow
async def test_search() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, *(f"message {i} with a {'needle' if i % 4 == 1 else 'straw'}" for i in range(120)))
        transcript = w.app.transcript
        await w.pilot.press("ctrl+f")
        await w.until(lambda: isinstance(w.app.focused, object) and w.app.query(FindBar))
        await w.pilot.press(*"NEEDLE")
        await w.until(lambda: "/30" in w.screen())
        assert "30/30" in w.screen()  # from where the reader is
        await w.pilot.press("shift+enter", "up")
        await w.until(lambda: "28/30" in w.screen())
        assert "message 109 with a needle" in w.screen()
        await w.pilot.press("enter", "down", "enter")
        await w.until(lambda: "1/30" in w.screen() and "message 1 with" in w.screen())
        assert not transcript.view.follow
        await w.pilot.press("x")
        await w.until(lambda: "no match" in w.screen())
        await w.pilot.press("escape")
        await w.until(lambda: not w.app.query(FindBar) and w.app.focused is w.app.prompt)
        assert transcript.finder.wanted is None


@pytest.mark.slow
@pytest.mark.parametrize("keys", [("alt+up", "slash"), ("ctrl+f",)], ids=["message cursor", "prompt"])
async def test_letters_at_once_after_the_key_are_searched_for(keys: tuple[str, ...]) -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "needle one", "straw", "needle two", "straw")
        if keys[1:]:
            await w.pilot.press(keys[0])
            await w.until(lambda: w.app.focused is w.app.transcript)
        for key in (keys[-1], *"needle"):  # faster than a key is handled
            w.app.post_message(Key(key, {"slash": "/", "ctrl+f": "\x06"}.get(key, key)))
        await w.until(lambda: "/2" in w.screen())
        assert w.app.prompt.text == ""
        assert "y copy" not in w.bar("activity")


@pytest.mark.slow
async def test_a_link_is_shown_whole_before_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with window(FakeEngine(manual=True)) as w:
        opened: list[str] = []
        monkeypatch.setattr(type(w.app), "open_url", lambda _self, url: opened.append(url))
        await chat(w, "q", LINKED)
        rows = w.screen().split("\n")
        y = next(i for i, row in enumerate(rows) if "the docs" in row)
        await w.pilot.click(offset=(rows[y].index("the docs") + 2, y))
        await w.until(lambda: isinstance(w.app.screen, LinkScreen))
        await w.until(lambda: "https://example.org/a" in w.screen())
        assert not opened
        await w.pilot.press("escape")
        await w.until(lambda: not isinstance(w.app.screen, LinkScreen))
        y = next(i for i, row in enumerate(w.screen().split("\n")) if "x.example" in row)
        await w.pilot.click(offset=(w.screen().split("\n")[y].index("x.example"), y))
        await w.until(lambda: isinstance(w.app.screen, LinkScreen))
        await w.pilot.press("enter")
        await w.until(lambda: opened == ["http://x.example/b?c=1"])
        shown = [segment for y in range(w.height) for segment in w.app.transcript.lines.line(y)]
        assert not any("javascript" in str(segment.style.meta) for segment in shown if segment.style)


def test_only_the_web_is_opened() -> None:
    assert is_web("https://example.org/x")
    for address in ("javascript:alert(1)", "file:///etc/passwd", "http://", "https://a\x1b[2J", "//x", "http://[::1"):
        assert not is_web(address), address
    assert host_note("https://example.org") == ""
    assert "xn--" in host_note("https://аpple.com/")  # the first letter is Cyrillic


@pytest.mark.slow
async def test_a_long_chat_opens_without_being_wrapped() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, *(REPLY for _ in range(600)))
        await w.until(lambda: not w.app.transcript.view.is_wrapping)
        cells = [w.app.transcript.lines.cell(i) for i in range(len(w.app.transcript.lines))]
        assert sum(cell.strips is not None for cell in cells) < 1000
        assert sum(cell.block.kind is Kind.REPLY for cell in cells) > 200  # not even cut into blocks


@pytest.mark.slow
async def test_a_selection_stays_on_its_text_when_lines_above_are_wrapped() -> None:
    async with window(FakeEngine(manual=True), size=(60, 20)) as w:
        await chat(w, *(f"message {i}" + "\nword" * 9 for i in range(80)))  # a reply's lines become one: not as guessed
        transcript = w.app.transcript
        await w.until(lambda: not transcript.view.is_wrapping)
        transcript.lines.reset(transcript.lines.width)  # all heights are guesses again
        transcript.update_blocks([])
        y = next(y for y in range(transcript.lines.height - 19, transcript.lines.height)
                 if "message 79" in transcript.lines.line(y).text)  # fmt: skip
        w.app.screen.selections = {transcript.view: Selection(Offset(3, y), Offset(13, y))}
        assert w.app.screen.get_selected_text() == "message 79"
        await w.until(lambda: not transcript.view.is_wrapping, "wrapped again")
        assert w.app.screen.get_selected_text() == "message 79"


@pytest.mark.slow
async def test_a_flush_lays_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layout of the screen costs as much as three flushes."""
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, *(REPLY for _ in range(10)))
        await w.ask("go")
        await w.until(lambda: w.app.state.transcript.reply)
        w.engine.say([TextDelta("First paragraph.\n\n", 1)])
        await w.until(lambda: "First paragraph" in w.screen())
        await w.until(lambda: not w.app.transcript.view.is_wrapping)
        layouts: list[int] = []
        real = type(w.app.screen)._refresh_layout
        monkeypatch.setattr(
            type(w.app.screen), "_refresh_layout", lambda self, *a, **k: (layouts.append(1), real(self, *a, **k))[1]
        )
        for i in range(20):
            w.app.state.apply(TextDelta(f"line {i}\n\n", i))
            w.app.chat.sync()
            await w.pilot.pause()
        assert "line 19" in w.screen()
        assert len(layouts) <= 2


async def test_a_search_that_finds_something_beyond_the_right_edge() -> None:
    """No line of ours is that long; if one ever is, what is not on the screen is not painted, and nothing breaks."""
    strip = Strip([Segment("abc" + "x" * 50)]).crop(0, 10)
    assert paint(strip, "abc" + "x" * 50, 20, 30, MATCH) == strip
    assert paint(strip, "abc" + "x" * 50, 2, 30, MATCH).text == strip.text
    assert paint(strip, "abc" + "x" * 50, 2, -1, MATCH).text == strip.text


@pytest.mark.slow
async def test_a_letter_after_the_key_is_no_command_of_the_message_cursor() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two")
        await w.pilot.press("alt+up")
        await w.until(lambda: w.app.focused is w.app.transcript)
        w.app.transcript.on_key(Key("slash", "/"))
        w.app.transcript.on_key(Key("e", "e"))
        await w.until(lambda: w.app.query(FindInput) and w.app.query_one(FindInput).value == "e")


@pytest.mark.slow
async def test_letters_before_and_after_the_search_line_has_the_focus_make_one_word() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two")
        w.app.chat.open_find_bar()
        assert w.app.prompt.goes_elsewhere("t")
        await w.until(lambda: isinstance(w.app.focused, FindInput))
        await w.pilot.press("w", "o")
        await w.until(lambda: "1/1" in w.screen())
        assert w.app.query_one(FindInput).value == "two"


@pytest.mark.slow
async def test_keys_of_the_search_line_keep_their_order() -> None:
    """All in one burst, as over a slow line: letters overtook backspaces."""
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two")
        await w.pilot.press("ctrl+f", "o", "n")
        line = w.app.focused
        assert isinstance(line, FindInput)
        for key, character in (("backspace", "\x08"), ("backspace", "\x08"), ("t", "t"), ("w", "w"), ("o", "o")):
            w.app.post_message(Key(key, character))
        await w.until(lambda: line.value == "two", line.value)


@pytest.mark.slow
async def test_what_is_pasted_into_the_search_line_is_harmless() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await chat(w, "one", "two")
        await w.pilot.press("ctrl+f")
        line = w.app.focused
        assert isinstance(line, FindInput)
        w.app.post_message(Paste("a\u202eb\x9bc\rd"))
        await w.until(lambda: line.value)
        assert line.value == "a\ufffdb\ufffdc"
