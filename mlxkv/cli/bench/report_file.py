"""The file of a benchmark report: JSON that several runs add to.

Owns its format and which rows stay; `report.py` has the values.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from mlxkv.cli.bench.report import Part
from mlxkv.errors import ConfigError, StoreError, shortened
from mlxkv.store.files import Files
from mlxkv.system.regular_file import check_regular, read_json, reason

SCHEMA = 1
_MAX_BYTES = 16 << 20


def read_report(path: Path) -> list[Part]:
    """The parts of a file that `write_report` made.

    Raises:
        ConfigError: it is no such file. StoreError: it cannot be read.
    """
    try:
        table = read_json(path, _MAX_BYTES)
        schema = table["schema"]
        parts = [Part.from_json(part) for part in table["parts"]] if schema == SCHEMA else []
    except OSError as error:
        raise StoreError(f"{shortened(path)} cannot be read ({reason(error)}); check the name.") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{shortened(path)} is not a benchmark report; name another file.") from None
    if schema != SCHEMA:
        raise ConfigError(
            f"{shortened(path)} is a report of schema {schema!r}, and this mlxkv reads {SCHEMA}; name another file."
        )
    return parts


def check_report_file(path: Path) -> None:
    """Check that `write_report` can write `path`, so that no measurement is lost; nothing is left behind.

    Raises:
        ConfigError: a file is there that is no report. StoreError: there is no such folder, or it cannot be written.
    """
    if not os.path.isdir(path.parent):
        raise StoreError(f"The folder {shortened(path.parent)} does not exist; make it first.")
    try:
        if check_regular(path):
            read_report(path)
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass  # the report will be written under another name there
    except OSError as error:
        raise StoreError(
            f"{shortened(path)} cannot be written ({reason(error)}); check the path and the disk."
        ) from error


def write_report(path: Path, parts: Sequence[Part], *, keep_rows: bool = False) -> None:
    """Add parts to a file, in place of those of the same name; the file is made or replaced as a whole.

    Args:
        keep_rows: whether a part that was measured alike keeps its rows that the new one lacks.

    Raises:
        ConfigError: a file is there that is no report. StoreError: it cannot be read or written.
    """
    found = {part.name: part for part in (read_report(path) if os.path.exists(path) else [])}
    for part in parts:
        old = found.get(part.name)
        found[part.name] = _joined(old, part) if keep_rows and old and _are_alike(old, part) else part
    text = json.dumps({"schema": SCHEMA, "parts": [asdict(part) for part in found.values()]}, indent=1) + "\n"
    Files().overwrite(path, [text.encode()])


def _are_alike(old: Part, new: Part) -> bool:
    """Whether the rows of both can stand in one table."""
    a, b = (
        (part.model, part.settings, part.columns, part.environment.machine, part.environment.versions)
        for part in (old, new)
    )
    return a == b


def _joined(old: Part, new: Part) -> Part:
    """`new` with the rows of `old` that it lacks; the commands of both, and the seconds of both together."""
    rows = {row.what: row for row in (*old.rows, *new.rows)}
    commands = dict.fromkeys([*old.environment.command.split("; "), new.environment.command])
    return replace(
        new,
        rows=[*rows.values()],
        environment=replace(new.environment, command="; ".join(commands)),
        seconds=old.seconds + new.seconds,
        notes=[*dict.fromkeys([*old.notes, *new.notes])],
    )
