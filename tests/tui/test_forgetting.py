"""The rule in the transcript where what the model attends to begins, and the muted text above it."""

from __future__ import annotations

import pytest
from rich.style import Style

from mlxkv.events import Message
from mlxkv.protocol.events import ChatOpened
from mlxkv.protocol.status import SessionStatus, Unattended
from mlxkv.text.folding import Wanted
from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.markdown.wrap import Row
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.state.transcript.forgetting import Rule, rule_of, rule_text
from mlxkv.tui.widgets.copying import selected
from mlxkv.tui.widgets.line_layout import LineLayout
from mlxkv.tui.widgets.search import shown_matches
from tests.tui.fake_engine import STATS

MUTED = Style.parse(Colours().muted).color
REPLY = "First **one** here.\n\n- item two\n- item three\n\n```py\nfour = 4\n```\n\nThe fifth and last."
FOUND = Unattended(412, 6, 2, pinned=120, pins_system=True)


def rule(message: int, chars: int | None = 0, first: int = 0) -> Rule:
    return Rule(message, chars, first, FOUND)


def layout(*blocks: Block, width: int = 60) -> LineLayout:
    lines = LineLayout(Renderer(Colours()).strips, width)
    lines.update(blocks, [])
    return lines


def chat() -> LineLayout:
    return layout(
        Block(Kind.USER, "zero", message=0), Block(Kind.REPLY, REPLY, message=1),
        Block(Kind.STATS, "", stats=STATS, message=1), Block(Kind.META, "a notice"),
        Block(Kind.USER, "two " * 40, message=2), Block(Kind.REPLY, "Three.", message=3),
    )  # fmt: skip


def drawn(lines: LineLayout) -> list[tuple[str, bool]]:
    """The text of each line, and whether all of it is muted."""
    while (index := lines.unrendered(0, lines.height)) is not None:
        lines.render_block(index)
    rows = [lines.line(y) for y in range(lines.height)]
    return [(row.text.strip(), all(style and style.color == MUTED for text, style, _ in row if text.strip()))
            for row in rows if row.text.strip()]  # fmt: skip


def place(lines: LineLayout) -> int:
    (at,) = [i for i, (text, _) in enumerate(drawn(lines)) if text.startswith("── ")]
    return at


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (115, "the model no longer sees what is above · 412 tok of 6 messages · system prompt stays"),
        (73, "the model no longer sees what is above · 412 tok · system prompt stays"),
        (60, "the model no longer sees what is above · 412 tok"),
        (40, "the model no longer sees what is above"),
        (30, "not seen any more · 412 tok"),
    ],
)
def test_the_rule_says_what_is_gone_and_what_stays(width: int, text: str) -> None:
    assert rule_text(rule(2), width) == text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Unattended(48, 1, 1, pinned=4), "above · 48 tok of 1 message · the first 4 tok stay"),
        (Unattended(48, 1, 1), "above · 48 tok of 1 message"),
        (Unattended(48, 1, 3, pinned=90, pins_system=True, pinned_messages=2), "of 1 message · 2 messages stay"),
        (Unattended(48, 1, 1, in_state=True), "only the recurrent state holds what is above · 48 tok of 1 message"),
        (Unattended(48, 1, 1, chars=None), "sees what is above, and of this message only the end · 48 tok"),
    ],
)
def test_nothing_false_is_said_of_pins_states_and_parts(found: Unattended, words: str) -> None:
    placed = rule_of(found, [])
    assert placed
    assert words in rule_text(placed, 150)


@pytest.mark.parametrize(
    ("chars", "above", "below"),
    [
        (0, "❯ zero", "First one here."),
        (REPLY.index("here"), "❯ zero", "First one here."),  # the rule stands before the line that is seen in part
        (REPLY.index("item three"), "• item two", "• item three"),
        (REPLY.index("four"), "• item three", "│ four = 4"),
        (REPLY.index("fifth"), "│ four = 4", "The fifth and last."),
        (len(REPLY), "The fifth and last.", "42.1 tok/s"),
    ],
)
def test_the_rule_stands_at_the_right_line(chars: int, above: str, below: str) -> None:
    lines = chat()
    assert lines.mark(rule(1, chars))
    at, rows = place(lines), drawn(lines)
    assert (rows[at - 1][0], rows[at + 1][0][: len(below)]) == (above, below)
    assert all(is_muted for _, is_muted in rows[:at])
    assert not any(is_muted for text, is_muted in rows[at + 1 :] if text != "· a notice")


