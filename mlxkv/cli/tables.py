"""Lines of a table for the terminal: columns that fit its width, whatever the text. Pure but for asking the width."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence

from mlxkv.text.clean import clean

_WIDE = ("W", "F")


def width_of_terminal() -> int | None:
    """Cells of a line on the terminal; None where stdout is none: a pipe gets whole lines."""
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def row(columns: Sequence[str], width: int | None) -> str:
    """The columns, two spaces between them; what does not fit `width` is cut from the end. Cleaned."""
    line = "  ".join(clean(" ".join(c.expandtabs(1).splitlines())) for c in columns).rstrip()
    return line if width is None else cut(line, width)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, with an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    used, out = 1, []
    for char in text:
        used += cells(char)
        if used > width:
            break
        out.append(char)
    return "".join(out).rstrip() + "…"


def cells(text: str) -> int:
    """How wide a terminal draws it."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in _WIDE else 1 for c in text)
