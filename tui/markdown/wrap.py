"""Wrapping text into screen lines that record their source text. Pure; UI thread."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len, chop_cells, split_graphemes
from rich.segment import Segment
from textual.strip import Strip

_WORD = re.compile(r"\S+")
_FLAG = re.compile("([\U0001f1e6-\U0001f1ff]{2})")


class Row(Strip):
    """A screen line. `gap` is the text between it and the line above: a newline, or the spaces that wrapping dropped.

    `margin`: cells at its left that are not part of the text.
    """

    __slots__ = ["gap", "margin"]

    def __init__(self, segments: Iterable[Segment], gap: str = "\n", margin: int = 0) -> None:
        super().__init__(segments)
        self.gap, self.margin = gap, margin


Line = tuple[list[Segment], str]  # segments, gap
Span = tuple[int, int, str]  # start, end, gap


def cuts(text: str, width: int) -> list[Span]:
    """Spans of `text` that fit `width` each; words are broken only if they exceed it."""
    out: list[Span] = []
    begin = 0
    for line in text.split("\n"):
        end = begin + len(line)
        if cell_len(line) <= width:
            out.append((begin, end, "\n"))
        else:
            out += _cut_line(text, begin, end, width)
        begin = end + 1
    return out


def _cut_line(text: str, begin: int, end: int, width: int) -> list[Span]:
    out: list[Span] = []
    start = stop = begin  # of the part being filled
    gap, used = "\n", 0
    for word in _WORD.finditer(text, begin, end):
        first, last = word.span()
        size = cell_len(word[0])
        blank = cell_len(text[stop:first])
        if used + blank + size <= width:
            stop, used = last, used + blank + size
            continue
        if stop > start:
            out.append((start, stop, gap))
            gap = " "
        start, stop, used = first, last, size
        if size > width:
            for piece in chop(word[0], width):
                stop = start + len(piece)
                if stop < last:
                    out.append((start, stop, gap))
                    start, gap = stop, ""
            used = cell_len(text[start:last])
    if stop > start:
        out.append((start, stop, gap))
    return out


def wrap(runs: list[Segment], width: int) -> list[Line]:
    """Lines of styled text, each at most `width` cells; a newline in the text ends one."""
    text = "".join(run.text for run in runs)
    return _parts(runs, text, cuts(text, width))


def fold(runs: list[Segment], width: int) -> list[Line]:
    """Lines of at most `width` cells, cut at any character, for code."""
    text = "".join(run.text for run in runs)
    if cell_len(text) <= width:
        return [(runs, "\n")]
    spans: list[Span] = []
    for piece in chop(text, width):
        start = spans[-1][1] if spans else 0
        spans.append((start, start + len(piece), "" if spans else "\n"))
    return _parts(runs, text, spans)


def chop(text: str, width: int) -> list[str]:
    """`text` in pieces of at most `width` cells; a flag (two regional indicators) stays whole."""
    if _FLAG.search(text) is None:
        return chop_cells(text, width)
    out, used = [""], 0
    for part in _FLAG.split(text):
        for piece in [part] if _FLAG.fullmatch(part) else [part[a:b] for a, b, _ in split_graphemes(part)[0]]:
            size = cell_len(piece)
            if out[-1] and used + size > width:
                out.append("")
                used = 0
            out[-1], used = out[-1] + piece, used + size
    return out


def _parts(runs: list[Segment], text: str, spans: list[Span]) -> list[Line]:
    if len(spans) == 1 and spans[0][:2] == (0, len(text)):
        return [(runs, "\n")]
    out: list[Line] = []
    index, offset = 0, 0  # the run that the next part starts in, and where in the text that run starts
    for start, end, gap in spans:
        line: list[Segment] = []
        while index < len(runs) and offset < end:
            run = runs[index]
            piece = run.text[max(0, start - offset) : end - offset]
            if piece:
                line.append(Segment(piece, run.style))
            if offset + len(run.text) > end:
                break
            offset += len(run.text)
            index += 1
        out.append((line, gap))
    return out


def width_of(segments: Iterable[Segment]) -> int:
    return sum(cell_len(segment.text) for segment in segments)
