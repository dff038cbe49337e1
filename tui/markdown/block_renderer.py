"""Renders a block at a width as lines. Owns signs, indentation and colours of the transcript. UI thread.

Replies are indented by three columns, with the prompt sign in column one. Rendering depends only on the block, the
width and the `Colours`, never on the terminal, so that lines can be cached and compared in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style

from mlxkv.text.clean import clean, clean_joined
from mlxkv.tui.markdown.wrap import Line, Row, wrap
from mlxkv.tui.state.figures import figures_line
from mlxkv.tui.state.lists.choices import cut
from mlxkv.tui.state.prompt.attachments import split_attachments
from mlxkv.tui.state.reports.report import HEADING
from mlxkv.tui.state.reports.reports import context_line
from mlxkv.tui.state.transcript.blocks import Block, Kind

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

    from mlxkv.tui.markdown.renderer import Styles

EDGE = 3  # columns left of a reply
PROSE = 120  # longer lines are hard to read
WIDE = 100  # from this width on a code block shows its language
LONG = 12  # lines; a longer question is folded
SHOWN = 8  # lines of a folded question
HUGE = 1 << 16  # characters of a folded question that are wrapped; more than are shown

BOLD = Style(bold=True)
_style = lru_cache(128)(Style.parse)


@dataclass(frozen=True)
class CodeTheme:
    """A Pygments style, whose colours are changed as far as needed to be read on `background`; "": none."""

    name: str = "monokai"
    background: str = ""


@dataclass(frozen=True)
class Colours:
    """Colours of a theme, as Rich spells them."""

    accent: str = "#5fafff"
    code: str = "#87d7af"
    error: str = "#ff8787"
    muted: str = "#8f8f8f"
    warning: str = "#ffaf5f"
    code_theme: CodeTheme = CodeTheme()
    joined_emoji: bool = False  # the terminal draws joined emoji as one


class Renderer:
    """Renders blocks in `colours`. `count` returns the tokens of a file's text, None while unknown."""

    def __init__(self, colours: Colours, count: Callable[[str], int | None] = lambda text: None) -> None:
        self.colours, self._count = colours, count
        self._clean = clean_joined if colours.joined_emoji else clean

    @cached_property
    def _parser(self) -> MarkdownIt:
        from mlxkv.tui.markdown.renderer import make_parser

        return make_parser()

    @cached_property
    def _styles(self) -> Styles:
        from mlxkv.tui.markdown.renderer import Styles

        colours = self.colours
        return Styles(_style(colours.accent), _style(colours.code), _style(colours.muted), colours.code_theme)

    def strips(self, block: Block, width: int) -> list[Row]:
        """Lines of `block`, including the blank line above it if it has one, and the rule if it has that."""
        rows = self._rows(block, width)
        if not block.is_muted and block.rule is None:
            return rows
        from mlxkv.tui.markdown.rule import with_rule

        accent, muted = _style(self.colours.accent), _style(self.colours.muted)
        return with_rule(rows, block, min(width, EDGE + PROSE + 1), accent, muted)

    def _rows(self, block: Block, width: int) -> list[Row]:
        room = max(8, min(width - EDGE - 1, PROSE))
        muted = _style(self.colours.muted)
        rows = [] if block.tight else [Row([])]
        match block.kind:
            case Kind.USER:
                rows += self._user(block, room)
            case Kind.REPLY:
                from mlxkv.tui.markdown.stream_splitter import split

                rows = [row for part in split(block.text) for row in self.strips(part, width)]
            case Kind.MARKDOWN:
                rows += [_row(*line) for line in self._markdown(block, room)]
            case Kind.CODE:
                if block.info and width >= WIDE and not block.tight:
                    rows.append(_row([Segment(cut(clean(block.info), room), muted)], "\n"))
                from mlxkv.tui.markdown.code import code_lines

                code = code_lines(self._clean(block.text), block.info, self.colours.code_theme, room, muted)
                rows += [_row(*line, margin=EDGE + 2) for line in _whole_gaps(code)]
            case Kind.STATS:
                assert block.stats is not None
                found = figures_line(block.stats, room, block.kv_added, block.version, block.made_with, block.asked)
                rows += [_row(*line) for line in wrap([Segment(found[0]), Segment(found[1], muted)], room)]
            case Kind.THOUGHT:
                rows += _with_sign(
                    self._plain(block.text), muted, room, Segment(" ▸ " if block.folded else " ▾ ", muted)
                )
                if not block.folded and block.detail:
                    quiet = muted + Style(italic=True)
                    rows += [_row([Segment("│ ", muted), *line], gap, margin=EDGE + 2)
                             for line, gap in wrap([Segment(self._plain(block.detail), quiet)], room - 2)]  # fmt: skip
            case Kind.META:
                mark, text = ("✓", block.text[2:]) if block.text.startswith("✓ ") else ("·", block.text)
                rows += _with_sign(self._plain(text), muted, room, Segment(f" {mark} ", muted))
            case Kind.OUTPUT:
                rows += self._output(block, max(8, width - 2))
            case Kind.ERROR:
                error = _style(self.colours.error)
                rows += _with_sign(self._plain(block.text), error, room, Segment(" ✗ ", error))
        return rows

    def _user(self, block: Block, room: int) -> list[Row]:
        """A question. Long text and attachments are folded."""
        muted = _style(self.colours.muted)
        text, files = split_attachments(block.text) if block.folded else (block.text, [])
        sign, whole = Segment(" ❯ ", _style(self.colours.accent)), text.rstrip("\n")
        head = whole[:HUGE] if block.folded else whole
        rows = _with_sign(self._plain(head), BOLD, room, sign)
        if block.folded and (len(rows) > LONG or len(head) < len(whole)):
            rest = len(rows) - SHOWN + whole.count("\n", len(head))
            rows = [*rows[:SHOWN], _row([Segment(f"▸ {rest:,} more lines", muted)], "\n")]
        for file in files:
            note = self._plain(f"@{file.path} · {file.size(self._count(file.text))}")
            rows += _with_sign(note, muted, room, Segment(" ▸ ", muted))
        return rows

    def _output(self, block: Block, room: int) -> list[Row]:
        """A row of the pane, its name in a column of its own or, in a narrow window, above its text."""
        if block.context is not None:
            return [_row([Segment(self._plain(context_line(block.context, room)))], "\n", Segment(" "), 1)]
        text = self._plain(block.text)
        if block.info == HEADING:
            return [_row(line, gap, Segment(" "), 1) for line, gap in wrap([Segment(text, BOLD)], room)]
        name, rows = Segment(self._plain(block.info), _style(self.colours.accent)), []
        column = len(name.text)
        if name.text and room < 2 * column:
            rows, column = [_row([name], "\n", Segment(" "), 1)], 4
        for line, gap in wrap([Segment(text)], room - column):
            lead = Segment(" " * column) if rows else name
            rows.append(_row([lead, *line], "\n" if not rows else gap, Segment(" "), 1 + column if rows else 1))
        return rows

    def _markdown(self, block: Block, room: int) -> list[Line]:
        from mlxkv.tui.markdown.renderer import Lines

        try:
            return Lines(block.text, self._parser, self._styles, self._clean, is_open=block.is_open).lines(room)
        except Exception:  # a bug in a parser must not end the chat; the source is always readable
            return wrap([Segment(self._plain(block.text))], room)

    def _plain(self, text: str) -> str:
        return self._clean(text).expandtabs(4)


