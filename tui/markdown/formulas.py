r"""LaTeX in Markdown: where formulas begin and end, and parser rules that show them as typed. Pure; UI thread.

`\(...\)`, `\[...\]`, `$...$` and `$$...$$`, as in GitHub and pandoc: a single dollar opens a formula before a
non-blank, and the next dollar must close it: after a non-blank, and before no letter, digit or bracket. So `$5 and $6`
is money and `$HOME/${USER}` is shell. A formula that begins a line with `\[` or
`$$` is a block up to its end or a blank line, whatever its lines look like to Markdown.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # neither the splitter nor the start of the window needs it
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

OPEN = "open"  # in the parser's environment: the text is still growing, so a formula may still be closed

_OPENING = re.compile(r" {0,3}(\\\[|\$\$)")
_ENDS = {r"\[": re.compile(r"(?<!\\)\\\]"), "$$": re.compile(r"(?<!\\)\$\$")}
_DOLLAR = re.compile(r"(?<!\\)\$")
_CLOSING_DOLLAR = re.compile(r"(?<=[^\s$])\$(?![\w${(])")
_CLOSING_DOLLARS = re.compile(r"(?<!\\)\$\$")
_WORD = re.compile(r"(?<![\\\w])[a-zA-Z]{2,}")
_LONGEST_SUM = 200  # characters of a formula that begins with a digit
_PROSE = re.compile(r"\$\$\s[^\\{}^_=]*\s[a-zA-Z]{2,}\s")  # the shell's `$$`, its process id, twice in a sentence
_CLOSED = "formulas"  # in the parser's environment: the text searched, and the ends of formulas in it


def opens_block(line: str) -> str | None:
    """The delimiter with which `line` opens a formula block; None if it opens none, or has text after the formula."""
    match = _OPENING.match(line)
    if match is None:
        return None
    end = _ENDS[match[1]].search(line, match.end())
    return match[1] if end is None or not line[end.end() :].strip(" \t.,;:") else None


def closes_block(line: str, opening: str, *, is_first: bool = False) -> bool:
    """Whether a formula block opened by `opening` ends in `line`. `is_first`: `line` also opens it."""
    start = line.find(opening) + len(opening) if is_first else 0
    return _ENDS[opening].search(line, start) is not None


def add_formula_rules(parser: MarkdownIt) -> MarkdownIt:
    parser.block.ruler.before("fence", "math_block", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.inline.ruler.before("escape", "math", _inline)
    return parser


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    def line(number: int) -> str:
        return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]

    if state.is_code_block(start) or (opening := opens_block(line(start))) is None:
        return False
    if silent:
        return True
    number, is_closed = start + 1, closes_block(line(start), opening, is_first=True)
    while not is_closed and number < end and not state.isEmpty(number) and state.sCount[number] >= state.blkIndent:
        is_closed = closes_block(line(number), opening)
        number += 1
    token = state.push("math_block", "", 0)
    token.content, token.map = state.getLines(start, number, state.blkIndent, False), [start, number]
    state.line = number
    return True


def _inline(state: StateInline, silent: bool) -> bool:
    end = _end(state)
    if end is None:
        return False
    if not silent:
        token = state.push("math", "", 0)
        text = state.src[state.pos : end]
        token.content = text if text.startswith(("$$", "\\[")) else text.replace("\n", " ")
    state.pos = end
    return True


def _end(state: StateInline) -> int | None:
    """End of the formula that begins here; None if none does."""
    text, start, most = state.src, state.pos, state.posMax
    if text[start] == "\\" and text[start + 1 : min(start + 2, most)] in ("(", "["):
        return _end_of_brackets(text, start, most)
    if text[start] != "$":
        return None
    is_double = text.startswith("$$", start)
    found = _closing(state)[is_double]
    at = bisect_left(found, start + (3 if is_double else 2))
    opens = is_double or (
        text[start + 1 : min(start + 2, most)].strip() and not (start and re.match(r"[\w\\$]", text[start - 1]))
    )
    if not opens:
        return None
    is_amount = not is_double and text[start + 1].isdigit()  # perhaps: `$5, or 6$`
    if at == len(found) or found[at] > most:
        return most if state.env.get(OPEN) and not is_amount else None
    end = found[at]
    if is_double:
        return None if _PROSE.match(text, start, end) else end
    if _CLOSING_DOLLAR.match(text, end - 1) is None or text.find("`", start, end) >= 0:
        return None
    return None if is_amount and _has_words(text[start:end]) else end


def _has_words(text: str) -> bool:
    return len(text) > _LONGEST_SUM or _WORD.search(text) is not None


def _end_of_brackets(text: str, start: int, most: int) -> int:
    """End of a bracketed formula; an unclosed one extends to the end of the text."""
    closing, at = {"(": ")", "[": "]"}[text[start + 1]], start + 2
    while (at := text.find("\\", at, most)) >= 0:
        if text[at + 1 : at + 2] == closing:
            return min(at + 2, most)
        at += 2
    return most


def _closing(state: StateInline) -> tuple[list[int], list[int]]:
    """Ends of all single and all double dollar signs, searched once per text."""
    known = state.env.get(_CLOSED)
    if known is None or known[0] is not state.src:
        ends = [[m.end() for m in sign.finditer(state.src)] for sign in (_DOLLAR, _CLOSING_DOLLARS)]
        known = state.env[_CLOSED] = (state.src, (ends[0], ends[1]))
    return known[1]
