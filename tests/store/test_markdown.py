"""Chats as Markdown: every message is a part of its own, whatever the messages hold; asked of a CommonMark parser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mlxkv.store.export.markdown import to_markdown
from mlxkv.store.records import SessionRecord, ToolCall, TurnRecord
from tests.store.fake import model

TEXTS = {
    "an open fence": "so:\n```python\nprint(1)",
    "an open fence of tildes": "~~~\nx",
    "an open fence of four": "````md\n```\nx\n```",
    "a fence that a shorter one does not close": "``````\n```\n`````",
    "a fence closed by tildes": "```\n~~~",
    "an indented fence": "   ```\n   x",
    "a fence in a list": "- a\n  ```\n  x",
    "a fence in a numbered list": "1. a\n\n   ~~~\n   x",
    "a fence in a quotation": "> ```\n> x",
    "a fence in a list in a quotation": "> - ```\n>   x",
    "a fence after a quotation": "> a\n```\nx",
    "a closed fence": "```\nx\n```",
    "a closed fence, and one that is open": "```\nx\n```\n\n```\ny",
    "a fence with words after it": "``` not `closed` here",
    "an open comment": "<!-- a",
    "a comment in a list": "- <!-- a",
    "an open instruction": "<?php echo",
    "an open declaration": "<!DOCTYPE html",
    "open CDATA": "<![CDATA[ x ]",
    "an open script": "<script>\nlet x = 1",
    "an open style": "<style>\na {",
    "an open pre": "<pre>\n\na",
    "an open textarea": "<textarea>\n\na",
    "a block of HTML": "<div>\na",
    "a tag": "<user>\n",
    "a comment with a fence": "<!--\n```\n-->\n```\n<!--",
    "a fence with a comment": "```\n<!--",
    "a speaker": "## user\n\nI never said that",
    "a speaker in the middle of a line's text": "text\n## Assistant ##\ntext",
    "a speaker in bold": "## **User**:\n\nx",
    "a speaker in entities": "## &#117;ser\n\nx",
    "a speaker with a line under it": "user\n---\nx",
    "a speaker with a short line": "x\n\nassistant\n-",
    "two speakers": "## user\n---\nuser\n---\n## tool",
    "a speaker in a fence": "```\n## user",
    "a speaker in a quotation": "> ## user",
    "a line": "a\n\n---",
    "a line under text": "a\n---",
    "a line of equals": "===\n\na\n===",
    "a list": "- a\n- b",
    "spaces": "    x\n\t",
    "an open link": "[a](<b",
    "a link's definition": "[a]:\n",
    "an open code span": "a ` b",
    "a table": "|a|\n|-|\n|b",
    "backslashes": "\\\n\\",
    "control characters": "\x1b[31m\x00\r## user\r\n```\u2028```",
    "nothing": "",
    "blank lines": "\n\n\n",
    "deep quotations": "> " * 30 + "```",
    "a deep list": "\n".join("  " * n + "- a" for n in range(30)) + "\n" + "  " * 30 + "```",
}


def record(*turns: TurnRecord, system: str | None = None, title: str = "t") -> SessionRecord:
    return SessionRecord(
        "01KAAAAAAAAAAAAAAAAAAAAAA1", title, 0.0, 0.0, model(), system, {}, None, None, turns, (), "head"
    )


def parts(text: str) -> list[tuple[str, str]]:
    """What the document says, by heading: its role, and the lines up to the next."""
    lines, tokens = text.split("\n"), MarkdownIt("commonmark").parse(text)
    places = []
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0 and token.tag == "h2":
            said = "".join(child.content for child in tokens[at + 1].children or ())
            if said.strip().casefold().rstrip(":") in ("system", "user", "assistant", "tool"):
                assert token.map is not None
                places.append((said, *token.map))
    ends = [start for _, start, _ in places[1:]] + [len(lines)]
    return [(said, "\n".join(lines[start:end])) for (said, _, start), end in zip(places, ends, strict=True)]


def check(record: SessionRecord) -> None:
    found = parts(to_markdown(record))
    said = [("system", record.system)] if record.system is not None else []
    said += [(turn.role, turn.text) for turn in record.turns]
    assert [role for role, _ in found] == [role for role, _ in said]
    for (_, part), (_, text) in zip(found, said, strict=True):
        if (text or "").isprintable():
            assert text in part.replace("\\", "") or "\\" in (text or "")


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_each_message_is_a_part_of_its_own(text: str) -> None:
    for state in ("done", "stopped"):
        turn = TurnRecord("assistant", text, thinking=text, state=state)
        user = TurnRecord("user", text)
        tool = replace(turn, thinking="", tool_calls=(ToolCall("f", text, "1"),))
        check(record(user, turn, TurnRecord("user", "and?"), tool, turn, TurnRecord("tool", text), user, system=text))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(st.sampled_from([*TEXTS.values(), "", "-->", "```", "~~~", "x"]), max_size=4), min_size=1, max_size=4
    )
)
def test_and_so_is_any_mixture(texts: list[list[str]]) -> None:
    check(record(*(TurnRecord(("user", "assistant")[n % 2], "\n".join(lines)) for n, lines in enumerate(texts))))


def test_what_needs_nothing_stays_as_it_is() -> None:
    for text in ("a", "```\nx\n```", "- a\n  ```\n  x\n  ```", "# Heading\n\ntext", "<b>x</b>", "user\n\n---\n\nx"):
        assert f"## user\n\n{text}\n" in to_markdown(record(TurnRecord("user", text)))
    open_fence = to_markdown(record(TurnRecord("user", "````\n```\nx"), TurnRecord("assistant", "y")))
    assert "````\n```\nx\n````\n\n## assistant" in open_fence


@pytest.mark.parametrize("title", ["C #", "a\x1b[31m\nb\t##", "# x", "", "👨\u200d👩"])
def test_the_title_is_one_heading(title: str) -> None:
    tokens = MarkdownIt("commonmark").parse(to_markdown(record(title=title), joined=True))
    said = "".join(child.content for child in tokens[1].children or ())
    assert said == " ".join(title.replace("\x1b", "␛").split())
