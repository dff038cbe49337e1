"""Changing one line of config.toml: comments, order and everything else stay as the user wrote them. Any thread."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from mlxkv.config import Folders, parse_toml, private_folder, read_config_file
from mlxkv.errors import ConfigError
from mlxkv.system.regular_file import reason, write_private

_TABLE = re.compile(r"\s*\[")


def save_setting(folders: Folders, name: str, value: Any) -> Path:
    """Write `name = value` into config.toml; "none" for None. The file appears whole or not at all.

    Raises:
        ConfigError: the file is not TOML as it stands, or cannot be written.
    """
    path = folders.config / "config.toml"
    private_folder(folders.config)
    try:
        write_private(path, with_setting(read_config_file(path), name, value))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as TOML ({reason(error)}); mend or remove it.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); the setting holds until you leave.") from error
    return path


def with_setting(text: str, name: str, value: Any) -> str:
    """`text` with the top-level key `name` set.

    Raises:
        ValueError: `text` is not TOML.
    """
    parse_toml(text)
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    statement = f"{name} = {_toml(value)}"
    top = next((i for i in _statements(lines) if _TABLE.match(lines[i])), len(lines))
    for start, stop in _extents(lines, top):
        if _key(lines[start]) == name:
            comment = _comment("".join(lines[start:stop]))
            lines[start:stop] = [statement + (f"  {comment}" if comment else "") + end]
            break
    else:
        if top and not lines[top - 1].endswith(("\n", "\r")):
            lines[top - 1] += end
        at = top
        while at and not lines[at - 1].strip() and top < len(lines):
            at -= 1  # before the blank lines above the first table
        lines.insert(at, statement + end)
    new = "".join(lines)
    tomllib.loads(new)
    return new


def _extents(lines: list[str], top: int) -> list[tuple[int, int]]:
    starts = [i for i in _statements(lines) if i < top]
    return [(i, _end(lines, i)) for i in starts]


def _statements(lines: list[str]) -> list[int]:
    """The lines on which a key or a table begins."""
    out, i = [], 0
    while i < len(lines):
        if lines[i].strip() and not lines[i].lstrip().startswith("#"):
            out.append(i)
            i = _end(lines, i)
        else:
            i += 1
    return out


def _end(lines: list[str], start: int) -> int:
    """One past the last line of the statement: text and lists may take several."""
    for stop in range(start + 1, len(lines) + 1):
        try:
            tomllib.loads("".join(lines[start:stop]))
        except tomllib.TOMLDecodeError:
            continue
        return stop
    return start + 1


def _key(line: str) -> str:
    return line.split("=", 1)[0].strip().strip("\"'")


def _comment(statement: str) -> str:
    """What follows the value on its line: the first `#` before which there is a whole statement."""
    for match in re.finditer("#", statement):
        try:
            tomllib.loads(statement[: match.start()])
        except tomllib.TOMLDecodeError:
            continue
        return statement[match.start() :].strip()
    return ""


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    # TOML's basic strings are JSON's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
