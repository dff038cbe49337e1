"""Files that the command line names, `-` being standard input: as text, or as a file to read. Pure but for reading."""

from __future__ import annotations

import errno
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mlxkv.errors import ConfigError, MlxkvError, PromptError, first_line, shortened
from mlxkv.stats import bytes_text
from mlxkv.system.regular_file import read_bytes, reason
from mlxkv.system.streams import read_input
from mlxkv.text.clean import clean
from mlxkv.text.encoding import TEXT, decode, marked_encoding, well_formed
from mlxkv.text.pdf import PdfError, is_pdf, pdf_text
from mlxkv.text.pictures import HEAD, not_read, picture_format

MAX_BYTES = 32 << 20  # of one file or of stdin
STDIN = STDOUT = Path("-")
_NOTHING = "The file - is standard input, and nothing comes from there; pipe a text in."
_WAITING = "mlxkv: reading standard input until it ends; -n or `< /dev/null` skips it."


def question_with(question: str | None, files: Sequence[Path], piped: str = "") -> str:
    """The prompt: files first, then the question, then piped text, unless that is the file `-`.

    Raises:
        PromptError: a file is not text, too large or cannot be read.
    """
    piped = piped.rstrip("\n") if piped.strip() else ""
    if STDIN in files and not piped:
        raise PromptError(_NOTHING)
    parts = [piped if path == STDIN else f"{well_formed(path.name)}:\n\n{read_text(path)}" for path in files]
    parts += [well_formed(question or ""), "" if STDIN in files else piped]
    return "\n\n".join(part for part in parts if part)


def piped_text(stdin: TextIO, report: bool) -> str:
    """Piped text; "" on a terminal. Bytes that are not text become U+FFFD, with a warning on stderr.

    Args:
        report: also report the size on stderr: in a shell's `while read` loop it would be the rest of the list.

    Raises:
        PromptError: it is binary, too large or cannot be read.
    """
    if stdin.isatty():
        return ""
    try:
        data = read_input(stdin.fileno(), MAX_BYTES, lambda: print(_WAITING, file=sys.stderr))
    except io.UnsupportedOperation:  # text in memory instead of a file
        data = stdin.read(MAX_BYTES + 1).encode("utf-8", "surrogateescape")
    if len(data) > MAX_BYTES:
        raise PromptError(f"Standard input is over {MAX_BYTES >> 20} MiB; give less.")
    encoding = getattr(stdin, "encoding", None) or "utf-8"
    try:
        try:
            text = decode(data, encoding)
        except UnicodeDecodeError:
            text = decode(data, encoding, "replace")
            print("mlxkv: standard input is not all text; invalid bytes became U+FFFD.", file=sys.stderr)
    except ValueError as error:
        raise PromptError(f"Standard input is not text ({error}); give {TEXT}.") from error
    if report and text.strip():
        print(f"standard input: {bytes_text(len(data))} read (-n skips it)", file=sys.stderr)
    return text


def piped_lines(stdin: TextIO, out: TextIO) -> Callable[[str], str]:
    """`input` for a pipe: returns each line when it arrives, and echoes it as a terminal would.

    The function raises EOFError at the end of input, and PromptError if it is not text or cannot be read.
    """
    lines = _lines(stdin)

    def read(prompt: str) -> str:
        out.write(prompt)
        out.flush()
        if (line := next(lines, None)) is None:
            raise EOFError
        out.write(f"{clean(line)}\n")
        return line

    return read


def _lines(stdin: TextIO) -> Iterator[str]:
    try:
        if isinstance(stdin, io.TextIOWrapper):
            encoding = marked_encoding(stdin.buffer.peek(4)[:4])  # type: ignore[attr-defined]  # it is buffered
            stdin.reconfigure(encoding=encoding or stdin.encoding, errors="surrogateescape")
        for line in iter(stdin.readline, ""):
            if "\0" in line:
                raise PromptError(f"Standard input is not text (it contains a NUL); give {TEXT}.")
            yield well_formed(line.rstrip("\r\n"))
    except (OSError, UnicodeError) as error:
        raise PromptError(f"Standard input cannot be read ({first_line(error)}); give text.") from error


def text_or_file(value: str) -> str:
    """`value`, or the content of FILE for `@FILE`, where `@-` is standard input. Raises PromptError."""
    return read_text(Path(value[1:])) if value.startswith("@") else well_formed(value)


def schema_file(path: Path) -> dict[str, Any]:
    """The JSON schema in a file. Raises PromptError: see `read_text`. ConfigError: it is no JSON object."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shortened(path)} is not JSON ({first_line(error)}); give a JSON schema.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{shortened(path)} is no JSON schema; it must contain an object.")
    return found


def input_bytes(stdin: TextIO) -> BinaryIO:
    """Standard input as bytes, also where it is text in memory."""
    return getattr(stdin, "buffer", None) or io.BufferedReader(io.BytesIO(stdin.read().encode()))  # type: ignore[arg-type]


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """The file of an argument: `path`, or for `-` a temporary file with all of standard input, which errors call so.

    Raises:
        PromptError: nothing comes from standard input, or it cannot be copied.
    """
    if path != STDIN:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlxkv-") as folder:
        copy = Path(folder, "standard input")
        try:
            with copy.open("xb") as file:
                if not sys.stdin.isatty():
                    shutil.copyfileobj(input_bytes(sys.stdin), file)
                size = file.tell()
        except OSError as error:
            raise PromptError(f"Standard input cannot be copied to {folder} ({reason(error)}); give a file.") from error
        if not size:
            raise PromptError(_NOTHING)
        try:
            yield copy
        except MlxkvError as error:
            text = str(error).replace(str(copy), copy.name)
            error.args = (f"{text[:1].upper()}{text[1:]}",)
            raise


def read_text(path: Path) -> str:
    """Text of a file, of a PDF, or for `-` of standard input. Raises PromptError: it is not a file, larger than 32 MiB,
    a picture, not text, or cannot be read; or nothing comes from standard input."""
    if path == STDIN:
        if not (text := piped_text(sys.stdin, report=False)):
            raise PromptError(_NOTHING)
        return text
    try:
        data = read_bytes(path, MAX_BYTES, pipes=True)
        if kind := picture_format(data[:HEAD]):
            raise PromptError(not_read(shortened(path), kind))
        return pdf_text(data, MAX_BYTES) if is_pdf(data) else decode(data)
    except PromptError:  # it is a ValueError, too
        raise
    except PdfError as error:
        raise PromptError(f"{shortened(path)} {error}.") from error
    except ValueError as error:
        raise PromptError(f"{path} is not UTF-8 text; convert it first (or UTF-16 with a byte order mark).") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise PromptError(f"{path} is over {MAX_BYTES >> 20} MiB; give a part of it.") from error
        raise PromptError(f"{shortened(path)} cannot be read ({reason(error)}); check the name.") from error
