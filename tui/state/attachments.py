"""Files in a prompt: `@src/main.rs` sends the file along. Pure but for reading; UI thread.

The contents follow the question under a heading with the path, so they are part of what was said: saved with it, shown
folded, and sent again only when the question is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxkv.stats import tokens_text
from mlxkv.system.regular_file import opened, reason
from mlxkv.text.encoding import decode

MAX_FILE = 1 << 20  # bytes; a million characters fill most windows
MAX_TOTAL = 4 << 20

_WORD = re.compile(r"(?<!\S)@(?:\"((?:[^\"\\\n]|\\.)+)\"|([^\s\"]\S*))")
_TYPING = re.compile(r"(?:^|(?<=\s))@(\"(?:[^\"\\\n]|\\.)*|[^\s\"]*)$")
_ESCAPED = re.compile(r"\\(.)")
_SECTION = re.compile(r"\n\nFile `([^`\n]+)`:\n(`{3,})\n(.*?)\n\2(?=\n\nFile `|\n*\Z)", re.DOTALL)


class AttachError(Exception):
    """One sentence for the user."""


@dataclass(frozen=True)
class Attached:
    path: str
    text: str

    def size(self, tokens: int | None = None) -> str:
        """`212 lines · 2.9k tok`; `~2.9k` where nobody has counted: a token is about four characters."""
        lines = self.text.count("\n") + (not self.text.endswith("\n"))
        count, about = (len(self.text) // 4, "~") if tokens is None else (tokens, "")
        return f"{lines:,} line{'' if lines == 1 else 's'} · {about}{tokens_text(count)} tok"


def typing(line: str) -> tuple[int, str] | None:
    """If `line`, up to the cursor, ends in a file that is being named: where its `@` is, and the name so far."""
    match = _TYPING.search(line)
    if match is None:
        return None
    return match.start(), _ESCAPED.sub(r"\1", match[1][1:]) if match[1].startswith('"') else match[1]


def named(path: str) -> str:
    """How a prompt names `path`."""
    if re.search(r"[\s\"]", path) is None:
        return f"@{path}"
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'@"{quoted}"'


def files_in(text: str, base: Path, recalled: Mapping[str, Attached] = {}) -> list[str]:
    """The files that `text` names and that are there, or `recalled`; a word like `@someone` is only a word."""
    found: list[str] = []
    for match in _WORD.finditer(text):
        name = next((name for name in _names(match) if name in recalled or is_there(base, name)), None)
        if name and name not in found:
            found.append(name)
    return found


def _names(match: re.Match[str]) -> list[str]:
    """What a word may name: all of it, or all but the punctuation at its end."""
    names = [_ESCAPED.sub(r"\1", match[1])] if match[1] else [match[2], match[2].rstrip(".,;:!?)]}'")]
    return [name for name in names if name]


def is_there(base: Path, name: str) -> bool:
    try:
        return not (base / Path(name).expanduser()).is_dir() and os.path.lexists(base / Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def read(path: str, base: Path) -> Attached:
    """The text of a file.

    Raises:
        AttachError: if it cannot be read, is no regular file, is too large, or is not text in UTF-8.
    """
    try:
        with opened(base / Path(path).expanduser()) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise AttachError(f"{path} cannot be read: {reason(error)}.") from None
    if len(data) > MAX_FILE:
        raise AttachError(
            f"{path} has {max(size, len(data)):,} bytes; at most {MAX_FILE:,} can be attached. Send a part of it."
        )
    try:
        return Attached(path, decode(data))
    except ValueError:
        raise AttachError(f"{path} is not text in UTF-8, so a model cannot read it.") from None


def attach(text: str, base: Path, recalled: Mapping[str, Attached] = {}) -> str:
    """`text` followed by the files it names; one that is gone as it was when it was sent before (`recalled`).

    Raises:
        AttachError: as `read`, or if they are too large together.
    """
    files = [
        recalled[path] if path in recalled and not is_there(base, path) else read(path, base)
        for path in files_in(text, base, recalled)
    ]
    total = sum(len(file.text) for file in files)
    if total > MAX_TOTAL:
        raise AttachError(f"The files have {total:,} characters together; at most {MAX_TOTAL:,} can be attached.")
    return text + "".join(_section(file) for file in files)


def _section(file: Attached) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", file.text)), default=2)
    fence = "`" * (longest + 1)
    return f"\n\nFile `{_heading(file.path)}`:\n{fence}\n{file.text.rstrip(chr(10))}\n{fence}"


def _heading(path: str) -> str:
    return path.replace("`", "'").replace("\n", " ")


def recall(text: str) -> tuple[str, dict[str, Attached]]:
    """A sent text as it was typed, and the files that came with it by the names it has for them.

    Sections that no name in it accounts for were typed or pasted, and stay.
    """
    question, files = parts(text)
    names = {_heading(name): name for match in _WORD.finditer(question) for name in _names(match)}
    if any(file.path not in names for file in files):
        return text, {}
    return question, {names[file.path]: file for file in files}


def parts(text: str) -> tuple[str, list[Attached]]:
    """A sent text as the question and the files that came with it."""
    match = _SECTION.search(text)
    if match is None:
        return text, []
    files = [Attached(found[1], found[3]) for found in _SECTION.finditer(text, match.start())]
    return text[: match.start()], files
