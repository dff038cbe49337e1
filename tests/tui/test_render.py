"""What a block looks like, and that nothing in it vanishes, steers the terminal or becomes a link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mlxkv.text.clean import clean
from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.markdown.stream_splitter import split
from mlxkv.tui.state.transcript.blocks import Block, Kind
from tests.tui.fake_engine import STATS
from tests.tui.hostile import markdown


def lines(source: str, width: int = 60) -> list[str]:
    renderer = Renderer(Colours())
    return [strip.text for block in split(clean(source)) for strip in renderer.strips(block, width)]


@pytest.mark.parametrize(
    "source",
    ["<think>hm</think>", "a List<String> b", "[red]x[/red] :smile:", "<div>\nx\n</div>", "<!-- note -->",
     "a <kbd>x</kbd> b"],
)  # fmt: skip
def test_raw_html_and_markup_stay_visible(source: str) -> None:
    shown = " ".join(" ".join(lines(source)).split())
    assert shown == " ".join(source.split())


def test_links_show_where_they_go_and_are_not_clickable() -> None:
    block = split("see [the bank](http://evil.example/x) and ![pic](http://e.example/p.png)")[0]
    strips = Renderer(Colours()).strips(block, 100)
    text = "".join(strip.text for strip in strips)
    assert "the bank (http://evil.example/x)" in text
    assert "http://e.example/p.png" in text
    assert not any(segment.style and segment.style.link for strip in strips for segment in strip)


@pytest.mark.parametrize(
    "source", ["a &#x202e; b", "a &#8203; b", "<http://x/%1b[2J>", "[x](http://a/%e2%80%ae)", "&#27;"]
)
def test_what_the_parser_decodes_is_cleaned_again(source: str) -> None:
    text = "".join(lines(source))
    assert clean(text) == text


def test_layout_of_lists_code_and_tables() -> None:
    source = "# Head\n\n1. one\n2. two\n   - deep\n\n```py\nx = 1\n\ny\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |"
    assert [line.rstrip() for line in lines(source)] == [
        "", "   Head", "", "   1. one", "   2. two", "      ◦ deep",
        "", "   │ x = 1", "   │", "   │ y", "", "   a   b", "   ─────", "   1   2",
    ]  # fmt: skip


def test_task_lists_have_boxes() -> None:
    source = "- [ ] *a* [ ]\n- [x] b\n  1. [X] c\n- [] d\n- [ ]e\n- `[ ] f`"
    assert lines(source) == ["", "   ☐ a [ ]", "   ☑ b", "     1. ☑ c", "   • [] d", "   • [ ]e", "   • [ ] f"]
    assert lines(source) == lines(source)  # the parsed text is not changed by showing it


def test_headings_and_the_lines_of_a_diff_are_told_apart() -> None:
    renderer = Renderer(Colours())

    def styles(source: str) -> list[str]:
        rows = [row for block in split(source) for row in renderer.strips(block, 60)]
        return [str(row._segments[-1].style) for row in rows if row.text.strip()]

    assert len({*styles("# a\n\n## b\n\n### c")}) == 3
    head, same, old, new, last = styles("```diff\n@@ -1 +1 @@\n same\n-old\n+new\n+last\n```")
    assert len({head, same, old, new}) == 4
    assert last == new


def test_joined_emoji_are_drawn_in_parts() -> None:
    """Terminals disagree about the width of joined ones; the block keeps the joiner, to be copied."""
    family = "👨\u200d👩\u200d👧"
    code = f"```\n{family}\n```"
    table = f"| {family} |\n|---|\n| x |"
    renderer = Renderer(Colours())
    blocks = [*split(f"a {family} b `{family}` [{family}](http://x)\n\n{code}\n\n{table}"), Block(Kind.USER, family)]
    shown = "".join(strip.text for block in blocks for strip in renderer.strips(block, 60))
    assert shown.count("👨👩👧") == 6
    assert "\u200d" not in shown


JOINED = [
    "👨\u200d👩\u200d👧\u200d👦",
    "👩🏽\u200d💻",
    "❤\ufe0f\u200d🔥",
    "🏳\ufe0f\u200d🌈",
    "🏴\u200d☠\ufe0f",
    "🧑🏻\u200d🤝\u200d🧑🏿",
]


def test_a_terminal_that_joins_emoji_gets_them_joined_two_cells_each() -> None:
    """A family came apart into three people though the terminal could show it."""
    renderer, width = Renderer(Colours(joined_emoji=True)), 30
    family = JOINED[0]
    code, table = f"```\n{family} x\n```", f"| {family} | b |\n|---|---|\n| {family * 2} | c |"
    blocks = [*split(f"a {family} b `{family}` [{family}](http://x)\n\n{code}\n\n{table}"), Block(Kind.USER, family)]
    shown = [strip for block in blocks for strip in renderer.strips(block, 60)]
    assert "".join(strip.text for strip in shown).count(family) == 8
    head, body = (next(strip.text for strip in shown if strip.text.endswith(f"   {last}")) for last in "bc")
    assert cell_len(head) == cell_len(body)
    for block in split(
        " ".join(JOINED * 9) + "\n\n" + "".join(JOINED * 9) + "\n\n```\n" + "".join(JOINED * 9) + "\n```"
    ):
        strips = renderer.strips(block, width)
        assert all(cell_len(strip.text) <= width for strip in strips)
        assert max(cell_len(strip.text) for strip in strips) >= width - 4
        text = "".join(strip.text.strip(" │") for strip in strips)
        assert text.replace(" ", "") == "".join(JOINED * 9)  # none is cut in two


def test_a_flag_stays_whole_at_the_edge() -> None:
    flags = "🇩🇪🇫🇷🇪🇸🇮🇹" * 9
    for source in (flags, f"x{flags}", f"```\n{flags}\n```"):
        for width in (20, 21, 22, 23):
            strips = Renderer(Colours()).strips(split(source)[0], width)
            for strip in strips[1:]:
                letters = [c for c in strip.text if "\U0001f1e6" <= c <= "\U0001f1ff"]
                assert len(letters) % 2 == 0
                assert cell_len(strip.text) <= width


def test_no_spaces_at_line_ends() -> None:
    """Rich fills lines up; they would be copied with the text."""
    for line in lines("a paragraph that is long enough to be wrapped, twice even, because it has so many words\n\n- x"):
        assert line == line.rstrip() or not line.strip()


def test_a_wide_window_names_the_language() -> None:
    assert [line.strip() for line in lines("```rust\nx\n```", 120)] == ["", "rust", "│ x"]
    assert [line.strip() for line in lines("```rust\nx\n```", 80)] == ["", "│ x"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [20, 59, 100, 140])
def test_hostile_markdown_fits_the_width(width: int) -> None:
    """A fence with a language of 700 letters was as wide as that, and a search that found it there ended the window."""
    renderer = Renderer(Colours())
    for text in markdown(""):
        rows = [row for block in split(clean(text)) for row in renderer.strips(block, width)]
        assert max(row.cell_length for row in rows) <= width
        assert not any(clean(row.text) != row.text or "\t" in row.text for row in rows)


def test_user_text_is_plain() -> None:
    strips = Renderer(Colours()).strips(Block(Kind.USER, "**not bold** <b>\n  [x](y)"), 40)
    assert [strip.text for strip in strips] == ["", " ❯ **not bold** <b>", "     [x](y)"]


def test_speed_and_kv_of_a_reply_are_brighter_than_the_rest() -> None:
    block = Block(Kind.STATS, "", stats=STATS, kv_added=50_000_000)
    row = Renderer(Colours()).strips(block, 120)[1]
    assert [text for text, style, _ in row if not style] == ["   ", "42.1 tok/s · KV 916 MB (+50 MB)"]
    assert row.text.endswith(" · TTFT 0.21s · 312 tok · prompt 27 + 5,871 cached · 7.6s")


@given(st.text(st.characters(codec=None, exclude_categories=())), st.integers(20, 130))
def test_any_text_renders_safely_within_the_width(text: str, width: int) -> None:
    renderer = Renderer(Colours())
    for block in [*split(clean(text)), Block(Kind.USER, clean(text)), Block(Kind.ERROR, clean(text))]:
        for strip in renderer.strips(block, width):
            assert clean(strip.text) == strip.text
            assert "\n" not in strip.text
            assert "\t" not in strip.text
            assert cell_len(strip.text) <= width


def test_a_parser_that_fails_leaves_the_source_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxkv.tui.markdown.renderer.Lines.__init__", lambda *_: 1 / 0)
    assert lines("**x**")[1].strip() == "**x**"


def test_of_a_huge_paste_only_the_beginning_is_laid_out() -> None:
    """10 MB took four seconds, in which the window stood still."""
    seen: list[int] = []

    class Watching(Renderer):
        def _plain(self, text: str) -> str:
            seen.append(len(text))
            return super()._plain(text)

    strips = Watching(Colours()).strips(Block(Kind.USER, "a line of a log\n" * 100_000), 80)
    assert sum(seen) <= 1 << 16
    assert strips[-1].text.strip() == "▸ 99,992 more lines"
