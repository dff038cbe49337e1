"""Reading a chunk straight into the rows of a ring: no copy in between, hashed while the bytes are still in the cache.

No MLX: buffers come from `LayerGroup.places`. Any thread; nothing that was written may be used before `read_chunk` has
returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from mlxkv.errors import CorruptError
from mlxkv.safetensors import Header
from mlxkv.store.files import Files
from mlxkv.store.kv.chunk_format import ChunkHead, Shapes, check_header, opened
from mlxkv.store.kv.pacing import FIRST
from mlxkv.store.kv.protocols import PlacesLike

PIECE = 512 << 10  # bytes read and hashed at once: still in a core's own cache, and few enough calls
MOST_VIEWS = 512  # of one read; systems allow 1,024

GoOn = Callable[[int], bool]
"""Told the bytes of each piece; False ends the reading."""


def read_chunk(
    path: Path, digest: str, size: int, head: ChunkHead, shapes: Shapes, places: PlacesLike, files: Files, go_on: GoOn
) -> bool:
    """Read and verify all of it, and put what is wanted into place; False if `go_on` ended it.

    `places` cover [head.a, head.b).

    Raises:
        CorruptError: the file is not the one that was written: no row of it may be used.
    """
    with opened(path, size) as (fd, header):
        check_header(header, head, shapes, path.name)
        h = xxhash.xxh3_128()
        os.lseek(fd, 0, os.SEEK_SET)
        for num_bytes, piece in _pieces(header, places):
            if files.read(fd, piece) != num_bytes:
                raise CorruptError(f"The chunk {path.name} is shorter than its header says.")
            for view in piece:
                h.update(view)
            if not go_on(num_bytes):
                return False
    if h.hexdigest() != digest:
        raise CorruptError(f"The chunk {path.name} is damaged: its bytes do not fit its checksum.")
    return True


def _pieces(header: Header, places: PlacesLike) -> Iterator[tuple[int, list[memoryview]]]:
    """The bytes of each piece of the file, header first, and where they go."""
    yield header.data_start, [memoryview(bytearray(header.data_start))]
    piece: list[memoryview] = []
    num_bytes, most = 0, FIRST  # each next piece is twice as large: a slow disk should be noticed soon
    for view in _views(header, places):
        size = len(view)
        if num_bytes and (num_bytes + size > most or len(piece) == MOST_VIEWS):
            yield num_bytes, piece
            piece, num_bytes, most = [], 0, min(2 * most, PIECE)
        while size > most:
            yield most, [view[:most]]
            view, size, most = view[most:], size - most, min(2 * most, PIECE)
        piece.append(view)
        num_bytes += size
    if num_bytes:
        yield num_bytes, piece


def _views(header: Header, places: PlacesLike) -> Iterator[memoryview]:
    """Where the bytes of the tensors go, in the order of the file."""
    for tensor in header.tensors:
        buffer = places.tensors[tensor.name]
        data, row_bytes = buffer.data, buffer.row_bytes
        for first in range(0, buffer.heads * buffer.rows, buffer.rows):
            for a, b, row in places.spans:
                if row is None:
                    left = (b - a) * row_bytes
                    yield from [memoryview(bytearray(min(PIECE, left - i))) for i in range(0, left, PIECE)]
                else:
                    at = (first + row) * row_bytes
                    yield data[at : at + (b - a) * row_bytes]
