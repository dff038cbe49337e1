"""A chat of another program: a tree of messages, as the readers of its format make it. Pure; any thread.

`values` read foreign JSON leniently: a value of the wrong type counts as missing. What a tree must not be is checked
in `branches.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlxkv.events import ToolCall
from mlxkv.store.records import as_time
from mlxkv.text.encoding import well_formed
from mlxkv.text.fences import fenced

MAX_NAME = 200  # characters of an id, a file's or a model's name
_MAX_FILES = 256  # files of one message that are named
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{1,32}")


@dataclass(frozen=True)
class ForeignFile:
    """A file sent with a message. `text` is its content, None if the export lacks it or it is no text."""

    name: str
    kind: str = "file"  # "image", "recording", "video" or "file"
    text: str | None = None


@dataclass(frozen=True)
class ForeignMessage:
    """A part of a message: parts of one role that follow each other become one message, but each result is one.

    Attributes:
        role: "user", "assistant", or "tool" with the result of a call.
        is_complete: False for a reply that was stopped.
        call: of the role "assistant": the part is a tool call.
        source, language: of a call: its arguments as they were shown, and in which language.
        call_id, name: of a result: the call's id, "" if unknown, and the tool's name.
    """

    role: str
    text: str = ""
    thinking: str = ""
    files: tuple[ForeignFile, ...] = ()
    is_complete: bool = True
    call: ToolCall | None = None
    source: str = ""
    language: str = "json"
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class ForeignNode:
    """A place in the tree, with what is shown there. `time`: UNIX seconds, 0 if unknown."""

    id: str
    parent: str | None
    parts: Sequence[ForeignMessage]
    time: float = 0.0


@dataclass(frozen=True)
class ForeignChat:
    """A chat. Nodes come in the order in which they were written; `current`: the last one the user saw."""

    program: str
    id: str
    title: str
    created: float
    updated: float
    model: str
    system: str
    nodes: Sequence[ForeignNode]
    current: str | None = None
    unknown: int = 0  # parts of kinds that this mlxkv does not know


# -- values of foreign JSON ------------------------------------------------------------------------------------------


def text_of(value: object) -> str:
    return well_formed(value) if isinstance(value, str) else ""


def name_of(value: object) -> str:
    """A name in one line, of at most `MAX_NAME` characters."""
    return " ".join(text_of(value).split())[:MAX_NAME]


def table_of(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def tables_of(value: object) -> list[dict[str, Any]]:
    return [item for item in list_of(value) if isinstance(item, dict)]


def time_of(value: object, unit: float = 1.0) -> float:
    """UNIX seconds, from a number of `unit` seconds or ISO 8601; 0 if it is neither."""
    if isinstance(value, str):
        try:
            return as_time(datetime.fromisoformat(value).timestamp())
        except (ValueError, OverflowError, OSError):
            return 0.0
    return as_time(value * unit) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def files_of(tables: Sequence[Mapping[str, Any]], *keys: str, kind: str = "file") -> list[ForeignFile]:
    """The files that `tables` name under the first of `keys` that they have."""
    names = (next(filter(None, (name_of(table.get(key)) for key in keys)), "") for table in tables[:_MAX_FILES])
    return [ForeignFile(name or f"unnamed {kind}", kind) for name in names]


def called(name: object, arguments: str, language: str = "json") -> str:
    """A tool call as text of a reply."""
    label = language if _LANGUAGE.fullmatch(language) else ""
    return f"Called {_tool(name)}:\n{fenced(arguments, label)}"


def returned(name: object, result: str) -> str:
    """A tool's result as text of a reply."""
    return f"{_tool(name)} returned:\n{fenced(result)}"


def _tool(name: object) -> str:
    return f"`{name}`" if (name := name_of(name).replace("`", "'")) else "The tool"
