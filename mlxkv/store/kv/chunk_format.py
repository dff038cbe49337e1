"""The format of a chunk file: encode it, name it by its content, verify it. Knows no MLX, folders or sessions.

A chunk is a safetensors file with sorted tensor names; its name is the xxh3-128 of all its bytes; its metadata name
the rows and the history they belong to, so that a wrong reference in the database is noticed. Any thread.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from mlxkv.errors import CorruptError
from mlxkv.safetensors.header import Header, read_header
from mlxkv.safetensors.writer import encode_header
from mlxkv.store.kv.protocols import Range

FORMAT = "1"
READ = 1 << 20  # bytes per read while verifying

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""name -> (shape, safetensors dtype)."""


@dataclass(frozen=True)
class ChunkHead:
    """Rows [a, b) of `group`, computed from the token ids that `prefix_key` identifies."""

    group: str
    a: int
    b: int
    prefix_key: str

    def metadata(self) -> dict[str, str]:
        return {"mlxkv": FORMAT, "group": self.group, "a": str(self.a), "b": str(self.b), "prefix": self.prefix_key}


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk ready to be written: `digest` is its name, `size` its length in bytes.

    `data` is a copy, so that another thread can write it while the cache's buffers change; empty once it is on disk.
    """

    head: ChunkHead
    data: bytes
    digest: str
    size: int


def encode_chunk(head: ChunkHead, shapes: Shapes, views: Mapping[str, Sequence[bytes | memoryview]]) -> EncodedChunk:
    """Encode tensors, each given as pieces of its bytes, which are copied once.

    Raises:
        ValueError: `read_header` would refuse a name, dtype or shape, or the pieces have other sizes.
    """
    sized = [(name, dtype, shape, sum(map(len, views[name]))) for name, (shape, dtype) in shapes.items()]
    header = encode_header(sized, head.metadata())
    data = b"".join([header, *(piece for name in sorted(shapes) for piece in views[name])])
    return EncodedChunk(head, data, xxhash.xxh3_128_hexdigest(data), len(data))


class PrefixKeys:
    """Prefix keys, which identify the ids a chunk was computed from: `blake2b(seed | log[:b] | a | b)`.

    `seed` names model, spec and group. A key does not depend on how earlier rows were cut into chunks. Hashes of
    prefixes of the log are remembered (marks), so that a key only hashes the ids since the last one.
    """

    MARK_EVERY = 1024  # ids between two marks

    def __init__(self, seed: str) -> None:
        self._ends = [0]
        self._marks = [hashlib.blake2b(seed.encode(), digest_size=16)]

    def cut(self, length: int) -> None:
        """Forget the marks beyond the first `length` ids, which are unchanged."""
        keep = bisect_right(self._ends, length)
        del self._ends[keep:], self._marks[keep:]

    def key(self, log: array[int], a: int, b: int, shared: int | None = None) -> str:
        """The key of rows [a, b) of `log`, whose first `shared` ids (default: all) are those of the marks."""
        view = memoryview(log).cast("B")
        most = b if shared is None else min(b, shared)
        while self._ends[-1] + self.MARK_EVERY <= most:
            end, mark = self._ends[-1], self._marks[-1].copy()
            mark.update(view[4 * end : 4 * (end + self.MARK_EVERY)])
            self._ends.append(end + self.MARK_EVERY)
            self._marks.append(mark)
        at = bisect_right(self._ends, most) - 1
        h = self._marks[at].copy()
        h.update(view[4 * self._ends[at] : 4 * b])
        h.update(a.to_bytes(8, "little") + b.to_bytes(8, "little"))
        return h.hexdigest()


def prefix_keys(ids: array[int], seed: str, ranges: Iterable[Range]) -> dict[Range, str]:
    """The keys of several chunks of one log."""
    keys = PrefixKeys(seed)
    return {(a, b): keys.key(ids, a, b) for a, b in ranges}


@contextmanager
def opened(path: Path, size: int) -> Iterator[tuple[int, Header]]:
    """Open a chunk file, which must be regular (no link) and of exactly `size` bytes; yields descriptor and header.

    Raises:
        CorruptError: it is another file, or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CorruptError(f"The chunk {path.name} cannot be opened ({error.strerror}).") from error
    try:
        header = read_header(fd, name=path.name)
        if header.file_size != size:
            raise CorruptError(f"The chunk {path.name} has {header.file_size} bytes, expected {size}.")
        yield fd, header
    except OSError as error:
        raise CorruptError(f"The chunk {path.name} cannot be read ({error.strerror}).") from error
    finally:
        os.close(fd)


def check_header(header: Header, head: ChunkHead, shapes: Shapes, name: str) -> None:
    """Compare metadata, names, dtypes and shapes with what the caller expects.

    Raises:
        CorruptError: they differ.
    """
    if header.metadata != head.metadata():
        raise CorruptError(f"The chunk {name} holds other rows ({header.metadata}), expected {head.metadata()}.")
    check_tensors(header, shapes, name)


def check_tensors(header: Header, shapes: Shapes, name: str) -> None:
    """Raises CorruptError unless the tensors are exactly `shapes`, in sorted order."""
    found = [(t.name, t.shape, t.dtype) for t in header.tensors]
    if found != [(n, tuple(shape), dtype) for n, (shape, dtype) in sorted(shapes.items())]:
        raise CorruptError(f"The file {name} has other tensors than this cache.")


def hash_file(fd: int, end: int) -> xxhash.xxh3_128:
    """The xxh3-128 of the bytes before `end`, or of fewer if the file is shorter."""
    h, offset = xxhash.xxh3_128(), 0
    while part := os.pread(fd, min(READ, end - offset), offset):
        h.update(part)
        offset += len(part)
    return h


def verify_chunk(path: Path, digest: str, size: int) -> Header:
    """Check size, header and the checksum of all bytes, and return the header.

    Raises:
        CorruptError: names the file and the fault.
    """
    with opened(path, size) as (fd, header):
        h = hash_file(fd, size)
    if h.hexdigest() != digest:
        raise CorruptError(f"The chunk {path.name} is damaged: its bytes do not match its checksum.")
    return header
