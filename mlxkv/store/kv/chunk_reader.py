"""Read chunk files into a cache: straight into its buffers if its groups offer places, else as arrays to import.

Bytes are hashed while they are in the processor's cache; no row may be used before its whole chunk was verified. Large
restores read several chunks at once, on threads that touch no MLX. The engine thread calls `load`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import xxhash

from mlxkv.cache.interchange import Buffer, Places
from mlxkv.errors import CorruptError
from mlxkv.safetensors.header import Header
from mlxkv.safetensors.writer import flat_bytes
from mlxkv.store.kv.arrays import empty_arrays
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import Shapes, check_header, opened
from mlxkv.store.kv.commits import SavedChunk
from mlxkv.store.kv.prefault import prefault, runs
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup, Range, RowPlaces
from mlxkv.store.kv.ranges import cover

PIECE = 512 << 10  # bytes read and hashed at once: still in a core's own cache, and few enough calls
FIRST = 16 << 10  # bytes of the first piece: a slow disk should be noticed soon
MAX_VIEWS = 512  # of one read; systems allow 1,024
_NUM_THREADS = 4  # chunks
_PARALLEL_FROM = 32 << 20  # bytes

KeepReading = Callable[[int], bool]
"""Called with the bytes of each piece that was read; False ends the read."""


class BadChunkError(Exception):
    """The file of `chunk` is missing or damaged."""

    def __init__(self, chunk: SavedChunk) -> None:
        super().__init__(chunk.digest)
        self.chunk = chunk


class TooSlowError(Exception):
    """KeepReading ended the read."""


@dataclass(frozen=True)
class Read:
    """One chunk of a group, and the ranges of it to import, ascending."""

    group: LayerGroup
    chunk: SavedChunk
    parts: tuple[Range, ...]


def reads_for(groups: Sequence[LayerGroup], saved: Iterable[SavedChunk], tokens: int) -> list[Read]:
    """The reads after which every group can continue at `tokens`, a restorable position: each chunk once, in order."""
    saved = list(saved)
    out: list[Read] = []
    for group in groups:
        spans = [(chunk.head.a, chunk.end, chunk) for chunk in saved if chunk.head.group == group.name]
        wanted: dict[str, tuple[SavedChunk, list[Range]]] = {}
        for range_ in sorted({*group.required(tokens), *group.optional(tokens)}):
            for chunk, a, b in cover(spans, range_) or ():  # None only for an optional range
                wanted.setdefault(chunk.digest, (chunk, []))[1].append((a, b))
        out += [Read(group, chunk, tuple(parts)) for chunk, parts in wanted.values()]
    return out


def load(
    cache: KVCacheLike, ids: Sequence[int], reads: Sequence[Read], chunks: ChunkFiles, keep_reading: KeepReading
) -> None:
    """Fill the cache with the rows of `ids`. On any error the caller must reset it: its rows are not verified.

    Raises:
        BadChunkError, TooSlowError.
    """
    cache.begin_restore(ids)
    direct = [read for read in reads if isinstance(read.group, RowPlaces)]
    if sum(read.chunk.size for read in direct) >= _PARALLEL_FROM and len(direct) > 1:
        _load_in_threads(direct, chunks, keep_reading)
    else:
        for read in direct:
            read_chunk(read, _shapes(read), _places(read), chunks, keep_reading)
    for read in direct:
        for part in read.parts:
            read.group.mark_imported(*part)  # type: ignore[attr-defined]  # it is a RowPlaces too
    for read in reads:
        if not isinstance(read.group, RowPlaces):
            _load_arrays(read, chunks, keep_reading)
    cache.finish_restore()


def _load_in_threads(reads: Sequence[Read], chunks: ChunkFiles, keep_reading: KeepReading) -> None:
    largest_first = sorted(reads, key=lambda read: -read.chunk.size)  # else the last one may keep one thread busy alone
    jobs = [(read, _shapes(read), _places(read)) for read in largest_first]  # only this thread may ask MLX
    groups = {read.group.name: [at for r, _, at in jobs if r.group.name == read.group.name] for read in reads}
    failed = Event()

    def keep(num_bytes: int) -> bool:
        return not failed.is_set() and keep_reading(num_bytes)

    with ThreadPoolExecutor(min(_NUM_THREADS, os.cpu_count() or 1), "mlxkv-read") as pool:
        for places in groups.values():
            list(pool.map(prefault, runs(places)))
        running = [pool.submit(read_chunk, *job, chunks, keep) for job in jobs]
        try:
            for future in running:
                future.result()
        except BaseException:
            failed.set()
            raise


def _shapes(read: Read) -> Shapes:
    return read.group.shapes(read.chunk.head.b - read.chunk.head.a)


def _places(read: Read) -> Places:
    assert isinstance(read.group, RowPlaces)
    return read.group.places(read.chunk.head.a, read.chunk.head.b, read.parts)


def _load_arrays(read: Read, chunks: ChunkFiles, keep_reading: KeepReading) -> None:
    head = read.chunk.head
    arrays = empty_arrays(shapes := _shapes(read))
    whole = {name: Buffer(flat_bytes(x), x.nbytes) for name, x in arrays.items()}  # as one row
    read_chunk(read, shapes, Places(((0, 1, 0),), whole), chunks, keep_reading)
    for a, b in read.parts:
        rows = arrays
        if (a, b) != (head.a, head.b):
            rows = {name: x[..., a - head.a : b - head.a, :] for name, x in arrays.items()}
        read.group.import_rows(a, b, rows)


# -- one chunk -------------------------------------------------------------------------------------------------------


def read_chunk(read: Read, shapes: Shapes, places: Places, chunks: ChunkFiles, keep_reading: KeepReading) -> None:
    """Read and verify the whole chunk into `places`, which cover all of it. Any thread; touches no MLX.

    Raises:
        BadChunkError: the file is missing or damaged. TooSlowError: `keep_reading` ended the read.
    """
    chunk = read.chunk
    path, h = chunks.path(chunk.digest), xxhash.xxh3_128()
    try:
        with opened(path, chunk.size) as (fd, header):
            check_header(header, chunk.head, shapes, path.name)
            os.lseek(fd, 0, os.SEEK_SET)
            for num_bytes, piece in _pieces(header, places):
                if chunks.files.read(fd, piece) != num_bytes:
                    raise CorruptError(f"The chunk {path.name} is shorter than its header says.")
                for view in piece:
                    h.update(view)
                if not keep_reading(num_bytes):
                    raise TooSlowError
        if h.hexdigest() != chunk.digest:
            raise CorruptError(f"The chunk {path.name} is damaged: its bytes do not match its checksum.")
    except CorruptError as error:
        raise BadChunkError(chunk) from error


def _pieces(header: Header, places: Places) -> Iterator[tuple[int, list[memoryview]]]:
    """Pieces of the file, header first: the bytes of each, and the buffers to read them into."""
    yield header.data_start, [memoryview(bytearray(header.data_start))]
    piece: list[memoryview] = []
    num_bytes, most = 0, FIRST  # each next piece is twice as large
    for view in _views(header, places):
        size = len(view)
        if num_bytes and (num_bytes + size > most or len(piece) == MAX_VIEWS):
            yield num_bytes, piece
            piece, num_bytes, most = [], 0, min(2 * most, PIECE)
        while size > most:
            yield most, [view[:most]]
            view, size, most = view[most:], size - most, min(2 * most, PIECE)
        piece.append(view)
        num_bytes += size
    if num_bytes:
        yield num_bytes, piece


def _views(header: Header, places: Places) -> Iterator[memoryview]:
    """The buffers to read the tensors into, in the order of the file."""
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
