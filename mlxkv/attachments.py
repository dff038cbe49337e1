"""Files and standard input as text to put before a question. Pure but for reading them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxkv.errors import PromptError, shortened
from mlxkv.regular_file import read_bytes, reason

MAX_BYTES = 32 << 20  # of one file or of stdin


def question_with(question: str | None, files: Sequence[Path], stdin: Any) -> str:
    """Files first, then the question, then what is piped in (`stdin` None: nothing is).

    Raises:
        PromptError: a file is no text, too large or cannot be read.
    """
    parts = [f"{path.name}:\n\n{read_text(path)}" for path in files]
    if question:
        parts.append(question)
    if stdin is not None and not stdin.isatty():
        piped = stdin.read(MAX_BYTES + 1)
        if len(piped) > MAX_BYTES:
            raise PromptError(f"Standard input is over {MAX_BYTES >> 20} MiB; give less of it.")
        if piped.strip():
            parts.append(piped.rstrip("\n"))
    return "\n\n".join(parts)


def text_or_file(value: str) -> str:
    """`value`, or for `@FILE` what is in the file. Raises PromptError."""
    return read_text(Path(value[1:])) if value.startswith("@") else value


def read_text(path: Path) -> str:
    """Raises PromptError: it is no file, over 32 MiB, not UTF-8, or cannot be read."""
    try:
        return read_bytes(path, MAX_BYTES, pipes=True).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text; convert it first.") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise PromptError(f"{path} is over {MAX_BYTES >> 20} MiB; give a part of it.") from error
        raise PromptError(f"{shortened(path)} cannot be read ({reason(error)}); check the name.") from error
