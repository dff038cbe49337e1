"""Reading chunks into a cache: straight into its rows where its groups offer places, else as arrays to import.

Large restores read several chunks at once, on threads that touch no MLX. The engine thread calls this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxkv.errors import CorruptError
from mlxkv.store.kv.arrays import buffer_of, empty_arrays
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_reader import read_chunk
from mlxkv.store.kv.commits import SavedChunk
from mlxkv.store.kv.pacing import Watch
from mlxkv.store.kv.prefault import prefault, runs
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup, PlacesLike, Range, RowPlaces
from mlxkv.store.kv.ranges import cover

if TYPE_CHECKING:
    import mlx.core as mx

_AT_ONCE = 4  # chunks
_WORTH_THREADS = 32 << 20  # bytes


class BadChunkError(Exception):
    """`chunk` is not what was written."""

    def __init__(self, chunk: SavedChunk) -> None:
        super().__init__(chunk.digest)
        self.chunk = chunk


class TooSlowError(Exception):
    """Reading the tokens again will be faster."""


@dataclass(frozen=True)
class Read:
    """One chunk of a group, and the ranges of it that are wanted, ascending."""

    group: LayerGroup
    chunk: SavedChunk
    parts: tuple[Range, ...]


def reads_for(groups: Sequence[LayerGroup], saved: Iterable[SavedChunk], tokens: int) -> list[Read]:
    """What to read to go on at `tokens`, which every group can stand at: each chunk once, in order."""
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


def load(cache: KVCacheLike, ids: Sequence[int], reads: Sequence[Read], chunks: ChunkFiles, watch: Watch) -> None:
    """Fill the cache with the rows of `ids`. On any error the caller resets it: nothing of it may be used.

    Raises:
        BadChunkError, TooSlowError.
    """
    cache.begin_restore(ids)
    direct = [read for read in reads if isinstance(read.group, RowPlaces)]
    num_bytes = sum(read.chunk.size for read in direct)
    if num_bytes >= _WORTH_THREADS and len(direct) > 1:
        _at_once(direct, chunks, watch)
    else:
        for read in direct:
            _into_place(read, chunks, watch)()
    for read in direct:
        for part in read.parts:
            read.group.imported(*part)  # type: ignore[attr-defined]  # it is RowPlaces as well
    for read in reads:
        if not isinstance(read.group, RowPlaces):
            _as_arrays(read, chunks, watch)
    cache.finish_restore()


def _at_once(reads: Sequence[Read], chunks: ChunkFiles, watch: Watch) -> None:
    largest_first = sorted(reads, key=lambda read: -read.chunk.size)  # else the last one may keep one thread busy alone
    placed = [(read, _places(read)) for read in largest_first]  # MLX's addresses are this thread's business
    jobs = [_reader(read, places, chunks, watch) for read, places in placed]
    groups = {read.group.name: [at for r, at in placed if r.group.name == read.group.name] for read in reads}
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1), "mlxkv-read") as pool:
        for places in groups.values():
            list(pool.map(prefault, runs(places)))
        running = [pool.submit(job) for job in jobs]
        try:
            for future in running:
                future.result()
        except BaseException:
            watch.stop()
            raise


def _into_place(read: Read, chunks: ChunkFiles, watch: Watch) -> Callable[[], None]:
    return _reader(read, _places(read), chunks, watch)


def _places(read: Read) -> PlacesLike:
    head = read.chunk.head
    assert isinstance(read.group, RowPlaces)
    return read.group.places(head.a, head.b, read.parts)


def _reader(read: Read, places: PlacesLike, chunks: ChunkFiles, watch: Watch) -> Callable[[], None]:
    chunk, shapes = read.chunk, read.group.shapes(read.chunk.head.b - read.chunk.head.a)

    def job() -> None:
        path = chunks.path(chunk.digest)
        try:
            whole = read_chunk(path, chunk.digest, chunk.size, chunk.head, shapes, places, chunks.files, watch.goes_on)
        except CorruptError as error:
            raise BadChunkError(chunk) from error
        if not whole:
            raise TooSlowError

    return job


@dataclass(frozen=True)
class _Flat:
    """All bytes of an array, as one row."""

    data: memoryview
    row_bytes: int
    heads: int = 1
    rows: int = 1


@dataclass(frozen=True)
class _Arrays:
    """Arrays of their own for a whole chunk."""

    spans: tuple[tuple[int, int, int | None], ...]
    tensors: dict[str, _Flat]


def _as_arrays(read: Read, chunks: ChunkFiles, watch: Watch) -> None:
    head = read.chunk.head
    arrays = empty_arrays(read.group.shapes(head.b - head.a))
    _reader(read, _Arrays(((0, 1, 0),), dict(_flat(arrays))), chunks, watch)()
    for a, b in read.parts:
        rows = arrays
        if (a, b) != (head.a, head.b):
            rows = {name: x[..., a - head.a : b - head.a, :] for name, x in arrays.items()}
        read.group.import_rows(a, b, rows)


def _flat(arrays: dict[str, mx.array]) -> Iterator[tuple[str, _Flat]]:
    for name, x in arrays.items():
        data = buffer_of(x)
        yield name, _Flat(data, len(data))
