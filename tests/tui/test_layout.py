"""Line bookkeeping: guesses become exact, in whatever order, and the result is that of rendering everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from textual.strip import Strip

from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.line_layout import LineLayout


def block(text: str) -> Block:
    return Block(Kind.MARKDOWN, text)


BLOCKS = st.lists(st.text("ab \n", min_size=1, max_size=120).map(block), max_size=12)


class Counting:
    """Renders one line per word, whatever the guess was, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, block: Block, width: int) -> list[Strip]:
        self.calls.append(block.text)
        return [Strip.blank(0), *(Strip([]) for _ in block.text.split())]


@given(BLOCKS, st.integers(20, 90), st.integers(20, 90), st.lists(st.integers(0, 60), max_size=6))
def test_same_lines_as_rendering_all(blocks: list[Block], first: int, second: int, tops: list[int]) -> None:
    renderer = Renderer(Colours())
    layout = LineLayout(renderer.strips, first)
    layout.update(blocks[:3], blocks[3:4])
    layout.render_end(5)
    layout.update(blocks[3:], [])
    layout.reset(second)
    for top in tops:
        layout.render_view(top, 7)
    while (index := layout.unrendered(0, layout.height)) is not None:
        layout.render_block(index)
    expected = [strip.text for b in blocks for strip in renderer.strips(b, second)]
    assert layout.height == len(expected)
    assert [layout.line(y).text for y in range(layout.height)] == expected


def test_opening_renders_the_end_only() -> None:
    render = Counting()
    layout = LineLayout(render)
    layout.update([block(f"a{i}") for i in range(500)], [])
    layout.render_end(10)
    assert render.calls == ["a499", "a498", "a497", "a496", "a495"]


def test_a_tail_that_did_not_change_is_not_rendered_again() -> None:
    render = Counting()
    layout = LineLayout(render)
    layout.update([], [block("same"), block("grows")])
    layout.render_end(99)
    layout.update([block("same")], [block("grows more")])
    layout.render_end(99)
    assert render.calls == ["grows", "same", "grows more"]
    assert [b.text for b in layout.blocks] == ["same", "grows more"]


def test_equal_blocks_are_still_two() -> None:
    layout = LineLayout(Counting())
    layout.update([], [block("a b c")])
    layout.update([block("a b c"), block("a b c")], [])  # both look like the old tail
    layout.render_block(0)
    layout.render_end(99)
    assert layout.height == 8


def test_settling_a_view_leaves_its_top_alone() -> None:
    layout = LineLayout(Counting())
    layout.update([block(" ".join("w" * 9)) for _ in range(20)], [])  # nine lines each, guessed as two
    layout.render_view(10, 5)
    assert layout.start(5) == 10
    assert layout.start(6) == 20


def test_outside_is_blank() -> None:
    layout = LineLayout(Counting())
    assert layout.line(0).text == ""
    assert layout.index_at(5) == -1 or len(layout) == 0
    layout.render_view(0, 10)
    layout.render_end(10)
