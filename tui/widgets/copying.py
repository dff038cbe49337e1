"""Source text of messages, code blocks and selected lines, for copying. Pure; UI thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from mlxkv.stats import plural
from mlxkv.text.clean import rejoined
from mlxkv.tui.markdown.stream_splitter import split
from mlxkv.tui.markdown.wrap import Row
from mlxkv.tui.state.labels import number_range
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.line_layout import LineLayout

Point = tuple[int, int]  # line, character; the end is exclusive, -1 the end of the line

_ARGUMENT = re.compile(r"(\d+)?\s*(?:(code)\s*(\d+)?)?$")


class CopyError(Exception):
    """One sentence for the user: there is nothing to copy."""


def source(block: Block) -> str:
    """The source text of a block."""
    match block.kind:
        case Kind.THOUGHT:
            return block.text if block.folded else block.detail
        case Kind.STATS:
            return ""
    return block.source or block.text


def message_text(blocks: Iterable[Block]) -> str:
    """The text of one message, without its figures and its reasoning.

    Raises:
        CopyError: if it has none.
    """
    kinds = (Kind.USER, Kind.REPLY, Kind.MARKDOWN, Kind.CODE)
    if text := "".join(source(block) for block in blocks if block.kind in kinds).strip("\n"):
        return text
    raise CopyError("There is nothing to copy.")


def message_code(blocks: Iterable[Block], number: int | None = None) -> str:
    """The code of one message: code block `number` (from 1), or all of them.

    Raises:
        CopyError: if there is none.
    """
    codes = code_blocks(blocks)
    if not codes:
        raise CopyError("There is no code in this message.")
    if number is None:
        return "\n\n".join(codes)
    if 1 <= number <= len(codes):
        return codes[number - 1]
    raise CopyError(f"This message has {plural(len(codes), 'code block')}; there is no number {number}.")


def reply_text(argument: str, replies: Sequence[int], blocks_of: Callable[[int], Iterable[Block]]) -> str:
    """The text that `/copy [n] [code [k]]` copies: of the n-th last reply, or of its code.

    Raises:
        CopyError: if there is none, or if the argument is malformed.
    """
    match = _ARGUMENT.match(argument.strip())
    if match is None:
        raise CopyError("/copy, /copy 2, /copy code or /copy 2 code 1: the second last reply, its first code block.")
    number = int(match[1] or 1)
    if not replies:
        raise CopyError("There is no reply yet.")
    if not 1 <= number <= len(replies):
        raise CopyError(f"There is no reply {number}: {number_range(len(replies))}.")
    blocks = blocks_of(replies[-number])
    return message_code(blocks, int(match[3]) if match[3] else None) if match[2] else message_text(blocks)


def code_blocks(blocks: Iterable[Block]) -> list[str]:
    """The code of a message, fence by fence."""
    flat = [part for block in blocks for part in (split(block.text) if block.kind is Kind.REPLY else [block])]
    out: list[str] = []
    for block in flat:
        if block.kind is Kind.CODE and block.tight and out:
            out[-1] += "\n" + block.text
        elif block.kind is Kind.CODE:
            out.append(block.text)
    return out


def selected(lines: LineLayout, start: Point, end: Point) -> str:
    """The text between two points: the source of blocks selected whole, the shown text of others."""
    pieces: list[tuple[Block, str, bool]] = []
    first, last = lines.index_at(start[0]), lines.index_at(end[0])
    for index in range(first, last + 1 if len(lines) else first):
        cell, top = lines.cell(index), lines.start(index)
        if cell.strips is None and first < index < last:
            pieces.append((cell.block, source(cell.block), True))
            continue
        lines.render_block(index)
        cell = lines.cell(index)
        rows = [row for row in cell.strips or () if isinstance(row, Row)]
        text, is_whole = _shown(rows, top, start, end)
        whole = source(cell.block)
        if not is_whole:  # the screen may show joined emoji in parts
            text = rejoined(text, _shown(rows, top, (top, 0), start)[0] if start > (top, 0) else "", whole)
        pieces.append((cell.block, whole if is_whole else text, is_whole))
    pieces = [piece for piece in pieces if piece[1]]
    if all(block.kind is Kind.CODE for block, _, _ in pieces):  # code alone is copied without fences
        return "\n".join(block.text if is_whole else text for block, text, is_whole in pieces)
    return _join(pieces)


def _join(pieces: list[tuple[Block, str, bool]]) -> str:
    """Concatenate sources of one message; separate anything else by a blank line."""
    out, before = "", None
    for block, text, is_whole in pieces:
        is_adjacent = before and is_whole and block.source and before.source and before.message == block.message
        if before and not is_adjacent:
            out, text = out.rstrip("\n") + ("\n" if block.tight else "\n\n"), text.lstrip("\n")
        out += text
        before = block if is_whole else Block(Kind.META, "")
    return out.strip("\n")


def _shown(rows: list[Row], top: int, start: Point, end: Point) -> tuple[str, bool]:
    """The part of `rows` between the points, without wrapping and indentation; and whether that is all of them."""
    text, is_whole = "", True
    for y, row in enumerate(rows, top):
        left = start[1] if y == start[0] else 0
        right = end[1] if y == end[0] and end[1] >= 0 else len(row.text)
        inside = start[0] <= y <= end[0] and left < right
        if not row.text.strip():
            continue
        is_whole &= inside and left <= row.margin and right >= len(row.text)
        if inside:
            text += (row.gap if text else "") + row.text[max(left, row.margin) : right]
    return text, is_whole
