"""Prompt history across runs: one JSON line per prompt in the state folder (mode 0600). UI thread.

Nothing is written until `save` is called: a chat that is not saved must leave no prompts on disk.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from mlxkv.config import private_folder
from mlxkv.errors import ConfigError
from mlxkv.system.regular_file import check_regular, parse_json, read_bytes, write_private

MOST_BYTES = 256 << 20  # of the file
KEEP = 1000  # entries; the file is rewritten at twice that


class History:
    """A list of prompts and a cursor in it. `_draft` is the unfinished prompt below the last one."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "prompts.jsonl" if folder else None
        self.entries = self._read()
        self._unsaved: list[str] = []
        self._at = len(self.entries)
        self._draft = ""

    def add(self, text: str) -> None:
        """Append `text`, unless it equals the last entry."""
        if text.strip() and self.entries[-1:] != [text]:
            self.entries.append(text)
            self._unsaved.append(text)
        self._at, self._draft = len(self.entries), ""

    def older(self, current: str) -> str | None:
        """The previous entry, None at the beginning."""
        if self._at == len(self.entries):
            self._draft = current
        if self._at == 0:
            return None
        self._at -= 1
        return self.entries[self._at]

    def newer(self) -> str | None:
        """The next entry, the draft after the last one, then None."""
        if self._at >= len(self.entries):
            return None
        self._at += 1
        return self._draft if self._at == len(self.entries) else self.entries[self._at]

    def save(self) -> None:
        """Append new entries to the file. Errors are ignored: only the history is lost."""
        if not self._unsaved or self._path is None:
            return
        lines = [json.dumps({"text": text}) + "\n" for text in self._unsaved]
        self._unsaved = []
        try:
            private_folder(self._path.parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(self._path, flags, 0o600), "w", encoding="utf-8") as file:
                check_regular(file.fileno())
                os.fchmod(file.fileno(), 0o600)
                file.writelines(lines)
        except (OSError, ConfigError):
            self._path = None

    def _read(self) -> list[str]:
        if self._path is None:
            return []
        try:
            lines = read_bytes(self._path, MOST_BYTES, follow=False).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError:  # never append to a file that cannot be read
            self._path = None
            return []
        entries = [text for line in lines if (text := _entry(line))]
        if len(entries) > 2 * KEEP:
            with suppress(OSError):
                write_private(self._path, "".join(json.dumps({"text": text}) + "\n" for text in entries[-KEEP:]))
        return entries[-KEEP:]


def _entry(line: str) -> str:
    """The prompt in a line of the file; "" if the line is corrupt."""
    try:
        value = parse_json(line)
    except ValueError:
        return ""
    text = value.get("text") if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""
