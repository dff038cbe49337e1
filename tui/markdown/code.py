"""Highlighted source code with a bar at its left. UI thread. Imported on first use, as it loads Pygments."""

from __future__ import annotations

from functools import lru_cache

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token
from pygments.util import ClassNotFound
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from textual.color import Color

from mlxkv.tui.contrast import readable
from mlxkv.tui.markdown.block_renderer import CodeTheme
from mlxkv.tui.markdown.wrap import Line, fold

BAR = "│ "
LONGEST = 2000  # characters of a line that are still highlighted: lexers may take quadratic time


@lru_cache(64)
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None


@lru_cache(1024)
def _style(theme: CodeTheme, token: tuple[str, ...]) -> Style:
    """Style of a token, without the background that Pygments styles set."""
    found = Syntax.get_theme(theme.name).get_style_for_token(token)
    colour = found.color
    if colour is not None and theme.background:
        colour = readable(Color.from_rich_color(colour), Color.parse(theme.background)).rich_color
    return Style(color=colour, bold=found.bold, italic=found.italic)


def highlight(code: str, language: str, theme: CodeTheme) -> list[list[Segment]]:
    """Highlight code, line by line. An unknown language, or a line longer than `LONGEST`, gives plain text."""
    lexer = _lexer(language.lower())
    plain = _style(theme, Token.Text)
    lines: list[list[Segment]] = [[]]
    if lexer is None or any(len(line) > LONGEST for line in code.split("\n")):
        return [[Segment(line, plain)] for line in code.split("\n")]
    for token, text in lexer.get_tokens(f"{code}\n"):  # a diff's last line is one only with its end
        style = _style(theme, token)
        first, *more = text.split("\n")
        if first:
            lines[-1].append(Segment(first, style))
        lines += [[Segment(part, style)] if part else [] for part in more]
    return lines[:-1] if not lines[-1] else lines


def code_lines(code: str, language: str, theme: CodeTheme, width: int, bar: Style) -> list[Line]:
    """Lines of `code` folded to `width`, each behind a bar."""
    code = code.rstrip("\n").expandtabs(4)
    out: list[Line] = []
    for line in highlight(code, language, theme):
        for i, (segments, gap) in enumerate(fold(line, max(4, width - len(BAR)))):
            out.append(([Segment(BAR, bar), *segments], "\n" if i == 0 else gap))
    return out
