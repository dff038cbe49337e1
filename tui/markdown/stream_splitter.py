"""Splits a Markdown stream into top-level blocks that can be rendered one by one. Pure; UI thread.

It works on complete lines only, so the result does not depend on how the text is split into pieces. It knows just
enough of CommonMark to find where a block ends; the Markdown parser renders the inside (`renderer.py`). The sources of
the blocks, joined, are the text. Time is linear: each line is looked at once, whatever the length of its block.
A reference link defined in another block is shown as typed, as blocks are parsed separately.
It differs from CommonMark in one rule, because models write it that way: a ```markdown fence may contain fenced code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from mlxkv.tui.markdown.formulas import closes_block, opens_block
from mlxkv.tui.state.transcript.blocks import Block, Kind

CODE_LINES = 40  # after which a long fence is cut, so that the unfinished part stays cheap to render

_FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)$")
_ITEM = re.compile(r"( {0,3})([-*+]|\d{1,9}[.)])( +|\t|$)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_BREAK = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")
_MARKDOWN = ("markdown", "md", "mdx")
_MARKER_ONLY = re.compile(r"\s*(?:[-*+=_`~#>|: ]+|\d{1,9}[.)]?\s*)$")  # may become anything


@dataclass(frozen=True)
class _Fence:
    indent: int
    mark: str

    def closes(self, line: str) -> bool:
        text = line.strip(" \t")
        return _indent(line) < self.indent + 4 and len(text) >= len(self.mark) and set(text) == {self.mark[0]}

    def opens_inner(self, line: str) -> bool:
        """Whether `line` opens an inner fence (with a language) whose end could be taken for the end of this one."""
        found = _fence_of(line)
        return (
            found is not None and bool(found[1]) and found[0].mark[0] == self.mark[0]
            and len(found[0].mark) >= len(self.mark) and _indent(line) < self.indent + 4
        )  # fmt: skip


@dataclass
class Splitter:
    """Splits text as it arrives. `feed` returns the blocks that are final now, `finish` the rest.

    `preview` returns what `finish` would, and changes nothing.
    """

    _partial: str = ""  # the line that has not ended
    _lines: list[str] = field(default_factory=list)  # of the open block
    _source: list[str] = field(default_factory=list)  # the same with fences, and the blank lines around
    _shape: str = ""  # of the open block: "" | "text" | "item" | "fence" | "indented" | "math"
    _blanks: int = 0  # blank lines an item or indented code may still swallow
    _fence: _Fence | None = None  # a fence that is open, at the top or inside an item
    _info: str = ""
    _inside: int = 0  # fences that are open inside of a block of Markdown
    _opening: str = ""  # of the open formula
    _pieces: int = 0  # of the open fence that were cut off already
    _item_indent: int = 0  # where an item's content starts
    _after_item: bool = False  # the block before was an item: the next one continues the list

    def feed(self, text: str) -> list[Block]:
        *lines, self._partial = (self._partial + text).split("\n")
        return [block for line in lines for block in self._line(line)]

    def finish(self) -> list[Block]:
        last, self._partial = self._partial, ""
        out = self._line(last) if last else []
        out += self._close()
        self._after_item = False
        if last and out:  # the text did not end with a line end
            out[-1] = replace(out[-1], source=out[-1].source[:-1])
        return out

    def preview(self) -> list[Block]:
        """The open block so far, without a last line of markers only, which would flicker as a heading or a rule."""
        copy = Splitter(**{**self.__dict__, "_lines": list(self._lines), "_source": list(self._source)})
        if _MARKER_ONLY.match(copy._partial):
            copy._partial = ""
        out = copy.finish()
        if out and out[-1].kind is Kind.MARKDOWN and "$" in out[-1].text:
            out[-1] = replace(out[-1], is_open=True)
        return out

    # -- one complete line -------------------------------------------------------------------------------

    def _line(self, line: str) -> list[Block]:
        match self._shape:
            case "fence":
                return self._in_fence(line)
            case "item":
                return self._in_item(line)
            case "indented":
                return self._in_indented(line)
            case "text":
                return self._in_text(line)
            case "math":
                return self._in_math(line)
        return self._start(line)

    def _start(self, line: str) -> list[Block]:
        """Begin a new block with `line`."""
        self._source.append(line)
        if not line.strip():
            return []
        if (fence := _fence_of(line)) and fence[0].indent < 4:
            self._shape, (self._fence, self._info) = "fence", fence
            return []
        if opening := opens_block(line):
            self._lines, self._shape, self._opening = [line], "math", opening
            return self._close() if closes_block(line, opening, is_first=True) else []
        if _HEADING.match(line) or _BREAK.match(line):
            self._lines, self._shape = [line], "text"
            return self._close()
        if item := _ITEM.match(line):
            self._shape, self._lines = "item", [line]
            pad = len(item[3].expandtabs(4))
            self._item_indent = len(item[1]) + len(item[2]) + (pad if 1 <= pad <= 4 else 1)
            self._enter_fence(line[item.end() :], self._item_indent)
            return []
        self._shape, self._lines = ("indented" if _indent(line) >= 4 else "text"), [line]
        return []

    def _in_text(self, line: str) -> list[Block]:
        """In a paragraph, quote or table: up to a blank line or a block that may interrupt it."""
        if not line.strip():
            self._source.append(line)
            return self._close()
        fence = _fence_of(line)
        item = _ITEM.match(line)
        # As in CommonMark, "1986. A year" inside a paragraph is no list, and an empty item interrupts nothing.
        listed = item and not _BREAK.match(line) and line[item.end() :].strip() and item[2] in "-*+1.1)"
        rule = _BREAK.match(line) and set(line.strip()) != {"-"}  # `---` makes the paragraph a heading
        if (fence and fence[0].indent < 4) or _HEADING.match(line) or listed or rule or opens_block(line):
            return self._close() + self._start(line)
        self._take(line)
        return self._close() if _UNDERLINE.match(line) and not self._lines[0].lstrip().startswith(">") else []

    def _in_math(self, line: str) -> list[Block]:
        """In a formula: up to its end or a blank line."""
        if not line.strip():
            self._source.append(line)
            return self._close()
        self._take(line)
        return self._close() if closes_block(line, self._opening) else []

    def _in_indented(self, line: str) -> list[Block]:
        if not line.strip():
            self._blanks += 1
            self._source.append(line)
            return []
        if _indent(line) >= 4:
            return self._keep(line)
        return self._close() + self._start(line)

    def _in_item(self, line: str) -> list[Block]:
        if not line.strip():
            self._blanks += 1
            self._source.append(line)
            return []
        indent = _indent(line)
        if indent >= self._item_indent:
            if self._fence is None:
                self._enter_fence(line, 0)
            elif self._fence.closes(line):
                self._fence = None
            return self._keep(line)
        # A fence ends with the item that holds it; a paragraph may continue without indentation.
        block_start = _fence_of(line) or _HEADING.match(line) or _ITEM.match(line) or _BREAK.match(line)
        block_start = block_start or opens_block(line)
        lazy = not self._blanks and not block_start and not line.lstrip().startswith(">")
        if self._fence is None and lazy and not _MARKER_ONLY.match(self._lines[-1]):
            return self._keep(line)
        return self._close() + self._start(line)

    def _in_fence(self, line: str) -> list[Block]:
        assert self._fence is not None
        if self._info.lower() in _MARKDOWN and self._fence.opens_inner(line):
            self._inside += 1
        elif self._fence.closes(line):
            if not self._inside:
                self._source.append(line)
                return self._close()
            self._inside -= 1
        out = self._cut() if len(self._lines) >= CODE_LINES else []  # not before: every piece holds code
        self._take(line, _outdent(line, self._fence.indent))
        return out

    # -- the open block ----------------------------------------------------------------------------------

    def _enter_fence(self, line: str, offset: int) -> None:
        if fence := _fence_of(line):
            self._fence = _Fence(fence[0].indent + offset, fence[0].mark)

    def _keep(self, line: str) -> list[Block]:
        self._lines += [""] * self._blanks
        self._blanks = 0
        self._take(line)
        return []

    def _take(self, line: str, shown: str | None = None) -> None:
        self._source.append(line)
        self._lines.append(line if shown is None else shown)

    def _cut(self) -> list[Block]:
        """Return the code of the open fence so far; the fence stays open."""
        block = Block(Kind.CODE, "\n".join(self._lines), self._info, self._pieces > 0, source=self._take_source())
        self._lines, self._pieces = [], self._pieces + 1
        return [block]

    def _take_source(self) -> str:
        source, self._source = "\n".join(self._source) + "\n", []
        return source

    def _close(self) -> list[Block]:
        out: list[Block] = []
        if self._shape == "fence":
            out = self._cut()
        elif self._lines:
            in_list = self._shape == "item" and self._after_item
            out = [Block(Kind.MARKDOWN, "\n".join(self._lines), tight=in_list, source=self._take_source())]
        if self._shape:
            self._after_item = self._shape == "item"
        self._lines, self._shape, self._blanks, self._fence, self._info, self._pieces = [], "", 0, None, "", 0
        self._inside = 0
        return out


def _indent(line: str) -> int:
    width = len(line) - len(line.lstrip(" \t"))
    return len(line[:width].expandtabs(4))


def _outdent(line: str, columns: int) -> str:
    """Remove up to `columns` of indentation."""
    if not columns:
        return line
    text = line.lstrip(" \t")
    return line[: len(line) - len(text)].expandtabs(4)[columns:] + text


def _fence_of(line: str) -> tuple[_Fence, str] | None:
    """The fence that `line` opens, and its language; a backtick fence has no backticks in its info string."""
    match = _FENCE.match(line)
    if match is None or (match[2][0] == "`" and "`" in match[3]):
        return None
    return _Fence(len(match[1]), match[2]), (match[3].split() or [""])[0]


def split(text: str) -> list[Block]:
    """Split a finished text."""
    splitter = Splitter()
    return splitter.feed(text) + splitter.finish()
