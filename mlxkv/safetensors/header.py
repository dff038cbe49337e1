"""What a header must be, rule by rule, and what comes of one that is. Pure: bytes in, values out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mlxkv.errors import MlxkvError

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
    """A header that passed every rule. `tensors` are in the order of their bytes; sizes are bytes."""

    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]
    data_start: int
    file_size: int


class _Refused(Exception):
    """A rule broken inside the JSON parser's hooks."""


@dataclass(frozen=True)
class Rules:
    """`file` is what messages call it, `error` what is raised, `weights` whether names may be what model files use."""

    file: str
    error: type[MlxkvError]
    weights: bool

    def refuse(self, rule: str, found: object) -> NoReturn:
        raise self.error(f"{self.file} is not a valid safetensors file: {rule}, found {_short(found)}.")

    def length(self, head: bytes, size: int) -> int:
        """The length of the JSON, from the first 8 bytes of a file of `size` bytes."""
        if len(head) < 8:
            self.refuse("a file has at least 8 bytes", size)
        length = int.from_bytes(head, "little")
        if not 2 <= length <= MAX_HEADER:
            self.refuse(f"the header length must be 2 to {MAX_HEADER}", length)
        if 8 + length > size:
            self.refuse(f"the header must end within the file's {size} bytes", 8 + length)
        return length

    def header(self, text: bytes, size: int) -> Header:
        """The checked header, from the JSON of a file of `size` bytes."""
        table = self.parse(text)
        metadata = self.metadata(table.pop("__metadata__", {}))
        tensors = [self.tensor(name, entry) for name, entry in table.items()]
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
                object_pairs_hook=_unique,
                parse_constant=_no_constant,
                parse_int=_natural,
                parse_float=_no_float,
            )
        except _Refused as error:
            self.refuse(str(error.args[0]), error.args[1])
        except UnicodeDecodeError as error:
            self.refuse("the header must be UTF-8", text[error.start : error.start + 8])
        except (ValueError, RecursionError) as error:
            self.refuse("the header must be one JSON object", str(error))
        if not isinstance(table, dict):  # cannot happen: it begins with {
            self.refuse("the header must be one JSON object", table)
        return table

    def metadata(self, found: object) -> dict[str, str]:
        if not isinstance(found, dict):
            self.refuse("__metadata__ must be an object", found)
        for key, value in found.items():
            if not isinstance(value, str):
                self.refuse(f"__metadata__ {_short(key)} must be a string", value)
            for text in (key, value):
                if any("\ud800" <= c <= "\udfff" for c in text):
                    self.refuse("__metadata__ must be Unicode text without lone surrogates", text)
        return found

    def tensor(self, name: str, entry: object) -> Tensor:
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
        nbytes = ITEM_SIZES[dtype]
        for n in shape:
            nbytes *= n
        start, end = offsets
        if end - start != nbytes:
            self.refuse(f"the data_offsets of {name!r} must span {nbytes} bytes, its shape times its dtype", offsets)
        return Tensor(name, dtype, tuple(shape), start, end)


def _is_int(value: object) -> bool:
    return type(value) is int  # not bool


def _is_dim(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= MAX_DIM


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused("an object must not repeat a key", next(key for key in keys if keys.count(key) > 1))
    return table


def _natural(text: str) -> int:
    # `-0` too: other readers take it for a float. 20 digits hold every 64-bit size.
    if not text.isdigit() or len(text) > 20:
        raise _Refused("a number must be an integer from 0 to 2^64", text)
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise _Refused("NaN and Infinity are not JSON", text)


def _no_float(text: str) -> NoReturn:
    raise _Refused("a number must be an integer", text)


def _short(value: object) -> str:
    text = ascii(value)  # a file's own text reaches a terminal in no other form
    return text if len(text) <= 80 else f"{text[:76]} ..."
