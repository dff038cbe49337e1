"""Files that a prompt attaches with `@`: their text when it is sent, a note on them while it is typed. Pure; UI thread.

`tui/state/prompt/attachments.py` reads and formats them. A file is read once per change, because each letter updates
the note; a PDF by a thread, because that takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

from mlxkv.stats import tokens_text
from mlxkv.tui.state.prompt import attachments
from mlxkv.tui.state.prompt.completion import is_command

_LONGEST = 4096  # characters of a prompt that are looked through for dropped files, with each letter


class AttachedFiles:
    """Relative paths start at `base`. `count` returns the tokens of a file's text, `window` the model's tokens;
    `when_read` is called, on another thread, when the text of a PDF is there."""

    def __init__(self) -> None:
        self.base = Path()
        self.count: Callable[[str], int | None] = lambda text: None
        self.window = 0  # 0 while unknown
        self._sent: Mapping[str, attachments.Attachment] = {}  # files of the prompt that was recalled last
        self.when_read: Callable[[], object] = lambda: None
        self._told = ""  # the prompt that was sent last: what would only be text is refused once
        self._read: dict[str, tuple[object, attachments.Attachment]] = {}  # by path, with the file's stamp
        self._pdfs: dict[tuple[str, object], attachments.Attachment | attachments.AttachError] = {}

    def recall(self, text: str) -> str:
        """The prompt as typed, from the text that was sent: files are names again, and their text stays available."""
        typed, files = attachments.recall(text)
        self._sent = files or self._sent
        return typed

    def expand(self, typed: str) -> str:
        """The text to send, with the text of its files.

        Raises:
            AttachError: if a file cannot be attached; and once for what would only be text: the path of a dropped
                picture, and a file that is not there.
        """
        if typed != self._told:
            self._told = typed
            if dropped := attachments.dropped_pictures(typed[:_LONGEST]):
                raise attachments.AttachError(f"{dropped[0]} Enter again sends its path.")
            if missing := attachments.missing_file(typed[:_LONGEST], self.base, self._sent):
                raise attachments.AttachError(f"There is no file {missing}. Enter again sends that as text.")
        return attachments.attach(typed, self.base, self._sent, self._fresh)

    def note(self, text: str) -> str:
        """A line on the files that `text` attaches: `@src/main.rs 212 lines · ~2.9k tok`; or on a dropped picture."""
        if is_command(text):
            return ""
        if dropped := attachments.dropped_pictures(text[:_LONGEST])[:1]:
            return f"✗ {dropped[0]}"
        if "@" not in text:
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
            except attachments.StillReadingError:
                notes.append(f"@{path} PDF · reading its text …")
            except attachments.AttachError as error:
                notes.append(f"✗ {error}")
        return "   ".join(notes)

    def _file(self, path: str) -> attachments.Attachment:
        if path in self._sent and not attachments.exists(self.base, path):
            return self._sent[path]
        stamp, known = self._stamp(path), self._read.get(path)
        if known is None or stamp is None or known[0] != stamp:
            known = self._read[path] = (stamp, self._read_file(path, stamp))
        return known[1]

    def _fresh(self, path: str, base: Path) -> attachments.Attachment:
        return self._read_file(path, self._stamp(path))

    def _stamp(self, path: str) -> object:
        with suppress(OSError, ValueError, RuntimeError):
            status = os.stat(self.base / Path(path).expanduser())
            return status.st_ino, status.st_mtime_ns, status.st_size
        return None

    def _read_file(self, path: str, stamp: object) -> attachments.Attachment:
        """Read a file; a PDF by a thread, whose text is found here the next time."""
        key = (path, stamp)
        if key not in self._pdfs:
            if not attachments.is_pdf_file(path, self.base):
                return attachments.read(path, self.base)
            self._pdfs[key] = attachments.StillReadingError(f"{path} is still being read; send again in a moment.")
            Thread(target=self._read_pdf, args=(key, self.base), daemon=True).start()
        found = self._pdfs[key]
        if isinstance(found, attachments.AttachError):
            raise found
        return found

    def _read_pdf(self, key: tuple[str, object], base: Path) -> None:
        try:
            self._pdfs[key] = attachments.read(key[0], base)
        except attachments.AttachError as error:
            self._pdfs[key] = error
        with suppress(RuntimeError):  # the window was closed meanwhile
            self.when_read()
