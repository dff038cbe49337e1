"""Rich's Markdown with what a chat needs changed: nothing vanishes, nothing links, code has a bar. UI thread.

Raw HTML is off in the parser, so `<think>` and `List<String>` are shown as they are (Rich drops them). Links show
their whole address and are not clickable. Entities (`&#x202e;`) and percent escapes are decoded by the parser, so
its tokens are cleaned again before they become text. Imported on first use: it brings Pygments.
"""

from __future__ import annotations

from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box, markdown
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from mlxkv.text import clean


def code_text(code: str, language: str, theme: str) -> Text:
    """`code` highlighted, without a background. An unknown language is plain text."""
    syntax = Syntax(code, language or "text", theme=theme, background_color="default", tab_size=4)
    text = syntax.highlight(code)
    text.rstrip()
    return text


def barred(text: Text, console: Console, width: int, bar: Style) -> list[list[Segment]]:
    """Lines of `text` folded to `width`, each behind a bar."""
    text.expand_tabs(4)
    out: list[list[Segment]] = []
    for line in text.split("\n", allow_blank=True) or [Text("")]:
        for piece in line.wrap(console, max(4, width - 2), overflow="fold"):
            piece.rstrip()
            piece.end = ""
            out.append([Segment("│ ", bar), *(_ink(segment) for segment in piece.render(console))])
    return out


def _ink(segment: Segment) -> Segment:
    """Without the background, which Pygments styles insist on."""
    style = segment.style
    if style is None or style.bgcolor is None:
        return segment
    return Segment(segment.text, Style(color=style.color, bold=style.bold, italic=style.italic))


class _Code(markdown.CodeBlock):
    """Code inside a list or a quote; top-level fences never reach the parser."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = code_text(str(self.text).rstrip("\n"), self.lexer_name, self.theme)
        for line in barred(text, console, options.max_width, console.get_style("markdown.code_bar")):
            yield from line
            yield Segment.line()


class _Heading(markdown.Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}  # nothing is centred


class _Rule(markdown.HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="markdown.hr", characters="─")


class _Item(markdown.ListItem):
    """`• text` and `1. text`, flush left."""

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._hang(console, options, "• ", "markdown.item.bullet")

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        sign = f"{number}. ".rjust(len(str(last_number - 1)) + 2)
        yield from self._hang(console, options, sign, "markdown.item.number")

    def _hang(self, console: Console, options: ConsoleOptions, sign: str, style: str) -> RenderResult:
        inner = options.update(width=max(1, options.max_width - len(sign)))
        for i, line in enumerate(console.render_lines(self.elements, inner, style=self.style, pad=False)):
            yield Segment(sign, console.get_style(style)) if i == 0 else Segment(" " * len(sign))
            yield from line
            yield Segment.line()


class _Table(markdown.TableElement):
    """No outer frame: a rule under the header is enough."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, style="markdown.table.border")
        if self.header is not None and self.header.row is not None:
            for cell in self.header.row.cells:
                heading = cell.content.copy()
                heading.stylize("markdown.table.header")
                table.add_column(heading, justify=cell.content.justify or "default", overflow="fold")
        for row in self.body.rows if self.body is not None else []:
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class SafeMarkdown(markdown.Markdown):
    """A `rich.markdown.Markdown` for text by a model."""

    elements: ClassVar[dict[str, type[markdown.MarkdownElement]]] = {
        **markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "hr": _Rule,
        "list_item_open": _Item,
        "table_open": _Table,
    }

    def __init__(self, text: str, parser: MarkdownIt, code_theme: str) -> None:
        # Not `super().__init__`: it would build a parser each time, which costs more than most blocks.
        self.markup, self.parsed = text, parser.parse(text)
        self.code_theme = self.inline_code_theme = code_theme
        self.justify, self.style, self.hyperlinks, self.inline_code_lexer = None, "none", False, None
        _clean(self.parsed)


def make_parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough; an image is shown as the link it is."""
    parser = MarkdownIt("commonmark", {"html": False})
    return parser.enable(["strikethrough", "table"]).disable(["image", "html_block", "html_inline"])


def _clean(tokens: list[Token]) -> None:
    for token in tokens:
        token.content, token.info = clean(token.content), clean(token.info)
        if "href" in token.attrs:
            token.attrs["href"] = clean(str(token.attrs["href"]))
        if token.children:
            _clean(token.children)