def _with_sign(text: str, style: Style, room: int, sign: Segment) -> list[Row]:
    """Plain text, cleaned, with a sign in the left margin of its first line."""
    lines = wrap([Segment(text, style)], room)
    return [_row(line, gap, sign if i == 0 else None) for i, (line, gap) in enumerate(lines)]


def _whole_gaps(lines: list[Line]) -> list[Line]:
    """Move spaces at the end of a folded code line, which are not drawn, into the gap to the next line."""
    out: list[Line] = []
    ended = ""
    for line, gap in lines:
        out.append((line, gap or ended[len(ended.rstrip(" ")) :]))
        ended = "".join(segment.text for segment in line)
    return out


def _row(line: list[Segment], gap: str, sign: Segment | None = None, margin: int = EDGE) -> Row:
    """A line with its left margin, without trailing spaces, which would be copied."""
    while line and not line[-1].text.strip(" "):
        line = line[:-1]
    if line and line[-1].text.endswith(" "):
        line = [*line[:-1], Segment(line[-1].text.rstrip(" "), line[-1].style)]
    if not line and sign is None:
        return Row([], gap)
    return Row([sign or Segment(" " * EDGE), *(s for s in line if s.text)], gap, margin)


def guess_height(block: Block, width: int) -> int:
    """Estimated height of `block`, without rendering it."""
    room = max(8, min(width - EDGE - 1, PROSE))
    if len(block.text) <= room:
        lines = 1 + block.text.count("\n")
    else:
        lines = sum(1 + len(line) // room for line in block.text.split("\n"))
    if block.kind is Kind.USER and block.folded:
        lines = min(lines, SHOWN + 1)
    rule = 0 if block.rule is None else 1 if block.rule_at else 2 + block.tight
    return lines + (not block.tight) + rule


def warm_up() -> None:
    """Load the Markdown parser before the first reply; loading it during one would stall decoding by about 40 ms."""
    Renderer(Colours()).strips(Block(Kind.REPLY, "*ready*"), 80)
