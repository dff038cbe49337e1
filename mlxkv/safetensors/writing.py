"""Headers and files of our own: nothing is written that `read_header` would refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxkv.errors import CorruptError
from mlxkv.safetensors.rules import Rules


def encode_header(tensors: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data: 8-byte little-endian length and JSON padded with spaces to a multiple of 8.

    `tensors` are (name, dtype, shape, nbytes), laid out contiguously in the order of their sorted names, which is the
    order to write the buffers in. The same arguments in any order give the same bytes.

    Raises:
        ValueError: `read_header` would refuse the result.
    """
    rules = Rules("the new file", CorruptError, weights=False)
    offset = 0
    try:
        table: dict[str, Any] = {"__metadata__": rules.metadata(dict(sorted(metadata.items())))} if metadata else {}
        for name, dtype, shape, nbytes in sorted(tensors):
            if name in table:
                raise ValueError(f"Two tensors are called {name!r}.")
            table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
            rules.tensor(name, table[name])
            offset += nbytes
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little")
        rules.length(head, 8 + len(text) + offset)
    except (CorruptError, TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"Not a header this program would read back: {error}") from error
    return head + text


def encode(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes | memoryview]], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The parts of a whole file in order, the header first; buffers (C-contiguous) are passed on without a copy.

    Raises:
        ValueError: `read_header` would refuse the result; nothing is yielded then.
    """
    views = {name: _flat(buffer) for name, (_, _, buffer) in tensors.items()}
    yield encode_header(
        [(name, dtype, shape, views[name].nbytes) for name, (dtype, shape, _) in tensors.items()], metadata
    )
    for name in sorted(views):
        yield views[name]


def _flat(buffer: bytes | memoryview) -> memoryview:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view of no bytes cannot be cast
