"""docs/troubleshooting.md quotes messages as the code has them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest

from tests.docs.pages import DOCS, ROOT, tokens

GAP = "…"  # in a quoted message: a name or a number


def template(node: ast.expr) -> str:
    """A string of the code with a gap for each value in it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
    return GAP


@cache
def templates() -> str:
    """All strings of the product, one a line."""
    found = set()
    for folder in ("mlxkv", "tui", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                    found.add(re.sub(f"{GAP}+", GAP, template(node)).replace("\n", " "))
    return "\n".join(found)


def quoted() -> Iterator[str]:
    """The code in the first cell of each row of the page's tables."""
    page = tokens(DOCS / "troubleshooting.md")
    for row, cell, token in zip(page, page[1:], page[2:], strict=False):
        if (row.type, cell.type) == ("tr_open", "td_open"):
            codes = [child.content for child in token.children or () if child.type == "code_inline"]
            assert len(codes) == 1, f"one message in the first cell, found {codes or token.content}"
            yield codes[0]


MESSAGES = list(quoted())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    assert message.strip(f"{GAP} ") in templates(), "no string of the product has these words"


def test_the_page_has_many_messages_and_none_twice() -> None:
    assert len(set(MESSAGES)) == len(MESSAGES) > 100


def test_each_message_is_explained() -> None:
    page = tokens(DOCS / "troubleshooting.md")
    cells = [inside.content for cell, inside in pairwise(page) if cell.type == "td_open"]
    assert not [message for message, meaning in zip(cells[::2], cells[1::2], strict=True) if len(meaning) < 8]
