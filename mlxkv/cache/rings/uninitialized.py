"""Uninitialized arrays, for rows that are about to be read from disk.

MLX has no `empty`, and zeroing gigabytes takes as long as reading them. MLX's file reader allocates memory and lets a
file fill it, so this module gives it a file that writes nothing. On the MLX thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

SAFETENSORS_DTYPE = {
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16", mx.uint32: "U32",
    mx.int32: "I32", mx.uint64: "U64", mx.int64: "I64", mx.float16: "F16", mx.bfloat16: "BF16", mx.float32: "F32",
    mx.complex64: "C64",
}  # fmt: skip


def uninitialized_arrays(specs: Sequence[tuple[tuple[int, ...], mx.Dtype]]) -> tuple[mx.array, ...]:
    """An evaluated array per shape and dtype, with arbitrary contents."""
    if not specs:
        return ()
    file: Any = _BlankFile(specs)
    found = mx.load(file, format="safetensors")
    assert isinstance(found, dict)
    arrays = tuple(found[_name(i)] for i in range(len(specs)))
    mx.eval(arrays)
    return arrays


class _BlankFile:
    """A safetensors file that has a header and writes no data."""

    closed = False

    def __init__(self, specs: Sequence[tuple[tuple[int, ...], mx.Dtype]]) -> None:
        header, end = {}, 0
        for i, (shape, dtype) in enumerate(specs):
            start, end = end, end + math.prod(shape) * dtype.size
            header[_name(i)] = {"dtype": SAFETENSORS_DTYPE[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        self._head = len(text).to_bytes(8, "little") + text
        self._size, self._at = len(self._head) + end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int) -> bytes:
        part = self._head[self._at : self._at + size]
        self._at += size
        return part

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        part = self._head[self._at : self._at + len(view)]
        view[: len(part)] = part
        self._at += len(view)
        return len(view)


def _name(i: int) -> str:
    return f"{i:04}"
