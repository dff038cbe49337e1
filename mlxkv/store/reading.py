"""Reading a chunk straight into the rows of a ring: no copy in between, hashed while the bytes are still in the cache.

No MLX: buffers come from `LayerGroup.places`. Any thread; nothing that was written may be used before `read_chunk` has
returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import xxhash

from mlxkv.errors import CorruptError
from mlxkv.safetensors import Header
from mlxkv.store.files import Files
from mlxkv.store.format import ChunkHead, Shapes, check_header, opened
from mlxkv.store.pacing import FIRST
from mlxkv.store.ports import PlacesLike

PIECE = 512 << 10  # bytes read and hashed at once: they should still be in the processor's cache
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
        for piece in chain([[memoryview(bytearray(header.data_start))]], _pieces(header, places)):
            num_bytes = sum(map(len, piece))
            if files.read(fd, piece) != num_bytes:
                raise CorruptError(f"The chunk {path.name} is shorter than its header says.")
            for view in piece:
                h.update(view)
            if not go_on(num_bytes):
                return False
    if h.hexdigest() != digest:
        raise CorruptError(f"The chunk {path.name} has the checksum {h.hexdigest()}, not {digest}.")
    return True


def _pieces(header: Header, places: PlacesLike) -> Iterator[list[memoryview]]:
    """Where the bytes go, in the order of the file."""
    piece: list[memoryview] = []
    num_bytes, most = 0, FIRST  # each next piece is twice as large: a slow disk should be noticed soon
    nowhere = memoryview(bytearray(PIECE))
    for tensor in header.tensors:
        buffer = places.tensors[tensor.name]
        for head in range(buffer.heads):
            for a, b, row in places.spans:
                left, at = (b - a) * buffer.row_bytes, (head * buffer.rows + (row or 0)) * buffer.row_bytes
                while left:
                    n = min(left, most - num_bytes)
                    away = nowhere[num_bytes : num_bytes + n]  # a place of its own: it is hashed with the others
                    piece.append(away if row is None else buffer.data[at : at + n])
                    num_bytes, left, at = num_bytes + n, left - n, at + n
                    if num_bytes == most or len(piece) == MOST_VIEWS:
                        yield piece
                        piece, num_bytes, most = [], 0, min(2 * most, PIECE)
    if piece:
        yield piece
