"""From lines on the screen back to the text they came from. Pure; UI thread."""

from __future__ import annotations

from collections.abc import Iterable

from mlxkv.text.clean import rejoined
from mlxkv.tui.markdown.stream_splitter import split
from mlxkv.tui.markdown.wrap import Row
from mlxkv.tui.state.blocks import Block, Kind
from mlxkv.tui.widgets.line_layout import Layout

Point = tuple[int, int]  # line, character; the end is exclusive, -1 the end of the line


def source(block: Block) -> str:
    """What a block says, as it was written."""
    match block.kind:
        case Kind.THOUGHT:
            return block.text if block.folded else block.detail
        case Kind.STATS:
            return ""
    return block.source or block.text


def message_source(blocks: Iterable[Block]) -> str:
    """The text of one message, without its figures and its reasoning."""
    kinds = (Kind.USER, Kind.REPLY, Kind.MARKDOWN, Kind.CODE)
    return "".join(source(block) for block in blocks if block.kind in kinds).strip("\n")


def code_blocks(blocks: Iterable[Block]) -> list[str]:
    """The code in a message, fence by fence."""
    flat = [part for block in blocks for part in (split(block.text) if block.kind is Kind.REPLY else [block])]
    out: list[str] = []
    for block in flat:
        if block.kind is Kind.CODE and block.tight and out:
            out[-1] += "\n" + block.text
        elif block.kind is Kind.CODE:
            out.append(block.text)
    return out


def selected(lines: Layout, start: Point, end: Point) -> str:
    """The text between two points: of blocks that are chosen whole their source, of others what is shown of them."""
    pieces: list[tuple[Block, str, bool]] = []
    first, last = lines.index_at(start[0]), lines.index_at(end[0])
    for index in range(first, last + 1 if len(lines) else first):
        cell, top = lines.cell(index), lines.start(index)
        if cell.strips is None and first < index < last:
            pieces.append((cell.block, source(cell.block), True))
            continue
        lines.settle(index)
        cell = lines.cell(index)
        rows = [row for row in cell.strips or () if isinstance(row, Row)]
        text, is_whole = _shown(rows, top, start, end)
        said = source(cell.block)
        if not is_whole:  # the screen may show joined emoji in parts
            text = rejoined(text, _shown(rows, top, (top, 0), start)[0] if start > (top, 0) else "", said)
        pieces.append((cell.block, said if is_whole else text, is_whole))
    pieces = [piece for piece in pieces if piece[1]]
    if all(block.kind is Kind.CODE for block, _, _ in pieces):  # one's own code wants no fences
        return "\n".join(block.text if is_whole else text for block, text, is_whole in pieces)
    return _join(pieces)


def _join(pieces: list[tuple[Block, str, bool]]) -> str:
    """Sources of one message fit together as they are; anything else stands apart."""
    out, before = "", None
    for block, text, is_whole in pieces:
        goes_on = before and is_whole and block.source and before.source and before.message == block.message
        if before and not goes_on:
            out, text = out.rstrip("\n") + ("\n" if block.tight else "\n\n"), text.lstrip("\n")
        out += text
        before = block if is_whole else Block(Kind.META, "")
    return out.strip("\n")


def _shown(rows: list[Row], top: int, start: Point, end: Point) -> tuple[str, bool]:
    """The part of `rows` between the points, without what wrapping and indenting added; and whether it is all."""
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
