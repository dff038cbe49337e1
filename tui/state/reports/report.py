"""The output of a command: rows under a title, which the window shows in its pane and line mode prints. Pure.

`reports.py` and `help.py` say what is in them, `tui/widgets/pane.py` shows them. One sentence is a notice instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.text.clean import clean
from mlxkv.tui.state.commands.slash import BY_NAME
from mlxkv.tui.state.transcript.blocks import Block, ContextRow, Kind

HEADING = "heading"  # `info` of a block; of others it is the name before the text, or ""
_GAP = 2  # cells between names and texts


@dataclass(frozen=True)
class Line:
    """`right` has the name `left`, which may be "". Without `right`, `left` is a heading."""

    left: str
    right: str = ""

    @property
    def text(self) -> str:
        return f"{self.left} {self.right}".strip()


@dataclass(frozen=True)
class Report:
    """What `/command` answers. `is_of_chat`: it says nothing of any other chat."""

    command: str
    rows: tuple[Line | ContextRow, ...]
    is_of_chat: bool = False

    @property
    def title(self) -> str:
        return f"/{self.command} · {BY_NAME[self.command].help}"

    def blocks(self) -> list[Block]:
        """Blocks for the pane, with the names in one column."""
        named = (len(row.left) for row in self.rows if isinstance(row, Line) and row.right)
        column = max(named, default=0) + _GAP
        return [_block(row, column, is_first=i == 0) for i, row in enumerate(self.rows)]


def _block(row: Line | ContextRow, column: int, is_first: bool) -> Block:
    if isinstance(row, ContextRow):
        number = f"{row.number} " if row.number else ""
        source = f"{number}{row.name} {clean(row.text, joined=True)} {row.live:,} of {row.tokens:,} tok\n"
        return Block(Kind.OUTPUT, row.text, tight=True, context=row, source=source)
    name, text = clean(row.left), clean(row.right, joined=True)
    if not text:
        return Block(Kind.OUTPUT, name, HEADING, tight=is_first, source=f"{name}\n" if is_first else f"\n{name}\n")
    label = name.ljust(column) if name else ""
    return Block(Kind.OUTPUT, text, label, tight=True, source=f"{label}{text}\n")
