"""Files that a prompt attaches with `@`: their text when it is sent, a note on them while it is typed. Pure; UI thread.

`tui/state/attachments.py` reads and formats them. A file is read once per change, because each letter updates the note.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mlxkv.stats import tokens_text
from mlxkv.tui.state import attachments
from mlxkv.tui.state.completion import is_command


class AttachedFiles:
    """Relative paths start at `base`. `count` returns the tokens of a file's text, `window` the model's tokens."""

    def __init__(self) -> None:
        self.base = Path()
        self.count: Callable[[str], int | None] = lambda text: None
        self.window = 0  # 0 while unknown
        self._sent: Mapping[str, attachments.Attachment] = {}  # files of the prompt that was recalled last
        self._read: dict[str, tuple[object, attachments.Attachment]] = {}  # by path, with the file's stamp

    def recall(self, text: str) -> str:
        """The prompt as typed, from the text that was sent: files are names again, and their text stays available."""
        typed, files = attachments.recall(text)
        self._sent = files or self._sent
        return typed

    def expand(self, typed: str) -> str:
        """The text to send, with the text of its files.

        Raises:
            AttachError: if a file cannot be attached.
        """
        return attachments.attach(typed, self.base, self._sent)

    def note(self, text: str) -> str:
        """A line on the files that `text` attaches: `@src/main.rs 212 lines · ~2.9k tok`."""
        if "@" not in text or is_command(text):
            return ""
        notes = []
        for path in attachments.mentioned_files(text, self.base, self._sent)[:4]:
            try:
                file = self._file(path)
                tokens = self.count(file.text)
                is_long = tokens is not None and 0 < self.window < tokens
                more = f" · ▲ the window holds {tokens_text(self.window)}" if is_long else ""
                gone = "" if attachments.exists(self.base, path) else " · deleted, as sent before"
                notes.append(f"@{path} {file.size(tokens)}{gone}{more}")
            except attachments.AttachError as error:
                notes.append(f"✗ {error}")
        return "   ".join(notes)

    def _file(self, path: str) -> attachments.Attachment:
        if path in self._sent and not attachments.exists(self.base, path):
            return self._sent[path]
        stamp: object = None
        with suppress(OSError, ValueError, RuntimeError):
            status = os.stat(self.base / Path(path).expanduser())
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._read.get(path)
        if known is None or stamp is None or known[0] != stamp:
            known = self._read[path] = (stamp, attachments.read(path, self.base))
        return known[1]
