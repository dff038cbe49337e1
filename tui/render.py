"""From a block and a width to lines on the screen. Owns the look of the transcript; UI thread.

Everything hangs on one left edge: three columns for replies, the prompt sign in column one. Rendering depends on the
block, the width and the `Look` only, never on the terminal, so that lines can be cached and compared in tests.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from mlxkv.tui.blocks import Block, Kind
from mlxkv.tui.wording import stat_text

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

EDGE = 3  # columns left of a reply
PROSE = 120  # longer lines are hard to read
WIDE = 100  # from here on a code block says its language


@dataclass(frozen=True)
class Look:
    """What a theme decides. Colours as Rich spells them; `code` is a Pygments style."""

    accent: str = "#5fafff"
    code_ink: str = "#87d7af"
    error: str = "#ff8787"
    muted: str = "#8f8f8f"
    code: str = "monokai"


class Renderer:
    """Renders blocks in one look."""

    def __init__(self, look: Look) -> None:
        self.look = look
        bold = f"bold {look.accent}"
        styles = {
            **{f"markdown.h{n}": bold for n in (1, 2)},
            **{f"markdown.h{n}": "bold" for n in (3, 4, 5, 6)},
            "markdown.code": look.code_ink,
            "markdown.code_bar": look.muted,
            "markdown.item.bullet": look.accent,
            "markdown.item.number": look.accent,
            "markdown.block_quote": "italic",
            "markdown.link": "underline",
            "markdown.link_url": look.muted,
            "markdown.hr": look.muted,
            "markdown.table.header": "bold",
            "markdown.table.border": look.muted,
        }
        self._console = Console(
            file=io.StringIO(), width=80, color_system="truecolor", force_terminal=True, theme=Theme(styles)
        )

    @cached_property
    def _parser(self) -> MarkdownIt:
        from mlxkv.tui.markdown import make_parser

        return make_parser()

    def strips(self, block: Block, width: int) -> list[Strip]:
        """The lines of `block`, with the blank line above it if it has one."""
        room = max(8, min(width - EDGE - 1, PROSE))
        lines = [] if block.tight else [Strip.blank(0)]
        match block.kind:
            case Kind.USER:
                lines += self._hang(Text(block.text, "bold"), room, Segment(" ❯ ", self._style(self.look.accent)))
            case Kind.MARKDOWN:
                lines += [_inset(line) for line in self._markdown(block.text, room)]
            case Kind.CODE:
                if block.info and width >= WIDE and not block.tight:
                    lines.append(_inset([Segment(block.info, self._style(self.look.muted))]))
                lines += [_inset(line) for line in self._code(block, room)]
            case Kind.STATS:
                assert block.stats is not None
                text = stat_text(block.stats, room, block.kv_added, narrow=width < 60)
                lines += self._hang(Text(text, self.look.muted), room, Segment(" " * EDGE))
            case Kind.THOUGHT:
                lines += self._hang(
                    Text(block.text, self.look.muted), room, Segment(" ▸ ", self._style(self.look.muted))
                )
            case Kind.META:
                sign, text = ("✓", block.text[2:]) if block.text.startswith("✓ ") else ("·", block.text)
                muted = self._style(self.look.muted)
                lines += self._hang(Text(text, muted), room, Segment(f" {sign} ", muted))
            case Kind.ERROR:
                error = self._style(self.look.error)
                lines += self._hang(Text(block.text, error), room, Segment(" ✗ ", error))
        return lines

    def _style(self, name: str) -> Style:
        return Style.parse(name)

    def _hang(self, text: Text, room: int, sign: Segment) -> list[Strip]:
        """Plain text behind a sign in the left edge."""
        text.stylize(text.style)  # Rich leaves the base style out when it renders a text without spans
        text.expand_tabs(4)
        lines = text.wrap(self._console, room, overflow="fold")
        out: list[Strip] = []
        for i, line in enumerate(lines):
            line.rstrip()
            line.end = ""
            out.append(_inset(list(line.render(self._console)), sign if i == 0 else None))
        return out

    def _markdown(self, text: str, room: int) -> list[list[Segment]]:
        from mlxkv.tui.markdown import SafeMarkdown

        options = self._console.options.update(width=room, height=None)
        try:
            lines = self._console.render_lines(SafeMarkdown(text, self._parser, self.look.code), options, pad=False)
        except Exception:  # a bug in a parser must not end the chat; the source is always readable
            lines = self._console.render_lines(Text(text), options, pad=False)
        while len(lines) > 1 and _is_blank(lines[0]):  # Rich puts an empty line before lists and tables
            del lines[0]
        while len(lines) > 1 and _is_blank(lines[-1]):
            del lines[-1]
        return lines

    def _code(self, block: Block, room: int) -> list[list[Segment]]:
        from mlxkv.tui.markdown import barred, code_text

        bar = self._console.get_style("markdown.code_bar")
        return barred(code_text(block.text, block.info, self.look.code), self._console, room, bar)


def _is_blank(line: list[Segment]) -> bool:
    return not "".join(segment.text for segment in line).strip()


def _inset(line: list[Segment], sign: Segment | None = None) -> Strip:
    """A line behind the edge, without the spaces Rich fills it up with: they would be copied too."""
    while line and not line[-1].text.strip(" "):
        line = line[:-1]
    if line and line[-1].text.endswith(" "):
        line = [*line[:-1], Segment(line[-1].text.rstrip(" "), line[-1].style)]
    return Strip([sign or Segment(" " * EDGE), *(s for s in line if s.text and not s.control)])


def guess_height(block: Block, width: int) -> int:
    """Lines `block` will roughly need, without rendering it."""
    room = max(8, min(width - EDGE - 1, PROSE))
    return sum(1 + len(line) // room for line in block.text.split("\n")) + (not block.tight)
