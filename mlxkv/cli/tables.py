"""Rows of a table on the terminal: columns that fit its width, whatever the text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from mlxkv.text.clean import clean


def width_of_terminal() -> int | None:
    """Cells of a line on the terminal; None where stdout is not one: a pipe gets whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def row(columns: Sequence[str], width: int | None) -> str:
    """The columns, two spaces between them; what does not fit `width` is cut from the end. Cleaned."""
    line = "  ".join(clean(" ".join(c.expandtabs(1).splitlines())) for c in columns).rstrip()
    return line if width is None else cut(line, width)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, with an ellipsis where something is missing."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
