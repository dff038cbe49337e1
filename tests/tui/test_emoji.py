"""Which terminals get joined emoji, and that lines with them are as wide as the mouse and the eye find them."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.style import Style

from mlxkv.config import Settings
from mlxkv.events import Message
from mlxkv.protocol.events import ChatOpened
from mlxkv.tui.emoji import joins_emoji
from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.copying import selected
from mlxkv.tui.widgets.line_layout import LineLayout
from mlxkv.tui.widgets.line_painter import LinePainter
from mlxkv.tui.widgets.search import Finder
from tests.tui.window import window

FAMILY = "👨\u200d👩\u200d👧"


@pytest.mark.parametrize(
    ("env", "joins"),
    [
        ({}, False),
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, False),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, True),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, True),
        ({"TERM": "xterm-kitty"}, True),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, True),
        ({"TERM": "foot"}, True),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "tmux"}, False),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, False),
        ({"TERM": "screen.xterm-kitty", "STY": "1"}, False),
    ],
)
def test_known_terminals_join_and_others_do_not(env: dict[str, str], joins: bool) -> None:
    assert joins_emoji(None, env) is joins
    assert joins_emoji(True, env)
    assert not joins_emoji(False, env)


def test_the_mouse_finds_the_character_behind_a_joined_emoji() -> None:
    """Counted one by one, the characters of a family are six cells wide; it takes two."""
    lines = LineLayout(Renderer(Colours(joined_emoji=True)).strips, 60)
    lines.update([Block(Kind.MARKDOWN, f"ab {FAMILY}{FAMILY} cd", tight=True, message=0)], [])
    lines.render_block(0)
    painter = LinePainter(lines, Finder(lines), "red")
    painter.begin(Style(), 60)
    strip = painter.line(0, None, Style())
    text = lines.line(0).text
    assert strip.cell_length == 60
    assert cell_len(text) == 3 + 3 + 4 + 3
    at, places = 0, {}
    for segment in strip:
        assert segment.style is not None
        places[at] = segment.style.meta["offset"][0]
        at += segment.cell_length
    assert places[8] == text.index(FAMILY) + len(FAMILY)  # where the second family is
    assert places[10] == text.index(" cd")
    start = text.index(FAMILY)
    assert selected(lines, (0, start), (0, start + len(FAMILY))) == FAMILY


@pytest.mark.slow
async def test_a_setting_joins_them_in_the_window_and_parts_are_the_default() -> None:
    opened = ChatOpened("c1", "t", (Message("user", f"hi {FAMILY}"), Message("assistant", f"I see {FAMILY}, all")))
    for setting, shown in ((True, FAMILY), (False, "👨👩👧")):
        async with window(settings=Settings(joined_emoji=setting)) as w:
            w.app.state.apply(opened)
            await w.until(lambda w=w: "I see" in w.screen())
            lines = w.said().splitlines()
            assert [shown in line for line in lines if "hi" in line or "I see" in line] == [True, True]
            w.app.prompt.put(FAMILY)  # what is sent again is what was sent
            assert w.app.prompt.text == FAMILY
