"""Attachments of a prompt: files (`@src/main.rs`), their token counts, placeholders of long pastes. UI thread.

The text of a file follows the question under a heading with its path. It is part of the message: saved with it, shown
folded. Pure, except that files are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from urllib.parse import unquote

from mlxkv.stats import tokens_text
from mlxkv.system.regular_file import opened, reason
from mlxkv.text.encoding import decode
from mlxkv.text.fences import file_heading, file_section
from mlxkv.text.pdf import MAX_PDF, PdfError, is_pdf, pdf_text
from mlxkv.text.pictures import HEAD, not_read, picture_format

MAX_FILE = 1 << 20  # bytes; a million characters fill most windows
MAX_TOTAL = 4 << 20

FOLDED_LINES = 8  # a paste of that many lines or characters is shown as a placeholder
FOLDED_CHARACTERS = 1000

_WORD = re.compile(r"(?<!\S)@(?:\"((?:[^\"\\\n]|\\.)+)\"|([^\s\"]\S*))")
_TYPING = re.compile(r"(?:^|(?<=\s))@(\"(?:[^\"\\\n]|\\.)*|[^\s\"]*)$")
_DROPPED = re.compile(r"(?<!\S)(?:'(/[^'\n]+)'|\"(/[^\"\n]+)\"|(?:file://)?(/(?:\\.|[^\s\\])+))")
_FILE = re.compile(r"[^@]*/[^@]*|[^@]*[^@.]\.[A-Za-z]\w{0,4}")  # rather a file than somebody's name
_ESCAPED = re.compile(r"\\(.)")
_PASTE = re.compile(r"\[Pasted text #(\d+) (?:\+[\d,]+ lines|[\d,]+ characters)\]")
_SECTION = re.compile(r"\n\nFile `([^`\n]+)`:\n(`{3,})\n(.*?)\n\2(?=\n\nFile `|\n*\Z)", re.DOTALL)


class AttachError(Exception):
    """A file cannot be attached; the message is a sentence for the user. `sign` comes before it."""

    sign = "✗"


class StillReadingError(AttachError):
    """The text of a PDF is not there yet."""

    sign = "·"


@dataclass(frozen=True)
class Attachment:
    path: str
    text: str

    def size(self, tokens: int | None = None) -> str:
        """`212 lines · 2.9k tok`; `~2.9k`, estimated at four characters a token, while the count is unknown (None)."""
        lines = self.text.count("\n") + (not self.text.endswith("\n"))
        count, about = (len(self.text) // 4, "~") if tokens is None else (tokens, "")
        return f"{lines:,} line{'' if lines == 1 else 's'} · {about}{tokens_text(count)} tok"


def partial_mention(line: str) -> tuple[int, str] | None:
    """The unfinished `@path` at the end of `line` (the text before the cursor): column of its `@`, and the path."""
    match = _TYPING.search(line)
    if match is None:
        return None
    return match.start(), _ESCAPED.sub(r"\1", match[1][1:]) if match[1].startswith('"') else match[1]


def mention(path: str) -> str:
    """`@path`, quoted where the path has spaces or quotes."""
    if re.search(r"[\s\"]", path) is None:
        return f"@{path}"
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'@"{quoted}"'


def mentioned_files(text: str, base: Path, recalled: Mapping[str, Attachment] = {}) -> list[str]:
    """Paths mentioned in `text` that exist or are in `recalled`; any other word, such as `@someone`, stays a word."""
    found: list[str] = []
    for match in _WORD.finditer(text):
        name = next((name for name in _names(match) if name in recalled or exists(base, name)), None)
        if name and name not in found:
            found.append(name)
    return found


def missing_file(text: str, base: Path, recalled: Mapping[str, Attachment] = {}) -> str | None:
    """The first path mentioned in `text` that looks like a file's, and is neither there nor in `recalled`."""
    for match in _WORD.finditer(text):
        names = _names(match)
        if any(_FILE.fullmatch(name) for name in names) and not any(n in recalled or _is_there(base, n) for n in names):
            return names[-1]
    return None


