"""Lines of a block that the model no longer attends to, or attends to in part: muted, and the rule below. UI thread."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style

from mlxkv.tui.markdown.wrap import Row
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.state.transcript.forgetting import Rule, rule_text

_LEFT = "── "


def with_rule(rows: list[Row], block: Block, width: int, accent: Style, muted: Style) -> list[Row]:
    """`rows` of `block`, with its rule if it has one, and what is not attended in `muted`."""
    if block.rule is None:
        return [_quiet(row, muted) for row in rows]
    line = _rule_row(block.rule, width, accent, muted)
    if not block.rule_at:
        return [Row([]), line, *([Row([])] if block.tight else []), *rows]
    at = _row_at(rows, block)
    return [*(_quiet(row, muted) for row in rows[:at]), line, *rows[at:]]


def _row_at(rows: Sequence[Row], block: Block) -> int:
    """The row with the character of the source that the rule stands before: letters and digits are counted, which
    Markdown shows as they are. In a folded question, at most the row that counts the lines not shown."""
    wanted = _count((block.source or block.text)[: block.rule_at])
    seen = 0
    for i, row in enumerate(rows):
        if block.kind is Kind.USER and block.folded and row.text.lstrip().startswith("▸"):
            return i
        seen += _count(row.text[row.margin :])
        if seen > wanted:
            return i
    return len(rows)


def _count(text: str) -> int:
    return sum(map(str.isalnum, text))


def _quiet(row: Row, muted: Style) -> Row:
    return Row([Segment(text, (style or Style()) + muted) for text, style, _ in row], row.gap, row.margin)


def _rule_row(rule: Rule, width: int, accent: Style, muted: Style) -> Row:
    text = rule_text(rule, width - len(_LEFT) - 3)
    right = Segment(" ".ljust(width - 1 - len(_LEFT) - len(text), "─"), accent)
    return Row([Segment(_LEFT, accent), Segment(text, muted), right], gap="", margin=width)  # it is not copied
