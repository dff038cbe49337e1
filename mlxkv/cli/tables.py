"""Rows of a table on the terminal: columns that fit its width, whatever the text."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from mlxkv.text.clean import clean


def width_of_terminal() -> int | None:
    """Cells of a line on the terminal; None if stdout is a pipe or file, which gets whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def row(columns: Sequence[str], width: int | None) -> str:
    """The cleaned columns, separated by two spaces and cut to `width`."""
    line = "  ".join(clean(" ".join(c.expandtabs(1).splitlines())) for c in columns).rstrip()
    return line if width is None else cut(line, width)


def print_header(columns: Sequence[str], width: int | None) -> None:
    """Name the columns, on a terminal: what reads a pipe gets the rows alone."""
    if width is not None:
        print(row(columns, width))


def date_text(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def cut(text: str, width: int) -> str:
    """`text` cut to `width` cells, with an ellipsis."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
