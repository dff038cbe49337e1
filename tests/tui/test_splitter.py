"""Blocks end where CommonMark says, and the pieces in which a stream arrives leave no trace."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.markdown.renderer import make_parser
from mlxkv.tui.markdown.stream_splitter import CODE_LINES, Splitter, split
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.copying import code_blocks
from tests.tui.fake_engine import REPLY


def texts(markdown: str) -> list[str]:
    return [block.text for block in split(markdown)]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("one\ntwo\n\nthree", ["one\ntwo", "three"]),
        ("# head\ntext", ["# head", "text"]),
        ("text\n## head", ["text", "## head"]),
        ("#no heading\ntext", ["#no heading\ntext"]),
        ("title\n---\ntext", ["title\n---", "text"]),  # a setext heading is not a rule
        ("- a\n- b\n\n- c", ["- a", "- b", "- c"]),
        ("1. a\n   more\n\n   para\n2. b", ["1. a\n   more\n\n   para", "2. b"]),
        ("- a\nlazy line\n- b", ["- a\nlazy line", "- b"]),
        ("- a\n  - nested\n    - deeper\n  - again\n- b", ["- a\n  - nested\n    - deeper\n  - again", "- b"]),
        ("- a\n\ntext", ["- a", "text"]),
        ("- a\n# head", ["- a", "# head"]),
        ("- a\n> quote", ["- a", "> quote"]),
        ("text\n- a", ["text", "- a"]),
        ("in\n1986. a year", ["in\n1986. a year"]),  # only 1 may interrupt a paragraph
        ("* * *\ntext", ["* * *", "text"]),  # a rule, not a list
        ("-\ntext\n2. y", ["-", "text\n2. y"]),  # an empty item has no paragraph that could go on
        ("text\n***\nmore", ["text", "***", "more"]),
        ("-no list\n-here", ["-no list\n-here"]),
        ("> a\n> b\nlazy\n\nc", ["> a\n> b\nlazy", "c"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nend", ["| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |", "end"]),
        ("    code\n\n    more\n\ntext", ["    code\n\n    more", "text"]),
        ("- a\n\n  ```\n  - not an item\n\n  x\n  ```\n- b", ["- a\n\n  ```\n  - not an item\n\n  x\n  ```", "- b"]),
        ("- ```\n  code\n\n  ```\n- b", ["- ```\n  code\n\n  ```", "- b"]),
        ("So:\n\\[\na\n+ b\n= c\n=\n\\]\nso", ["So:", "\\[\na\n+ b\n= c\n=\n\\]", "so"]),
        ("$$\n- a\n$$\n$$x$$\n- b", ["$$\n- a\n$$", "$$x$$", "- b"]),
        ("$$\n- a\n\n- b", ["$$\n- a", "- b"]),  # never closed: up to the blank line
        ("\\[x\\](y)\nz", ["\\[x\\](y)\nz"]),  # goes on: a formula in a paragraph
        ("- a\n  \\[\n  - b\n  \\]\n- c", ["- a\n  \\[\n  - b\n  \\]", "- c"]),
        ("- a\n\\[\n- b\n\\]", ["- a", "\\[\n- b\n\\]"]),
        ("    $$\n    x", ["    $$\n    x"]),
        ("- a\n  ```\n  open\nafter", ["- a\n  ```\n  open", "after"]),  # a fence ends with its item
    ],
)
def test_where_blocks_end(markdown: str, expected: list[str]) -> None:
    assert texts(markdown) == expected
    assert all(block.kind is Kind.MARKDOWN for block in split(markdown))


@pytest.mark.parametrize(
    ("markdown", "code", "info"),
    [
        ("```py\nx\n```", "x", "py"),
        ("```\nx\n\ny\n```", "x\n\ny", ""),
        ("````\n```\nx\n```\n````", "```\nx\n```", ""),  # a longer fence holds a shorter one
        ("~~~rust extra words\n```\n~~~", "```", "rust"),
        ("~~~\n~~\n~~~~~", "~~", ""),
        ("  ```\n  x\n    y\n ```", "x\n  y", ""),  # the fence's own indentation goes
        ("  ```\n\t- t\n  ```", "  - t", ""),  # a tab is four columns, of which two go
        ("```\nx\n    ```\ny\n```", "x\n    ```\ny", ""),  # indented by four: not a closing fence
        ("```\nx\n``` y\n```", "x\n``` y", ""),
        ("```py\nx", "x", "py"),  # never closed
        ("```py", "", "py"),
    ],
)
def test_fences(markdown: str, code: str, info: str) -> None:
    assert split(markdown) == [Block(Kind.CODE, code, info)]


def test_backticks_in_a_line_are_no_fence() -> None:
    assert texts("```inline``` code\n\nx") == ["```inline``` code", "x"]


def test_items_of_a_list_stand_close_together_and_nothing_else_does() -> None:
    tight = [block.tight for block in split("text\n\n- a\n- b\n\n- c\n\ntext\n\n- d\n```\nx\n```\n- e")]
    assert tight == [False, False, True, True, False, False, False, False]


def test_a_long_fence_is_cut_and_stays_together() -> None:
    code = "\n".join(f"line {i}" for i in range(2 * CODE_LINES + 3))
    blocks = split(f"```py\n{code}\n```\nend")
    assert [b.tight for b in blocks] == [False, True, True, False]
    assert [b.info for b in blocks] == ["py", "py", "py", ""]
    assert "\n".join(b.text for b in blocks[:3]) == code


def test_a_line_of_markers_does_not_flicker() -> None:
    """`foo`, then `-`: for a moment that would be a heading."""
    splitter = Splitter()
    splitter.feed("foo\n--")
    assert splitter.preview() == [Block(Kind.MARKDOWN, "foo")]
    assert splitter.feed("- bar") == []
    assert splitter.finish() == [Block(Kind.MARKDOWN, "foo\n--- bar")]


LINES = st.sampled_from(
    ["", "text", "more *text*", "- a", "  - b", "1. x", "2. y", "   cont", "```", "````py", "~~~", "  ```", "# h",
     "---", "> q", "| a | b |", "|---|---|", "    code", "***", "<think>", "-", "\t- t", "List<String>", "\\[", "\\]",
     "```md", "$$", "x \\\\", "+ b", "\\[a*b*c\\]", "$$ a_1", "  \\[", "so $x*y$ and *z*", "\\(a*b*", "$5 or *$6*"]
)  # fmt: skip
MARKDOWN = st.one_of(st.lists(LINES, max_size=14).map("\n".join), st.text("`~-*#>|1. \nab$\\[]()", max_size=60))


@pytest.mark.slow
@given(MARKDOWN, st.lists(st.integers(0, 200), max_size=12))
def test_pieces_leave_no_trace(markdown: str, cuts: list[int]) -> None:
    """Same blocks and same lines as in one go, and the preview is always what `finish` would say."""
    edges = [0, *sorted(min(cut, len(markdown)) for cut in cuts), len(markdown)]
    splitter, blocks = Splitter(), []
    for start, end in pairwise(edges):
        blocks += splitter.feed(markdown[start:end])
        splitter.preview()  # looking must not change anything
    blocks += splitter.finish()
    whole = split(markdown)
    assert [b.source for b in blocks] == [b.source for b in whole]
    assert blocks == whole
    renderer = Renderer(Colours())
    assert [renderer.strips(b, 40) for b in blocks] == [Renderer(Colours()).strips(b, 40) for b in whole]


@given(st.lists(LINES, max_size=14).map("\n".join))
def test_nothing_gets_lost(markdown: str) -> None:
    """Every character but blanks, fences and languages arrives in some block, in order."""

    def ink(text: str) -> str:
        return "".join(c for c in text if c not in " \t\n`~pymd")

    assert "".join(ink(b.text) for b in split(markdown)) == ink(markdown)


@given(MARKDOWN)
def test_the_sources_are_the_text_again(markdown: str) -> None:
    """What is copied is what the model wrote, fences, blank lines and all."""
    joined = "".join(block.source for block in split(markdown))
    assert markdown.startswith(joined)
    assert not markdown[len(joined) :].strip()


@pytest.mark.slow
@given(st.lists(LINES, max_size=12).map("\n".join))
def test_against_the_parser(markdown: str) -> None:
    """No cut falls inside a top-level block that markdown-it sees, but between the items of a list."""
    assume("```md" not in markdown)  # that one holds fences, see below
    assume("> q\n-\n" not in markdown)  # an empty item right after a quote: seen as part of it, and shown rightly
    tokens = [t for t in make_parser().parse(markdown) if t.level == 0 and t.map]
    whole = {"paragraph_open", "heading_open", "table_open", "code_block", "math_block"}
    for token in tokens:
        if token.type in whole and token.map:
            source = [line.strip() for line in markdown.split("\n")[token.map[0] : token.map[1]] if line.strip()]
            holders = [b for b in split(markdown) if b.kind is Kind.MARKDOWN and source[0] in b.text]
            assert any(all(line in b.text for line in source) for b in holders), (token.type, source)


INNER = "# T\n```py\na\n```\nmore"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (f"```markdown\n{INNER}\n```\nafter", [INNER]),
        (f"```md\n{INNER}\n```\nafter", [INNER]),
        (f"~~~Markdown\n{INNER}\n~~~\nafter", [INNER]),
        (f"````md\n{INNER}\n````\nafter", [INNER]),
        ("````md\n```py\nnever closed\n````\nafter", ["```py\nnever closed"]),
        ("```md\n````py\na\n````\n```\nafter", ["````py\na\n````"]),
        ("```md\n```md\n```py\na\n```\n```\n```\nafter", ["```md\n```py\na\n```\n```"]),
        ("```md\n- x\n  ```py\n  a\n  ```\n```\nafter", ["- x\n  ```py\n  a\n  ```"]),
        ("```md\n" + f"{INNER}\n" * 20 + "```\nafter", ["\n".join([INNER] * 20)]),  # shown in pieces
        ("```py\n```sh\nb\n```\nafter", ["```sh\nb"]),  # elsewhere as CommonMark has it
        ("```md\n```\nafter", [""]),
    ],
)
def test_a_block_of_markdown_holds_code(source: str, code: list[str]) -> None:
    """The end of the code in it ended the block, and its own end began another, up to the end of the reply."""
    blocks = split(source)
    assert code_blocks(blocks) == code
    assert [b.text for b in blocks if b.kind is Kind.MARKDOWN] == ["after"]
    assert "".join(b.source for b in blocks) == source


def test_the_sample_reply() -> None:
    kinds = [(b.kind.value, b.tight) for b in split(REPLY)]
    assert kinds == [
        ("markdown", False), ("code", False), ("markdown", False), ("markdown", False), ("markdown", True),
        ("markdown", True), ("markdown", False),
    ]  # fmt: skip
