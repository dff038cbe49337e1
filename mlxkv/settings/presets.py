"""Presets: named settings of a chat, each a TOML file in the folder `presets` beside config.toml.

A preset may have any setting that a chat can have: system prompt, sampling, model, window. Names are no paths; the
files may be anyone's, so they are read with a size limit and checked. Any thread.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxkv.config import Folders, parse_toml, private_folder
from mlxkv.errors import ConfigError, quoted, shortened
from mlxkv.settings.schema import CHAT_SETTINGS, Settings, change, schema
from mlxkv.system.regular_file import read_text, reason, write_private

MAX_PRESET = 1 << 20  # bytes
WORDS = ("save", "rename", "delete")  # of /preset, so no names
_NAME = re.compile(r"[^\W_][\w-]{0,63}")
_RULE = "letters, digits, - and _, at most 64 of them"
_SHOWN_TEXT = 40  # characters of a text in a summary


@dataclass(frozen=True)
class Preset:
    """`values` by setting; None is the model's own."""

    name: str
    values: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """`temperature 0.2 · model tutor · system prompt “Be terse.”`"""
        named = [s for s in schema() if s.name in self.values]
        shown = [_shown(s, self.values[s.name]) for s in named if (s.name, self.values[s.name]) != ("adapter", "none")]
        return " · ".join(shown) or "nothing"


def _shown(setting: Any, value: Any) -> str:
    if setting.name != "system":
        return f"{setting.slash or setting.name} {setting.shown(value)}"
    line = " ".join(str(value or "").split())
    cut = line if len(line) <= _SHOWN_TEXT else f"{line[: _SHOWN_TEXT - 1]}…"
    return f"system prompt “{cut}”" if line else "no system prompt"


class PresetFolder:
    """The presets of one user."""

    def __init__(self, folders: Folders) -> None:
        self._config, self.path = folders.config, folders.config / "presets"

    def names(self) -> list[str]:
        """All names, sorted; none if the folder cannot be read."""
        try:
            found = [entry.removesuffix(".toml") for entry in os.listdir(self.path) if entry.endswith(".toml")]
        except OSError:
            return []
        return sorted((name for entry in found if is_name(name := unicodedata.normalize("NFC", entry))), key=str.lower)

    def load(self, name: str) -> Preset:
        """Raises ConfigError: there is no such preset, or its file is invalid; the message has file and line."""
        path = self.file(name)
        try:
            text = read_text(path, MAX_PRESET)
            table = parse_toml(text)
        except FileNotFoundError:
            names = ", ".join(self.names())
            there = f"there are {names}" if names else "`/preset save NAME` in a chat makes one"
            raise ConfigError(f"There is no preset {quoted(name)}; {there}.") from None
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"The preset {shortened(path)} is not valid TOML ({reason(error)}); correct it."
            ) from error
        if wrong := next((key for key in table if key not in CHAT_SETTINGS), None):
            known = ", ".join(s.name for s in schema() if s.is_for_chat)
            raise ConfigError(f"{_place(path, text, wrong)} is not a setting of a preset; those are {known}.")
        changed = change(Settings(), table, lambda key: _place(path, text, key))
        values = {key: getattr(changed, key) for key in table}
        if values.get("model") is not None:
            values.setdefault("adapter", "none")  # config.toml's belongs to another model
        return Preset(self._own_name(name), values)

    def save(self, name: str, values: Mapping[str, Any], *, replace: bool = False) -> Path:
        """Write a preset. One that is replaced keeps its comments.

        Raises:
            ConfigError: the name is invalid, there is such a preset and not `replace`, or it cannot be written.
        """
        import tomlkit

        path = self.file(name)
        private_folder(self._config)
        private_folder(self.path)
        try:
            document = tomlkit.document()
            if os.path.lexists(path):
                if not replace:
                    raise ConfigError(f"There is a preset {name} already; give another name, or replace it.")
                before = read_text(path, MAX_PRESET)
                try:
                    parse_toml(before)
                    document = tomlkit.parse(before)
                except ValueError:
                    pass  # it is replaced whole
            for key in [key for key in document if key not in values]:
                del document[key]
            for key, value in values.items():
                document[key] = "none" if value is None else _item(value)
            write_private(path, tomlkit.dumps(document))
        except OSError as error:
            raise ConfigError(f"The preset {path} cannot be written ({error.strerror}); check the disk.") from error
        return path

    def rename(self, old: str, new: str) -> None:
        """Raises ConfigError: there is no preset `old`, or there is a `new` one."""
        before, after = self.file(old), self.file(new)
        try:
            if os.path.lexists(after) and not (os.path.lexists(before) and before.samefile(after)):
                raise ConfigError(f"There is a preset {new} already; give another name, or delete it first.")
            os.rename(before, after)
        except FileNotFoundError:
            self.load(old)
            raise
        except OSError as error:
            raise ConfigError(f"The preset {old} cannot be renamed ({error.strerror}); check the folder.") from error

    def delete(self, name: str) -> None:
        """Raises ConfigError: there is no such preset."""
        try:
            os.unlink(self.file(name))
        except FileNotFoundError:
            self.load(name)
            raise
        except OSError as error:
            raise ConfigError(f"The preset {name} cannot be deleted ({error.strerror}); check the folder.") from error

    def file(self, name: str) -> Path:
        """The file of a preset. Raises ConfigError: the name is invalid."""
        if name in WORDS:
            raise ConfigError(f"A preset cannot be called {name}, which is a command of /preset; choose another name.")
        if not is_name(name):
            raise ConfigError(f"{quoted(name)} is not a name of a preset; it must be of {_RULE}.")
        return self.path / f"{unicodedata.normalize('NFC', name)}.toml"

    def _own_name(self, name: str) -> str:
        """The name as its file has it: some disks ignore case."""
        names = self.names()
        return name if name in names else next((own for own in names if own.lower() == name.lower()), name)


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name not in WORDS


def _place(path: Path, text: str, key: str) -> str:
    """Where a key of the file is, for a message."""
    pattern = re.compile(rf"\s*[\[\"']*{re.escape(key)}[\"'\]]*\s*(=|\.|$|\])")
    number = next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)
    return f"`{shortened(key)}` in {path}" + (f", line {number}," if number else "")


def _item(value: Any) -> Any:
    """A value for tomlkit; texts of several lines stay readable."""
    import tomlkit

    if not isinstance(value, str) or "\n" not in value:
        return value
    is_plain = value.replace("\n", "").isprintable() and not set(value) & {"\\", '"'}
    return tomlkit.string(value, multiline=True) if is_plain else value
