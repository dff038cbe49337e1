"""Markdown tables as lines, with columns shrunk to fit the width. Pure; UI thread."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style

from mlxkv.tui.markdown.wrap import Line, width_of, wrap

GAP = "   "
NARROWEST = 6  # cells of a column; where they do not fit, each row is shown as a list of its cells

Cell = list[Segment]


def table_lines(head: list[Cell], body: list[list[Cell]], aligns: list[str], width: int, rule: Style) -> list[Line]:
    """`aligns`: "left" | "center" | "right" per column. Rows may be short."""
    rows = [row + [[] for _ in range(len(head) - len(row))] for row in body]
    need = [max(1, *(_natural(row[i]) for row in (head, *rows))) for i in range(len(head))]
    room = width - len(GAP) * (len(head) - 1)
    if sum(need) > room and room < NARROWEST * len(head):
        return _as_list(head, rows, width)
    widths = _shrink(need, room)
    out = _row(head, aligns, widths)
    out.append(([Segment("─" * (sum(widths) + len(GAP) * (len(head) - 1)), rule)], "\n"))
    for row in rows:
        out += _row(row, aligns, widths)
    return out


def _natural(cell: Cell) -> int:
    return max(width_of(line) for line, _ in wrap(cell, 10**6))


def _shrink(need: list[int], room: int) -> list[int]:
    """Column widths that fit `room`; the widest columns shrink first."""
    widths = list(need)
    while sum(widths) > room:
        most = max(widths)
        wide = [i for i, width in enumerate(widths) if width == most]
        below = max((width for width in widths if width < most), default=0)
        over = sum(widths) - room
        less = min(most - max(below, 1), -(-over // len(wide)))
        for i in wide:
            widths[i] -= less
    return widths


def _row(cells: list[Cell], aligns: list[str], widths: list[int]) -> list[Line]:
    columns = [[line for line, _ in wrap(cell, width)] for cell, width in zip(cells, widths, strict=True)]
    out: list[Line] = []
    for y in range(max(map(len, columns))):
        line: list[Segment] = []
        for i, column in enumerate(columns):
            text = column[y] if y < len(column) else []
            free = widths[i] - width_of(text)
            left = {"right": free, "center": free // 2}.get(aligns[i], 0)
            line += [Segment((GAP if i else "") + " " * left), *text, Segment(" " * (free - left))]
        out.append((line, "\n" if y == 0 else " "))
    return out


def _as_list(head: list[Cell], rows: list[list[Cell]], width: int) -> list[Line]:
    """One line per cell, `heading: cell`, where the width is too small for columns."""
    out: list[Line] = []
    for row in rows or [[[] for _ in head]]:
        for heading, cell in zip(head, row, strict=True):
            out += wrap([*heading, Segment(": "), *cell], width)
        out.append(([], "\n"))
    return out[:-1]
