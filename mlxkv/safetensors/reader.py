"""Reading headers: of a path, of an open file, or of bytes. Nothing but the header is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mlxkv.errors import CorruptError, ModelFileError, shortened
from mlxkv.safetensors.header import Header, Rules
from mlxkv.system.regular_file import opened, reason


def read_header(
    source: str | os.PathLike[str] | int | bytes | bytearray | memoryview,
    *,
    weights: bool = False,
    nofollow: bool = False,
    name: str | None = None,
) -> Header:
    """Read and check the header of `source`: a path, an open file descriptor (its position is kept) or the whole file.

    `weights` allows the names model files use and blames the model; `nofollow` refuses a link as the last part of a
    path (not for weights: the Hugging Face cache is made of links); `name` is what messages call the file.

    Raises:
        CorruptError, ModelFileError (`weights`): one sentence with the file, the rule and the value found.
    """
    rules = Rules(_shown(name or _name_of(source)), ModelFileError if weights else CorruptError, weights)
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source).cast("B")
        length = rules.length(bytes(view[:8]), len(view))
        return rules.header(bytes(view[8 : 8 + length]), len(view))
    try:
        if isinstance(source, int):
            return _read_fd(source, rules)
        with opened(source, follow=not nofollow) as file:
            return _read_fd(file.fileno(), rules)
    except OSError as error:
        raise rules.error(f"{rules.file} cannot be opened ({reason(error)}).") from error


def check_weights(path: str | os.PathLike[str]) -> Header:
    """`read_header` with the rules for model weights; call it before every `mx.load` of a file that is not ours.

    Raises:
        ModelFileError: see `read_header`.
    """
    return read_header(path, weights=True)


def _read_fd(fd: int, rules: Rules) -> Header:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise rules.error(f"{rules.file} must be a regular file, found {stat.filemode(info.st_mode)}.")
    length = rules.length(_pread(fd, 8, 0), info.st_size)
    text = _pread(fd, length, 8)
    if len(text) != length:
        rules.refuse(f"the header must hold {length} bytes (the file shrank while it was read)", len(text))
    return rules.header(text, info.st_size)


def _pread(fd: int, count: int, offset: int) -> bytes:
    parts = []
    while count > 0 and (part := os.pread(fd, count, offset)):
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def _name_of(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(Path(os.fspath(source)))
    return "the open file" if isinstance(source, int) else "the data"


def _shown(name: str) -> str:
    return shortened("".join(c if c.isprintable() else ascii(c)[1:-1] for c in name))
