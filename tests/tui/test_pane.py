"""The output of commands is in a pane beside the chat, whose end stays in view."""

from __future__ import annotations

import pytest
from textual.events import MouseScrollDown
from textual.geometry import Offset
from textual.selection import Selection

from mlxkv.protocol.commands import Send
from mlxkv.tui.state.reports.report import Line, Report
from mlxkv.tui.widgets.pane import Place, place_of
from tests.tui.fake_engine import FakeEngine
from tests.tui.window import Window, window

END = "5,871 cached"  # of the figures under the last reply


@pytest.mark.parametrize(
    ("size", "place"),
    [
        ((80, 24), Place(0, 10)), ((120, 40), Place(0, 18)), ((30, 8), Place(0, 3)),
        ((149, 40), Place(0, 18)), ((150, 40), Place(60, 40)), ((200, 60), Place(76, 60)), ((300, 60), Place(80, 60)),
    ],
)  # fmt: skip
def test_it_leaves_room_for_the_chat(size: tuple[int, int], place: Place) -> None:
    assert place_of(*size) == place


def test_names_are_in_one_column_and_copied_with_their_text() -> None:
    report = Report("stats", (Line("Head"), Line("a:", "one"), Line("longer:", "two"), Line("", "a sentence")))
    blocks = report.blocks()
    assert [block.info for block in blocks] == ["heading", "a:       ", "longer:  ", ""]
    assert "".join(block.source for block in blocks) == "Head\na:       one\nlonger:  two\na sentence\n"
    assert report.title == "/stats · statistics of this chat"


def title(w: Window) -> str:
    return str(w.app.chat.pane.border_title)


@pytest.mark.slow
async def test_reports_open_beside_the_chat_and_close() -> None:
    async with window(FakeEngine()) as w:
        await w.ask("why")
        await w.until(lambda: END in w.screen())
        for command, words in (("stats", "All chats:"), ("memory", "weights"), ("context", "of 128 (78%)")):
            await w.ask(f"/{command}")
            await w.until(lambda words=words: words in w.screen(), command)
            await w.until(lambda: END in w.screen())
            assert title(w).startswith(f"/{command} · ")
        await w.until(lambda: "All chats:" not in w.screen(), "the last has replaced it")
        assert "All chats:" not in w.said()
        await w.pilot.press("escape")
        await w.until(lambda: "of 128" not in w.screen())
        await w.ask("/stats")
        await w.until(lambda: "All chats:" in w.screen())
        await w.ask("and then?")
        await w.until(lambda: "All chats:" not in w.screen())
        assert len(w.sent(Send)) == 2
        for command, words in (("tree", "14 Nov 2023"), ("cache ls", "book")):  # lists to choose from
            await w.ask(f"/{command}")
            await w.until(lambda words=words: words in w.screen(), command)
            await w.until(lambda: END in w.screen())
            assert f"/{command} · " in w.screen()
            await w.pilot.press("escape")
            await w.until(lambda words=words: words not in w.screen() and w.app.prompt.has_focus, command)


@pytest.mark.slow
async def test_a_long_report_scrolls_and_is_copied() -> None:
    async with window(FakeEngine()) as w:
        await w.ask("why")
        await w.until(lambda: END in w.screen())
        await w.ask("/keys")
        await w.until(lambda: "list all key bindings" in w.screen())
        pane, chat = w.app.chat.pane, w.app.transcript.view
        top = chat.top
        await w.pilot.press("pagedown")
        await w.until(lambda: pane.view.top == 8)
        await w.pilot.press("shift+up")
        await w.until(lambda: pane.view.top == 7)
        x, y = pane.view.region.offset
        w.app.screen._forward_event(MouseScrollDown(None, x, y, 0, 0, 0, False, False, False, x, y))
        await w.until(lambda: pane.view.top > 7)
        assert chat.top == top
        row = next(y for y in range(pane.lines.height) if "app.interrupt" in pane.lines.line(y).text)
        w.app.screen.selections = {pane.view: Selection(Offset(0, row), Offset(99, row))}
        await w.pilot.press("ctrl+c")
        await w.until(lambda: w.app.clipboard)
        assert " ".join(w.app.clipboard.split()) == "ctrl+c Copy, clear, stop, quit · app.interrupt"
        await w.pilot.resize_terminal(200, 50)
        await w.until(lambda: pane.region.height > 40 and pane.region.x == 124)
        await w.until(lambda: END in w.screen())
