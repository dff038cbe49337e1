"""Write headers that `read_header` accepts. Any thread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mlxkv.errors import CorruptError
from mlxkv.safetensors.header import Rules


def encode_header(tensors: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data: 8-byte little-endian length and JSON padded with spaces to a multiple of 8.

    `tensors` are (name, dtype, shape, nbytes), contiguous in the order of their sorted names, which is the
    order to write the buffers in. The same arguments in any order give the same bytes.

    Raises:
        ValueError: `read_header` would refuse the result.
    """
    try:
        entries, size = _entries(tuple(sorted((n, dtype, tuple(shape), nbytes) for n, dtype, shape, nbytes in tensors)))
        found = _RULES.check_metadata(dict(sorted(metadata.items())))
        fields = [f'"__metadata__":{_json(found)}'] if found else []
        text = ("{" + ",".join([*fields, *entries]) + "}").encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little")
        _RULES.check_length(head, 8 + len(text) + size)
    except (CorruptError, TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"This header would be refused when read: {error}") from error
    return head + text


_RULES = Rules("the new file", CorruptError, weights=False)


@lru_cache(maxsize=16)  # the chunks of a chat have a handful of shapes
def _entries(tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> tuple[list[str], int]:
    """Each tensor as checked JSON, and the bytes of all."""
    out: dict[str, str] = {}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        if name in out:
            raise ValueError(f"Two tensors are called {name!r}.")
        entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        _RULES.check_tensor(name, entry)
        out[name] = f"{_json(name)}:{_json(entry)}"
        offset += nbytes
    return list(out.values()), offset


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def flat_bytes(buffer: Any) -> memoryview:
    """The bytes of a C-contiguous buffer (an evaluated MLX array is one), not copied."""
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view of no bytes cannot be cast