def test_each_character_of_a_question_is_on_its_side() -> None:
    text = " ".join(f"word{i}" for i in range(40))
    for chars in range(1, len(text), 7):
        lines = layout(Block(Kind.USER, text, message=0))
        lines.mark(rule(0, chars))
        at, rows = place(lines), drawn(lines)
        seen = " ".join(row for row, _ in rows[at + 1 :])
        assert text[chars:].strip() in f" {seen} "  # nothing that is attended stands above the rule
        assert len(seen) - len(text[chars:]) < 60  # and of the rest less than a line below


def test_the_rule_moves_and_leaves_nothing_behind() -> None:
    lines, plain = chat(), drawn(chat())
    for step in (rule(1), rule(1, 30), rule(2), rule(3), rule(2, 9)):
        assert lines.mark(step)
        fresh = chat()
        fresh.mark(step)
        assert drawn(lines) == drawn(fresh)
    lines.mark(None)
    assert drawn(lines) == plain


def test_only_blocks_that_change_are_rendered_again() -> None:
    lines = chat()
    drawn(lines)
    lines.mark(rule(2))
    drawn(lines)
    strips = {id(lines.cell(i).strips) for i in range(len(lines))}
    lines.mark(rule(3))
    changed = [lines.cell(i).block.message for i in range(len(lines)) if lines.cell(i).strips is None]
    assert changed == [2, 3]
    assert {id(lines.cell(i).strips) for i in range(len(lines)) if lines.cell(i).strips} < strips


def test_pinned_messages_are_not_muted() -> None:
    lines = chat()
    lines.mark(rule(3, first=2))
    rows = drawn(lines)
    assert [is_muted for text, is_muted in rows if text.startswith(("❯ zero", "First", "❯ two"))] == [
        False,
        False,
        True,
    ]


def test_a_folded_question_has_the_rule_above_the_lines_that_are_not_shown() -> None:
    lines = layout(Block(Kind.USER, "\n".join(f"line {i}" for i in range(40)), message=0))
    lines.mark(rule(0, 250))
    at, rows = place(lines), drawn(lines)
    assert [text for text, _ in rows[at - 1 : at + 2]][::2] == ["line 7", "▸ 32 more lines"]


def test_the_rule_waits_for_a_reply_that_has_no_lines_yet() -> None:
    lines = layout(Block(Kind.USER, "zero", message=0))
    assert not lines.mark(rule(1))
    assert drawn(lines) == [("❯ zero", True)]
    lines.update([Block(Kind.MARKDOWN, "A", message=1)], [Block(Kind.MARKDOWN, "B", message=1)])
    assert lines.mark(rule(1))
    assert [text for text, _ in drawn(lines)][2:] == ["A", "B"]


def test_the_rule_is_neither_copied_nor_found() -> None:
    lines = chat()
    lines.mark(rule(2, 80))
    drawn(lines)
    everything = selected(lines, (0, 0), (lines.height - 1, -1))
    assert "two two" in everything
    assert "no longer" not in everything
    wanted = Wanted.of("no longer")
    assert wanted
    rows = [row for i in range(len(lines)) for row in lines.cell(i).strips or () if isinstance(row, Row)]
    assert shown_matches(rows, wanted) == []


def test_the_state_places_the_rule_by_what_is_shown() -> None:
    state = ChatState(lambda: 0.0)
    messages = (
        Message("user", "a\x1b[31mb" * 3),
        Message("assistant", "c"),
        Message("user", "why?\n\nFile `a`:\n```\nbbb\n```"),
    )
    state.apply(ChatOpened("c", "t", messages))
    state.apply(SessionStatus(unattended=Unattended(9, 1, 0, chars=3)))
    assert state.transcript.rule
    assert state.transcript.rule.chars == len("a␛[")
    for chars, placed in ((2, 2), (20, None)):  # in the question; in the file attached to it, which is not shown
        state.apply(SessionStatus(unattended=Unattended(9, 1, 2, chars=chars)))
        assert state.transcript.rule.chars == placed
    state.apply(ChatOpened("d", "u"))
    assert state.transcript.rule is None
