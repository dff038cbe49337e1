"""Finds the chat template of a model folder, in the places where transformers looks.

Reads small files. Any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxkv.errors import ModelFileError
from mlxkv.models.files.architecture import MAX_JSON, read_json
from mlxkv.system.regular_file import read_text, reason

_SPECIAL = ("rag", "tool_use")  # for other kinds of prompts: used only if there is nothing else


@dataclass(frozen=True)
class FoundTemplate:
    """A chat template: its file (`source`), its `name` there, and the names of unused `others`."""

    text: str
    source: str
    name: str = "default"
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = "" if self.name == "default" else f", named {self.name!r}"
        return self.source + named + (f" (not taken: {', '.join(self.others)})" if self.others else "")


def find_template(folder: Path) -> FoundTemplate | None:
    """The template for a chat, from the first file in transformers' order that has one, or None.

    The tokenizer's files come first: chat_template.jinja and additional_chat_templates/, then tokenizer_config.json;
    then the processor's: chat_template.json, processor_config.json. Of several templates "default" is used; without it
    another one, "rag" and "tool_use" last.

    Raises:
        ModelFileError: a file cannot be read.
    """
    found: dict[str, FoundTemplate] = {}
    for source, given in _places(folder):
        for name, text in _named(given).items():
            found.setdefault(name, FoundTemplate(text, source, name))
        if "default" in found:
            break
    if not found:
        return None
    taken = min(found, key=lambda name: (name != "default", name in _SPECIAL, name))
    others = tuple(sorted({*found} - {taken}))
    return FoundTemplate(found[taken].text, found[taken].source, taken, others)


def _places(folder: Path) -> list[tuple[str, Any]]:
    places: list[tuple[str, Any]] = [("chat_template.jinja", _read(folder / "chat_template.jinja"))]
    for file in sorted(folder.glob("additional_chat_templates/*.jinja")):
        places.append((f"{file.parent.name}/{file.name}", {file.stem: _read(file)}))
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        places.append((name, (read_json(folder / name) or {}).get("chat_template")))
    return places


def _named(given: Any) -> dict[str, str]:
    """The templates of one file by name; invalid and blank ones are skipped."""
    if isinstance(given, str):
        given = {"default": given}
    if isinstance(given, list):
        given = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, Mapping)}
    if not isinstance(given, Mapping):
        return {}
    return {name: text for name, text in given.items() if isinstance(name, str) and is_template(text)}


def is_template(value: Any) -> bool:
    """Whether `value` is a template; a blank one would render every chat as nothing."""
    return isinstance(value, str) and bool(value.strip())


def _read(file: Path) -> str | None:
    try:
        return read_text(file, MAX_JSON)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{file} cannot be read ({reason(error)}); download the model again.") from error
