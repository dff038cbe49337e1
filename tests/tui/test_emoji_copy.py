"""What is copied of joined emoji has their joiners, however the terminal shows them."""

from __future__ import annotations

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import ChatOpened
from mlxkv.text.clean import clean, rejoined
from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.copying import code_blocks, message_text, selected
from mlxkv.tui.widgets.line_layout import LineLayout

FAMILY, PARTS = "👨\u200d👩\u200d👧", "👨👩👧"
WHOLE = {
    "family": FAMILY,
    "two in a row": FAMILY + FAMILY,
    "couple inside of a family": f"👩\u200d👧 {FAMILY}",
    "profession with a tone": "👩🏽\u200d🚒",
    "with a selector": "❤\ufe0f\u200d🔥",
    "flag": "🏴\u200d☠\ufe0f",
    "a joiner at the end": "👩\u200d",
    "no joiner": "👩👧 ❤\ufe0f 🇩🇪",
    "apart, then joined": f"{PARTS} {FAMILY}",
    "joined, then apart": f"{FAMILY} {PARTS}",
}


@pytest.mark.parametrize("emoji", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("kind", [Kind.MARKDOWN, Kind.USER, Kind.CODE, Kind.META, Kind.ERROR, Kind.THOUGHT])
@pytest.mark.parametrize("width", [60, 20])
def test_a_part_of_a_block(kind: Kind, emoji: str, width: int) -> None:
    text = f"so {emoji} and then"
    block = Block(kind, "thought" if kind is Kind.THOUGHT else text, detail=text if kind is Kind.THOUGHT else "")
    lines = LineLayout(Renderer(Colours()).strips, width)
    lines.update([Block(kind, block.text, detail=block.detail, folded=False, message=0)], [])
    lines.render_block(0)
    first = 2 if kind is Kind.THOUGHT else 1
    start = lines.line(first).text.index("so") + 1
    copied = selected(lines, (first, start), (lines.height - 1, -1))
    assert copied.replace("\n", " ") == text[1:]


def test_only_what_was_selected_is_joined() -> None:
    lines = LineLayout(Renderer(Colours()).strips, 60)
    lines.update([Block(Kind.MARKDOWN, f"a {PARTS} b {FAMILY} c", tight=True, message=0)], [])
    lines.render_block(0)
    line = lines.line(0).text
    second = line.rindex(PARTS)
    assert selected(lines, (0, 5), (0, second)) == f"{PARTS} b "
    assert selected(lines, (0, second), (0, second + 3)) == FAMILY
    assert selected(lines, (0, second), (0, second + 1)) == "👨"


@pytest.mark.parametrize("source", [f"x {FAMILY} y", f"{FAMILY} {PARTS}", "no emoji", "می\u200cخواهم", "a\u200db"])
def test_all_of_it_is_what_it_was(source: str) -> None:
    assert rejoined(clean(source), "", source) == clean(source, joined=True)


def test_where_the_order_is_another_all_are_joined() -> None:
    assert rejoined(f"{PARTS} 👩👧", "", f"👩\u200d👧 | {FAMILY}") == f"{FAMILY} 👩\u200d👧"


def test_copying_a_message_and_its_code() -> None:
    reply = Block(Kind.REPLY, f"see {FAMILY}\n\n```\n{FAMILY}\n```\n", message=1)
    assert FAMILY in message_text([reply])
    assert code_blocks([reply]) == [FAMILY]


def test_a_title_keeps_them_when_it_is_changed() -> None:
    """`/rename` put the title into the prompt in parts, and Enter then kept the parts."""
    state = ChatState(lambda: 100.0)
    state.submit(cmd.OpenChat("c1"))
    state.apply(ChatOpened("c1", f"We {FAMILY}\n"))
    run(state, "rename", "")
    assert state.put == f"/rename We {FAMILY}"
