"""Renders Markdown as lines: all text stays visible, no link opens by itself. UI thread.

Raw HTML is off in the parser, so `<think>` and `List<String>` are shown literally. Links show their whole address;
where that is http or https the text carries it as `meta`, for a click to ask about. Entities (`&#x202e;`) and percent
escapes are decoded by the parser, so its tokens are cleaned again before they become text. Imported on first use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from rich.segment import Segment
from rich.style import Style

from mlxkv.text.clean import clean
from mlxkv.tui.markdown.block_renderer import CodeTheme
from mlxkv.tui.markdown.code import code_lines
from mlxkv.tui.markdown.formulas import OPEN, add_formula_rules
from mlxkv.tui.markdown.tables import Cell, table_lines
from mlxkv.tui.markdown.unicode_math import unicode_math
from mlxkv.tui.markdown.wrap import Line, wrap

PLAIN = Style()
LEAST = 12  # cells of text; nesting that would leave fewer is not indented
QUOTE = "▌ "
BULLETS = "•◦▪"
BOXES = "☐☑"
TASK = "task"  # the key in a list item's meta: one of `BOXES`
_BOX = re.compile(r"\[([ xX])\](?:[ \t]+|$)")
_ADDRESS = re.compile(r"https?://[^\s<>\"'`|\ufffd\u2400-\u2421]*[^\s<>\"'`|\ufffd\u2400-\u2421.,;:!?)\]}]")
LINK = "mlxkv_link"  # the key in a style's meta


def make_parser() -> MarkdownIt:
    """CommonMark with tables, strikethrough and task lists; an image is shown as a link, a formula in Unicode if it has
    such a form, else as typed."""
    parser = MarkdownIt("commonmark", {"html": False})
    parser.enable(["strikethrough", "table"]).disable(["image", "html_block", "html_inline"])
    parser.core.ruler.after("inline", "tasks", _find_tasks)
    return add_formula_rules(parser)


def _find_tasks(state: StateCore) -> None:
    """Mark list items that begin with `[ ]` or `[x]`, and remove that from their text."""
    for item, opening, content in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        first = (content.children or [None])[0]
        if (item.type, opening.type) != ("list_item_open", "paragraph_open") or first is None or first.type != "text":
            continue
        if found := _BOX.match(first.content):
            item.meta[TASK] = BOXES[found[1] != " "]
            first.content = first.content[found.end() :]


@dataclass(frozen=True)
class Styles:
    """The styles of Markdown, and the theme of code."""

    accent: Style
    code: Style
    muted: Style
    code_theme: CodeTheme


@lru_cache(256)
def _with_link(style: Style, address: str) -> Style:
    return style + Style(underline=True) + Style(meta={LINK: address})


class Lines:
    """One document, from tokens to lines. `safe` makes text safe to show; `is_open`: the text is still growing."""

    def __init__(
        self,
        source: str,
        parser: MarkdownIt,
        styles: Styles,
        safe: Callable[[str], str] = clean,
        *,
        is_open: bool = False,
    ) -> None:
        self._safe = safe
        self._tokens, self._styles, self._at = parser.parse(source, {OPEN: is_open}), styles, 0

    def _plain(self, text: str) -> str:
        return self._safe(text).replace("\t", "    ")

    def lines(self, width: int) -> list[Line]:
        self._at = 0
        return self._blocks(width, "", depth=0, tight=False)

    # -- blocks ------------------------------------------------------------------------------------------

    def _next(self) -> Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _blocks(self, width: int, end: str, depth: int, tight: bool, base: Style = PLAIN) -> list[Line]:
        """Lines up to the token `end`, with blank lines between blocks unless `tight`."""
        out: list[Line] = []
        while self._at < len(self._tokens):
            token = self._next()
            if token.type == end:
                break
            lines = self._block(token, width, depth, base)
            if out and not tight:
                out.append(([], "\n"))
            out += lines
        return out

    def _block(self, token: Token, width: int, depth: int, base: Style) -> list[Line]:
        match token.type:
            case "paragraph_open":
                return self._text(width, base)
            case "heading_open":
                colour = self._styles.accent if token.tag in ("h1", "h2") else PLAIN
                line = Style(underline=True) if token.tag == "h1" else PLAIN
                return self._text(width, base + colour + line + Style(bold=True))
            case "bullet_list_open" | "ordered_list_open":
                return self._list(token, width, depth, base)
            case "blockquote_open":
                bar, inner = (QUOTE, width - len(QUOTE)) if width - len(QUOTE) >= LEAST else ("", width)
                lines = self._blocks(inner, "blockquote_close", depth, False, base + Style(italic=True))
                return [([Segment(bar, self._styles.muted), *line], gap) for line, gap in lines]
            case "table_open":
                return self._table(width, base)
            case "fence" | "code_block":
                language = (clean(token.info).split() or [""])[0]
                return code_lines(
                    self._safe(token.content), language, self._styles.code_theme, width, self._styles.muted
                )
            case "math_block" if text := unicode_math(token.content.strip()):
                return wrap([Segment(self._plain(text), base + Style(italic=True))], width)
            case "hr":
                return [([Segment("─" * width, self._styles.muted)], "\n")]
        return wrap([Segment(self._plain(token.content), base)], width)  # a token type of a later parser

    def _text(self, width: int, style: Style) -> list[Line]:
        content, _close = self._next(), self._next()
        return wrap(list(self._inline(content.children or [], style)), width)

    def _list(self, opening: Token, width: int, depth: int, base: Style) -> list[Line]:
        closing = opening.type.replace("open", "close")
        inside = self._tokens[self._at :]
        inside = inside[: next(i for i, t in enumerate(inside) if t.type == closing and t.level == opening.level)]
        tight = all(t.hidden for t in inside if t.type == "paragraph_open" and t.level == opening.level + 2)
        number = int(opening.attrs.get("start", 1)) if opening.type == "ordered_list_open" else None
        last = (number or 0) - 1 + sum(t.type == "list_item_open" and t.level == opening.level + 1 for t in inside)
        out: list[Line] = []
        while (item := self._next()).type != closing:
            sign = f"{BULLETS[min(depth, 2)]} " if number is None else f"{number}. ".rjust(len(str(last)) + 2)
            if box := item.meta.get(TASK):
                sign = f"{box} " if number is None else f"{sign}{box} "
            indent = " " * len(sign) if width - len(sign) >= LEAST else ""
            lines = self._blocks(width - len(indent), "list_item_close", depth + 1, tight, base) or [([], "\n")]
            if out and not tight:
                out.append(([], "\n"))
            if not indent:
                lines = [([], "\n"), *lines]
            (first, gap), *more = lines
            out.append(([Segment(sign, self._styles.accent), *first], gap))
            out += [([Segment(indent), *line], gap) for line, gap in more]
            number = None if number is None else number + 1
        return out

    def _table(self, width: int, base: Style) -> list[Line]:
        rows: list[list[Cell]] = []
        aligns: list[str] = []
        heading = False
        while (token := self._next()).type != "table_close":
            match token.type:
                case "tr_open":
                    rows.append([])
                case "th_open" | "td_open":
                    heading = token.type == "th_open"
                    if heading:
                        aligns.append(str(token.attrs.get("style", "")).removeprefix("text-align:") or "left")
                case "inline":
                    style = base + Style(bold=True) if heading else base
                    rows[-1].append(list(self._inline(token.children or [], style)))
        return table_lines(rows[0], rows[1:], aligns, width, self._styles.muted)

    # -- inside a line -----------------------------------------------------------------------------------

    def _inline(self, tokens: list[Token], base: Style) -> Iterator[Segment]:
        styles = [base]
        link, label = "", ""
        for token in tokens:
            match token.type:
                case "math":
                    label += token.content
                    text = unicode_math(token.content)
                    style = styles[-1] + Style(italic=True) if text else styles[-1]
                    yield Segment(self._plain((text or token.content).replace("\n", " ")), style)
                case "text" | "text_special":
                    label += token.content
                    yield from self._with_addresses(self._plain(token.content), styles[-1], link)
                case "code_inline":
                    label += token.content
                    yield Segment(self._plain(token.content), styles[-1] + self._styles.code)
                case "softbreak":
                    yield Segment(" ", styles[-1])
                case "hardbreak":
                    yield Segment("\n")
                case "em_open":
                    styles.append(styles[-1] + Style(italic=True))
                case "strong_open":
                    styles.append(styles[-1] + Style(bold=True))
                case "s_open":
                    styles.append(styles[-1] + Style(strike=True))
                case "link_open":
                    link, label = clean(str(token.attrs.get("href", ""))), ""
                    styles.append(self._link_style(styles[-1], link))
                case "link_close":
                    if link and clean(label).strip() not in (link, link.removeprefix("mailto:")):
                        yield Segment(" (", self._styles.muted)
                        yield Segment(link, self._link_style(self._styles.muted, link))
                        yield Segment(")", self._styles.muted)
                    styles.pop()
                    link = ""
                case "em_close" | "strong_close" | "s_close":
                    styles.pop()
                case _:
                    yield Segment(self._plain(token.content), styles[-1])

    def _with_addresses(self, text: str, style: Style, link: str) -> Iterator[Segment]:
        """Make links of URLs in plain text."""
        start = 0
        for match in () if link else _ADDRESS.finditer(text):
            yield Segment(text[start : match.start()], style)
            yield Segment(match[0], self._link_style(style, match[0]))
            start = match.end()
        yield Segment(text[start:], style)

    @staticmethod
    def _link_style(style: Style, address: str) -> Style:
        if address.startswith(("http://", "https://")):
            return _with_link(style, address)
        return style + Style(underline=True)
