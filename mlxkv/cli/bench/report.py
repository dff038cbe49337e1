"""What a benchmark found, as values: rows of figures with their goals, shown as Markdown.

Each part carries the machine, the versions and the command it was measured with, so that one file (`report_file.py`)
may hold parts of several runs. Measures nothing.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from mlxkv.cli.versions import version
from mlxkv.stats import bytes_text

PACKAGES = ("mlxkv", "mlx", "mlx-lm")
_ARGUMENT = re.compile(r"(--[\w-]+=|-\w(?=[/~.]))?(.*)", re.DOTALL)  # an option with its value, or either alone

Value = float | int | str | None


class Unit(StrEnum):
    """How a column's numbers are written."""

    TEXT = ""
    NUMBER = "number"
    COUNT = "count"
    RATIO = "ratio"
    TOKENS_PER_SECOND = "tok/s"
    SECONDS = "s"
    BYTES = "bytes"
    SHARE = "share"  # of 1, shown in per cent
    PERPLEXITY = "perplexity"

    def text(self, value: Value) -> str:
        """`value` as a table shows it; an en dash for None."""
        if value is None:
            return "–"
        if isinstance(value, str):
            return value
        match self:
            case Unit.COUNT:
                return f"{value:,.0f}"
            case Unit.BYTES:
                return bytes_text(int(value))
            case Unit.SHARE:
                return f"{value:.1%}"
            case Unit.RATIO:
                return f"{value:.3f}" if value < 10 else f"{value:.1f}"
            case _:
                return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class Goal:
    """What the value of one column has to be: `at_least`, `at_most`, or both."""

    column: str
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: Value) -> bool:
        """Whether a measured value reaches it. A value that is missing does not."""
        if not isinstance(value, int | float):
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        limits = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        limits += [f"≤ {self.at_most:g}"] if self.at_most is not None else []
        return " and ".join(limits)


@dataclass(frozen=True)
class Row:
    """One line of a part: what was measured, and a value for each column."""

    what: str
    values: Mapping[str, Value]
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is no goal."""
        return None if self.goal is None else self.goal.is_met(self.values.get(self.goal.column))


@dataclass(frozen=True)
class Environment:
    """Where and how a part was measured."""

    machine: str
    versions: str
    command: str
    date: str  # day of the measurement, UTC

    @classmethod
    def here(cls, command: str) -> Environment:
        """This machine, now."""
        import mlx.core as mx

        name = mx.device_info().get("device_name", "")
        machine = f"{platform.system()} {platform.machine()} {name}, {os.cpu_count()} cores; {mx.default_device()}"
        packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        versions = f"{packages}, Python {platform.python_version()}"
        return cls(machine, versions, command, datetime.now(UTC).date().isoformat())

    def lines(self) -> tuple[str, ...]:
        return (f"machine   {self.machine}", f"versions  {self.versions}", f"command   {self.command}")


@dataclass(frozen=True)
class Part:
    """One table. `name` identifies it in a file; `columns` are titles with the units of their numbers."""

    name: str
    title: str
    model: str
    settings: str
    columns: Mapping[str, Unit]
    rows: Sequence[Row]
    environment: Environment
    seconds: float = 0.0  # that measuring it took
    notes: Sequence[str] = field(default=())

    @property
    def missed(self) -> tuple[Row, ...]:
        """The rows whose goal was not reached."""
        return tuple(row for row in self.rows if row.met is False)

    def row(self, what: str) -> Row:
        """The row of this name.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.what == what:
                return row
        raise KeyError(what)

    def markdown(self) -> str:
        """A heading, model and settings, and the table; a missed goal is printed as missed."""
        has_goals = any(row.goal for row in self.rows)
        heads = ["", *self.columns, *(["goal", ""] if has_goals else [])]
        lines = [f"### {self.title}", "", f"{self.model}; {self.settings}" if self.settings else self.model, ""]
        lines += [_line(heads), "|" + "---|" * len(heads)]
        for row in self.rows:
            cells = [row.what, *(unit.text(row.values.get(title)) for title, unit in self.columns.items())]
            if has_goals:
                cells += ["", ""] if row.goal is None else [str(row.goal), "met" if row.met else "**missed**"]
            lines.append(_line(cells))
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Part:
        rows = [Row(r["what"], r["values"], Goal(**r["goal"]) if r["goal"] else None) for r in table["rows"]]
        columns = {title: Unit(unit) for title, unit in table["columns"].items()}
        return cls(**{**table, "rows": rows, "columns": columns, "environment": Environment(**table["environment"])})


def command_line() -> str:
    """The command of this process; of a path the last part, since a report may be published."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else "mlxkv"
    program = "mlxkv" if name.split(".")[0] == "mlxkv" else f"python -m {name}"
    return " ".join([program, *map(_without_folders, sys.argv[1:])])


def _without_folders(argument: str) -> str:
    """A path's last part, also behind an option; a repository's id stays."""
    match = _ARGUMENT.fullmatch(argument)
    option, value = match.groups("") if match else ("", argument)
    if value.startswith((os.sep, "./", "../", "~")) or value in (".", "..") or os.path.exists(value):
        value = os.path.basename(os.path.abspath(os.path.expanduser(value)))
    return option + value


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
