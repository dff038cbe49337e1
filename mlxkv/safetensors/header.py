"""Read the header of a safetensors file and check it rule by rule. Nothing but the header is read. Any thread."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mlxkv.errors import CorruptError, MlxkvError, ModelFileError, escaped, printable, shortened
from mlxkv.system.regular_file import opened, reason

MAX_HEADER = 1 << 20  # bytes
MAX_DIMS = 8
MAX_DIM = (1 << 31) - 1  # MLX shapes are int32

ITEM_SIZES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of the types MLX reads."""

_OUR_NAME = re.compile(r"[a-z0-9.]{1,64}")
_WEIGHT_NAME = re.compile(r"[ -~]{1,256}")
_TENSOR_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Tensor:
    """One tensor: bytes `[start, end)` counted from the header's `data_start`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that passed every rule. `tensors` are in the order of their bytes; sizes are in bytes."""

    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]
    data_start: int
    file_size: int


def read_header(
    source: str | os.PathLike[str] | int | bytes | bytearray | memoryview,
    *,
    weights: bool = False, nofollow: bool = False, name: str | None = None,
) -> Header:  # fmt: skip
    """Read and check the header of `source`: a path, an open file descriptor (its position is kept) or a whole file.

    `weights` allows the names that model files use and raises ModelFileError; `nofollow` refuses a link as the last
    part of a path (not for weights: the Hugging Face cache is made of links); `name` is the file's name in messages.

    Raises:
        CorruptError, ModelFileError (`weights`): one sentence with the file, the rule and the value found.
    """
    rules = Rules(
        shortened(printable(name or _source_name(source))), ModelFileError if weights else CorruptError, weights
    )
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source).cast("B")
        length = rules.check_length(bytes(view[:8]), len(view))
        return rules.check_header(bytes(view[8 : 8 + length]), len(view))
    try:
        if isinstance(source, int):
            return _read_fd(source, rules)
        with opened(source, follow=not nofollow) as file:
            return _read_fd(file.fileno(), rules)
    except OSError as error:
        raise rules.error(f"{rules.file} cannot be opened ({reason(error)}).") from error


def check_weights(path: str | os.PathLike[str]) -> Header:
    """`read_header` with the rules for model weights. Call it before `mx.load` of any file that mlxkv did not write."""
    return read_header(path, weights=True)


def num_bytes(dtype: str, shape: Sequence[int]) -> int:
    return ITEM_SIZES[dtype] * math.prod(shape)


class _Refused(Exception):
    """A rule broken inside the JSON parser's hooks."""