def _is_there(base: Path, name: str) -> bool:
    try:
        return os.path.lexists(base / Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def _names(match: re.Match[str]) -> list[str]:
    """Possible paths of a mention: the whole word, or the word without punctuation at its end."""
    names = [_ESCAPED.sub(r"\1", match[1])] if match[1] else [match[2], match[2].rstrip(".,;:!?)]}'")]
    return [name for name in names if name]


def exists(base: Path, name: str) -> bool:
    return _is_there(base, name) and not (base / Path(name).expanduser()).is_dir()


def is_pdf_file(path: str, base: Path) -> bool:
    """Whether `path` is a PDF, which takes seconds to `read`."""
    try:
        with opened(base / Path(path).expanduser()) as file:
            return is_pdf(file.read(8))
    except (OSError, ValueError, RuntimeError):
        return False


def dropped_pictures(text: str) -> list[str]:
    """A sentence for each picture whose path is in `text`, as a terminal types it when a file is dropped there."""
    said = []
    for match in _DROPPED.finditer(text):
        path = match[1] or match[2] or _ESCAPED.sub(r"\1", unquote(match[3]) if "file://" in match[0] else match[3])
        try:
            with opened(Path(path)) as file:
                if kind := picture_format(file.read(HEAD)):
                    said.append(not_read(Path(path).name, kind))
        except (OSError, ValueError):
            continue
    return said


def read(path: str, base: Path) -> Attachment:
    """Read a file to attach; of a PDF its text.

    Raises:
        AttachError: if it is unreadable, no regular file, larger than `MAX_FILE` (a PDF: its text, or the file than
            `MAX_PDF`), a picture, or not UTF-8 text.
    """
    try:
        with opened(base / Path(path).expanduser()) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(HEAD)
            if kind := picture_format(data):
                raise AttachError(not_read(path, kind))
            limit = MAX_PDF if is_pdf(data) else MAX_FILE
            data += file.read(limit + 1 - len(data))
    except OSError as error:
        raise AttachError(f"{path} cannot be read: {reason(error)}.") from None
    if len(data) > limit:
        raise AttachError(
            f"{path} has {max(size, len(data)):,} bytes; at most {limit:,} can be attached. Send a part of it."
        )
    try:
        return Attachment(path, pdf_text(data, MAX_FILE) if is_pdf(data) else decode(data))
    except PdfError as error:
        raise AttachError(f"{path} {error}.") from None
    except ValueError:
        raise AttachError(f"{path} is not text in UTF-8, so a model cannot read it.") from None


def attach(
    text: str,
    base: Path,
    recalled: Mapping[str, Attachment] = {},
    read: Callable[[str, Path], Attachment] = read,
) -> str:
    """`text` followed by the files it mentions. For a deleted file the text sent before (`recalled`) is used.

    Raises:
        AttachError: see `read`; also if the files exceed `MAX_TOTAL` together.
    """
    files = [
        recalled[path] if path in recalled and not exists(base, path) else read(path, base)
        for path in mentioned_files(text, base, recalled)
    ]
    total = sum(len(file.text) for file in files)
    if total > MAX_TOTAL:
        raise AttachError(f"The files have {total:,} characters together; at most {MAX_TOTAL:,} can be attached.")
    return text + "".join(file_section(file.path, file.text) for file in files)


def recall(text: str) -> tuple[str, dict[str, Attachment]]:
    """The typed form of a sent text, and its attachments by path.

    If a section has no mention in the text, it was typed or pasted: then the text is returned unchanged.
    """
    question, files = split_attachments(text)
    names = {file_heading(name): name for match in _WORD.finditer(question) for name in _names(match)}
    if any(file.path not in names for file in files):
        return text, {}
    return question, {names[file.path]: file for file in files}


def split_attachments(text: str) -> tuple[str, list[Attachment]]:
    """Split a sent text into the question and its attachments."""
    match = _SECTION.search(text)
    if match is None:
        return text, []
    files = [Attachment(found[1], found[3]) for found in _SECTION.finditer(text, match.start())]
    return text[: match.start()], files


class TokenCounts:
    """Token counts of texts by the loaded model's tokenizer. Each text is requested once per model.

    `request` takes a key and the text to count; the engine's answer arrives by `set_count`.
    """

    def __init__(self, request: Callable[[str, str], object]) -> None:
        self._request = request
        self._counts: dict[str, int] = {}
        self._requested: set[str] = set()
        self._has_model = False

    def count(self, text: str) -> int | None:
        """Tokens of a file's text as sent, without trailing line feeds; None until the engine has counted."""
        text = text.rstrip("\n")
        key = blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
        if self._has_model and key not in self._requested:
            self._requested.add(key)
            self._request(key, text)
        return self._counts.get(key)

    def set_count(self, key: str, tokens: int) -> None:
        self._counts[key] = tokens

    def reset(self) -> None:
        """Drop all counts, because another model (and tokenizer) was loaded."""
        self._counts.clear()
        self._requested.clear()
        self._has_model = True


class Pastes:
    """Long pastes, each shown in the prompt as `[Pasted text #1 +40 lines]`. An edited placeholder is plain text."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """A new placeholder for `text`; a short text is returned unchanged."""
        lines = text.count("\n") + (not text.endswith("\n"))
        if lines < FOLDED_LINES and len(text) < FOLDED_CHARACTERS:
            return text
        size = f"+{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
        mark = f"[Pasted text #{len(self._texts) + 1} {size}]"
        self._texts[mark] = text
        return mark

    def expand(self, text: str) -> str:
        """`text` with every placeholder replaced by its paste; pastes themselves are not expanded."""
        return _PASTE.sub(lambda match: self._texts.get(match[0], match[0]), text)

    def clear(self) -> dict[str, str]:
        """Forget all pastes, once the prompt is sent; returns them for `restore`."""
        texts, self._texts = self._texts, {}
        return texts

    def restore(self, text: str, texts: Mapping[str, str]) -> str:
        """Restore the pastes of a cleared prompt; returns `text` with its placeholders renumbered."""
        return _PASTE.sub(lambda match: self.fold(texts[match[0]]) if match[0] in texts else match[0], text)
