"""Search and copying, nearly all without a widget: what is found is what is shown, what is copied what was written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.events import Message, TextDelta
from mlxkv.protocol.events import ChatOpened, TurnStarted
from mlxkv.text.clean import clean
from mlxkv.text.folding import Wanted
from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.markdown.stream_splitter import split
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.copying import code_blocks, message_text, selected
from mlxkv.tui.widgets.line_layout import LineLayout
from mlxkv.tui.widgets.search import Finder
from tests.tui.fake_engine import REPLY, STATS, FakeEngine
from tests.tui.window import window


def layout(*blocks: Block, width: int = 60) -> LineLayout:
    lines = LineLayout(Renderer(Colours()).strips, width)
    lines.update(blocks, [])
    return lines


def chat(*replies: str, width: int = 60) -> LineLayout:
    blocks: list[Block] = []
    for i, text in enumerate(replies):
        blocks += [Block(Kind.USER, f"question {i}", message=2 * i), Block(Kind.REPLY, text, message=2 * i + 1)]
    return layout(*blocks, width=width)


def settle_all(lines: LineLayout) -> None:
    while (index := lines.unrendered(0, lines.height)) is not None:
        lines.render_block(index)


def all_text(lines: LineLayout) -> str:
    return "\n".join(lines.line(y).text for y in range(lines.height))


def test_matches_are_walked_in_order_and_around() -> None:
    lines = chat(*(f"one needle here, number {i}" for i in range(40)))
    lines.render_end(10)
    finder = Finder(lines)
    assert finder.search("NEEDLE", lines.height - 10)
    seen = []
    for _ in range(41):
        at, total = finder.numbers()
        assert total == 40
        y = finder.line()
        assert y is not None
        lines.render_view(y, 1)
        seen.append(int(re.findall(r"number (\d+)", lines.line(finder.line() or 0).text)[0]))
        assert seen[-1] == at - 1
        assert finder.move(1)
    assert seen[0] > 30  # from the view on
    assert sorted(seen[:40]) == list(range(40))
    assert seen[40] == seen[0]
    assert finder.move(-1)
    assert finder.move(-1)
    assert finder.numbers()[0] - 1 == seen[39] or finder.numbers()[0] - 1 == seen[40]


def test_above_is_searched_when_nothing_is_below() -> None:
    lines = chat("needle", *("straw " * 30 for _ in range(20)))
    finder = Finder(lines)
    assert finder.search("needle", lines.height - 5)
    assert finder.numbers() == (1, 1)
    assert not finder.search("no such", 0)
    assert finder.numbers() == (0, 0)
    assert not finder.search("  ", 0)


def test_a_match_goes_over_a_line_end() -> None:
    lines = layout(
        Block(Kind.MARKDOWN, "some words that are wrapped right between alpha beta gamma and the rest"), width=51
    )
    settle_all(lines)
    assert "alpha beta" not in all_text(lines)
    finder = Finder(lines)
    assert finder.search("alpha beta", 0)
    cell = lines.cell(0)
    found = [
        lines.line(lines.start(0) + row).text[first:last]
        for row in range(cell.height)
        for first, last, _ in finder.spans(cell, row)
    ]
    assert " ".join(found) == "alpha beta"


def test_what_only_the_source_has_is_passed_over() -> None:
    lines = chat("a [label](http://example.org) **strong**", "plain ** here")
    finder = Finder(lines)
    assert finder.search("**", 0)
    y = finder.line()
    assert y is not None
    assert "plain ** here" in lines.line(y).text
    assert finder.numbers()[1] == 1


@pytest.mark.slow
@given(st.lists(st.sampled_from(["ab", "a b", "b\n\na", "- ab", "xx", "a\nb"]), min_size=1, max_size=6), st.booleans())
def test_counts_are_those_of_the_screen(replies: list[str], settled: bool) -> None:
    lines = chat(*replies)
    if settled:
        settle_all(lines)
    finder = Finder(lines)
    found = finder.search("a b", 0)
    seen = set()
    while found and (finder.cell, finder.which) not in seen:
        seen.add((finder.cell, finder.which))
        finder.move(1)
    settle_all(lines)
    wanted = Wanted.of("a b")
    assert wanted
    expected = sum(
        len([*wanted.places("\n".join(row.text for row in lines.cell(i).strips or ()))]) for i in range(len(lines))
    )
    assert len(seen) == expected == finder.numbers()[1]


# -- copying ---------------------------------------------------------------------------------------------------


def test_the_whole_of_a_chat_is_its_sources() -> None:
    lines = layout(
        Block(Kind.USER, "why?", message=0), *split(REPLY), Block(Kind.STATS, "", stats=STATS), Block(Kind.USER, "and?")
    )
    settle_all(lines)
    assert selected(lines, (0, 0), (lines.height - 1, -1)) == f"why?\n\n{REPLY.strip()}\n\nand?"
    assert message_text(split(REPLY)) == REPLY.strip()
    assert message_text([Block(Kind.REPLY, REPLY)]) == REPLY.strip()


def test_a_part_is_copied_without_what_wrapping_added() -> None:
    text = "a paragraph that is long enough to be wrapped more than once in a window so narrow"
    lines = layout(Block(Kind.MARKDOWN, text, source=text), width=34)
    settle_all(lines)
    assert lines.height > 3
    assert selected(lines, (1, 5), (lines.height - 1, -1)) == text[2:]
    assert selected(lines, (1, 0), (lines.height - 1, -1)) == text
    assert selected(lines, (1, 3), (2, 7)) == text[: len(lines.line(1).text) - 3] + " " + lines.line(2).text[3:7]


def test_code_is_copied_without_its_bar_and_alone_without_fences() -> None:
    long = "value = '" + "x" * 60 + "'"
    lines = layout(*split(f"Look:\n\n```py\nif a:\n    {long}\n```\n\nEnd"), width=40)
    settle_all(lines)
    rows = [lines.line(y).text for y in range(lines.height)]
    first = next(y for y, row in enumerate(rows) if "if a" in row)
    last = max(y for y, row in enumerate(rows) if "│" in row)
    assert selected(lines, (first, 0), (last, -1)) == f"if a:\n    {long}"
    assert selected(lines, (first, 5), (last, -1)) == f"if a:\n    {long}"
    assert selected(lines, (first, 7), (last, -1)) == f" a:\n    {long}"
    assert selected(lines, (0, 0), (last, -1)) == f"Look:\n\n```py\nif a:\n    {long}\n```"
    assert code_blocks([Block(Kind.REPLY, "```\n" + "a\n" * 100 + "```\n\n~~~\nb\n~~~")]) == ["\n".join("a" * 100), "b"]


WORDS = st.text("ab \n-`|#é世", max_size=80)


@given(WORDS, st.integers(24, 60), st.data())
def test_any_selection_is_text_that_is_there(markdown: str, width: int, data: st.DataObject) -> None:
    lines = layout(*split(clean(markdown)), width=width)
    settle_all(lines)
    if not lines.height:
        return
    first = data.draw(st.integers(0, lines.height - 1))
    last = data.draw(st.integers(first, lines.height - 1))
    left = data.draw(st.integers(0, width))
    text = selected(lines, (first, left), (last, -1))

    def letters(source: str) -> str:
        return "".join(char for char in source if char in "abé世")

    assert letters(text) in letters(markdown)


@pytest.mark.parametrize("width", [30, 80])
def test_a_selection_reaches_into_what_is_not_wrapped(width: int) -> None:
    lines = chat(*(f"reply {i} " + "word " * 30 for i in range(6)), width=width)
    lines.render_end(5)
    text = selected(lines, (0, 0), (lines.height - 1, -1))
    assert [line for line in text.split("\n") if line.startswith("question")] == [f"question {i}" for i in range(6)]
    assert all(f"reply {i}" in text for i in range(6))


@pytest.mark.slow
async def test_matches_are_counted_while_the_reply_grows() -> None:
    """The count once stayed what it was when the last letter was typed."""
    async with window(FakeEngine(manual=True)) as w:
        w.engine.say([ChatOpened("c9", "Search", (Message("user", "needle one"),))])
        w.engine.say([TurnStarted("go on"), TextDelta("A nee", 1)])
        await w.until(lambda: "A nee" in w.said())
        await w.pilot.press("ctrl+f", *"needle")
        await w.until(lambda: "1/1" in w.screen())
        w.engine.say([TextDelta("dle", 2)])
        await w.until(lambda: "1/2" in w.screen())
        await w.pilot.press("enter")
        await w.until(lambda: "2/2" in w.screen())
        for piece in (" and more of it", ", then a needle", ".\n\nThe last needle."):
            w.engine.say([TextDelta(piece, 3)])
        await w.until(lambda: "2/4" in w.screen())  # the match that grew is still the current one