@dataclass(frozen=True)
class Rules:
    """The rules for one file. `file` is its name in messages, `error` is raised when a rule is broken, `weights` allows
    the names that model files use."""

    file: str
    error: type[MlxkvError]
    weights: bool

    def refuse(self, rule: str, found: object) -> NoReturn:
        raise self.error(f"{self.file} is not a valid safetensors file: {rule}, found {escaped(found)}.")

    def check_length(self, head: bytes, size: int) -> int:
        """The length of the JSON, from the first 8 bytes of a file of `size` bytes."""
        if len(head) < 8:
            self.refuse("a file must have at least 8 bytes", size)
        length = int.from_bytes(head, "little")
        if not 2 <= length <= MAX_HEADER:
            self.refuse(f"the header length must be 2 to {MAX_HEADER}", length)
        if 8 + length > size:
            self.refuse(f"the header must end within the file's {size} bytes", 8 + length)
        return length

    def check_header(self, text: bytes, size: int) -> Header:
        """The checked header, from the JSON of a file of `size` bytes."""
        table = self.parse(text)
        metadata = self.check_metadata(table.pop("__metadata__", {}))
        tensors = [self.check_tensor(name, entry) for name, entry in table.items()]
        tensors.sort(key=lambda t: (t.start, t.end, t.name))
        data_start = 8 + len(text)
        offset = 0
        for tensor in tensors:
            if tensor.start != offset:
                self.refuse(f"tensor {tensor.name!r} must start where the one before ends, at {offset}", tensor.start)
            offset = tensor.end
        if self.weights and data_start + offset > size:
            whole = data_start + offset
            raise self.error(f"{self.file} is cut off at {size:,} of its {whole:,} bytes; download it again.")
        if data_start + offset != size:
            self.refuse(f"the tensors must cover the file's {size - data_start} data bytes exactly", offset)
        return Header(metadata, tuple(tensors), data_start, size)

    def parse(self, text: bytes) -> dict[str, Any]:
        if not text.startswith(b"{"):
            self.refuse("the header must begin with {", text[:8])
        try:
            table = json.loads(
                text.decode("utf-8"),
                object_pairs_hook=_without_duplicates,
                parse_constant=_refuse_constant,
                parse_int=_natural,
                parse_float=_refuse_float,
            )
        except _Refused as error:
            self.refuse(str(error.args[0]), error.args[1])
        except UnicodeDecodeError as error:
            self.refuse("the header must be UTF-8", text[error.start : error.start + 8])
        except (ValueError, RecursionError) as error:
            self.refuse("the header must be one JSON object", str(error))
        if not isinstance(table, dict):  # impossible: it begins with {
            self.refuse("the header must be one JSON object", table)
        return table

    def check_metadata(self, found: object) -> dict[str, str]:
        if found is None and self.weights:  # MLX writes null where it is given none, as mlx-lm's training does
            return {}
        if not isinstance(found, dict):
            self.refuse("__metadata__ must be an object", found)
        for key, value in found.items():
            if not isinstance(value, str):
                self.refuse(f"__metadata__ {escaped(key)} must be a string", value)
            for text in (key, value):
                if any("\ud800" <= c <= "\udfff" for c in text):
                    self.refuse("__metadata__ must be Unicode text without lone surrogates", text)
        return found

    def check_tensor(self, name: str, entry: object) -> Tensor:
        if not (_WEIGHT_NAME if self.weights else _OUR_NAME).fullmatch(name):
            rule = "1 to 256 printable ASCII characters" if self.weights else "1 to 64 of a-z, 0-9 and the dot"
            self.refuse(f"a tensor name must be {rule}", name)
        if not isinstance(entry, dict) or entry.keys() != _TENSOR_KEYS:
            self.refuse(f"tensor {name!r} must have exactly dtype, shape and data_offsets", entry)
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
            self.refuse(f"the dtype of {name!r} must be one of {', '.join(ITEM_SIZES)}", dtype)
        if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_dim, shape)):
            self.refuse(f"the shape of {name!r} must be at most {MAX_DIMS} integers from 0 to {MAX_DIM}", shape)
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_int, offsets)):
            self.refuse(f"the data_offsets of {name!r} must be two integers", offsets)
        nbytes = num_bytes(dtype, shape)
        start, end = offsets
        if end - start != nbytes:
            self.refuse(f"the data_offsets of {name!r} must span {nbytes} bytes, its shape times its dtype", offsets)
        return Tensor(name, dtype, tuple(shape), start, end)


def _is_int(value: object) -> bool:
    return type(value) is int  # not bool


def _is_dim(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= MAX_DIM


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused("an object must not repeat a key", next(key for key in keys if keys.count(key) > 1))
    return table


def _natural(text: str) -> int:
    # `-0` is refused too: other readers take it for a float. 20 digits hold every 64-bit size.
    if not text.isdigit() or len(text) > 20:
        raise _Refused("a number must be an integer from 0 to 2^64", text)
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise _Refused("NaN and Infinity are not JSON", text)


def _refuse_float(text: str) -> NoReturn:
    raise _Refused("a number must be an integer", text)


def _read_fd(fd: int, rules: Rules) -> Header:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise rules.error(f"{rules.file} must be a regular file, found {stat.filemode(info.st_mode)}.")
    length = rules.check_length(pread(fd, 8, 0), info.st_size)
    text = pread(fd, length, 8)
    if len(text) != length:
        rules.refuse(f"the header must hold {length} bytes (the file shrank while it was read)", len(text))
    return rules.check_header(text, info.st_size)


def pread(fd: int, count: int, offset: int) -> bytes:
    """`count` bytes from `offset` on; fewer if the file ends earlier."""
    parts = []
    while count > 0 and (part := os.pread(fd, count, offset)):
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def _source_name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(Path(os.fspath(source)))
    return "the open file" if isinstance(source, int) else "the data"
