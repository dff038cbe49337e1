"""Rows: the buffer of one layer's keys or values, in the model's own precision or quantized.

Allocated once and written in slices; `ring.py` decides which rows. Quantized rows are three arrays side by side
(packed numbers, scales, biases), as mlx.core.quantize makes them. An array may have more rows than are used, since MLX
writes some buffers in place only if their size is a whole number of pages. A fork shares the arrays until one side
writes; that side copies the rows in use, into arrays that grow from then on. Used on the MLX thread.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxkv.errors import CacheError

Parts = tuple[mx.array, ...]  # one array, or packed numbers, scales, biases; rows on axis -2
Spec = tuple[tuple[int, ...], mx.Dtype]  # shape and dtype of an array

PAGE = (
    16_384  # bytes: MLX's pool may hand out a buffer one page larger, and refuses to write in place in more than that
)
_MOST_PADDING = 1 / 8  # of the rows: those of an odd size, such as the scales of quantized ones, may need many


@dataclass(frozen=True)
class Plane:
    """One array of a row: its name in files, its width and its dtype."""

    name: str
    width: int
    dtype: mx.Dtype


@dataclass(frozen=True)
class Codec:
    """How rows are stored: `bits` None unchanged, else 8 or 4 bits in groups of `group_size` numbers."""

    bits: int | None = None
    group_size: int = 64

    def planes(self, width: int, dtype: mx.Dtype) -> tuple[Plane, ...]:
        """The arrays that store rows of `width` numbers."""
        if self.bits is None:
            return (Plane("", width, dtype),)
        groups = width // self.group_size
        return (
            Plane(".w", width * self.bits // 32, mx.uint32),
            Plane(".s", groups, dtype),
            Plane(".b", groups, dtype),
        )

    def encode(self, x: mx.array) -> Parts:
        if self.bits is None:
            return (x,)
        return tuple(mx.quantize(x, group_size=self.group_size, bits=self.bits))

    def decode(self, parts: Sequence[mx.array]) -> mx.array:
        if self.bits is None:
            return parts[0]
        packed, scales, _ = parts
        if not packed.size:  # which MLX cannot dequantize
            return mx.zeros((*packed.shape[:-1], packed.shape[-1] * 32 // self.bits), scales.dtype)
        return mx.dequantize(*parts, group_size=self.group_size, bits=self.bits)


PLAIN = Codec()


class Rows:
    """A buffer of `rows` rows. `shape` is (B, n_kv_heads, rows, width).

    Attributes:
        count: its rows once it is full.
        held: rows that `arrays` can hold now: `count`, except in a fork that has not filled its window.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: mx.Dtype, codec: Codec) -> None:
        B, H, self.count, width = shape
        self.held = self.count
        self.codec, self._heads, self._planes = codec, (B, H), codec.planes(width, dtype)
        self.row_nbytes = B * H * sum(p.width * p.dtype.size for p in self._planes)
        self.arrays: Parts = self._blank(self.count)
        # The holders of the memory behind `arrays`: this buffer and unwritten forks.
        self._holders: weakref.WeakSet[Rows] = weakref.WeakSet([self])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that `arrays` can hold, without those that fill a page."""
        return self.held * self.row_nbytes

    @property
    def is_shared(self) -> bool:
        return len(self._holders) > 1

    @property
    def shared_nbytes(self) -> int:
        """Bytes shared with a fork."""
        return self.nbytes if self.is_shared else 0

    def growth(self, end: int) -> int:
        """Bytes that `make_room(end, ...)` allocates, less those it frees."""
        if not self.is_shared and end <= self.held:
            return 0
        return self._enough(end) * self.row_nbytes - (0 if self.is_shared else self.nbytes)

    def make_room(self, end: int, live: int) -> None:
        """Make `arrays` this buffer's own, with room for rows [0, end); of the old rows the first `live` are in use.

        Copied and evaluated at once: a pending read would make the next write of the other side copy its buffer.
        """
        if not self.is_shared and end <= self.held:
            return
        self.held = self._enough(end)
        arrays = self._blank(self.held)
        for array, old in zip(arrays, self.arrays, strict=True):
            if live:
                array[..., :live, :] = old[..., :live, :]
        mx.eval(arrays)
        self._unshare()
        self.arrays = arrays

    def release(self) -> list[Spec]:
        """Free the arrays; those to allocate in their place, for all rows."""
        self._unshare()
        self.arrays, self.held = (), self.count
        return self._specs(self.count)

    def _enough(self, end: int) -> int:
        """The rows of arrays with room for `end`: the next power of two, at most all."""
        return min(1 << (end - 1).bit_length(), self.count)

    def _specs(self, rows: int) -> list[Spec]:
        B, H = self._heads
        return [((B, H, padded(rows, B * H * p.width * p.dtype.size), p.width), p.dtype) for p in self._planes]

    def _blank(self, rows: int) -> Parts:
        return tuple(mx.zeros(*spec) for spec in self._specs(rows))

    def _unshare(self) -> None:
        if self.is_shared:
            self._holders.discard(self)
            self._holders = weakref.WeakSet([self])

    def put(self, start: int, x: mx.array) -> None:
        """Write rows `x` (B, n_kv_heads, S, width) in place, beginning at row `start`; `make_room` first."""
        # MLX takes twice as long to read an index with `...`, and this is called for every layer of every step.
        end = start + x.shape[2]
        if self.codec.bits is None:
            self.arrays[0][:, :, start:end] = x
            return
        for array, part in zip(self.arrays, self.codec.encode(x), strict=True):
            array[:, :, start:end] = part

    def put_parts(self, start: int, parts: Sequence[mx.array]) -> None:
        end = start + parts[0].shape[-2]
        self.make_room(max(end, self.held), self.held)
        for array, part in zip(self.arrays, parts, strict=True):
            array[:, :, start:end] = part

    def replace(self, buffer: mx.array) -> None:
        """Replace the first array by one of the same shape.

        Raises:
            CacheError: it has another shape.
        """
        if buffer.shape != self.arrays[0].shape:
            raise CacheError(f"A buffer of {buffer.shape} cannot replace one of {self.arrays[0].shape}.")
        self._unshare()
        self.arrays = (buffer, *self.arrays[1:])

    def parts(self, start: int, end: int) -> Parts:
        """Views of rows [start, end): drop them before the next write, which would otherwise copy the buffer."""
        return tuple(array[:, :, start:end] for array in self.arrays)

    def dense(self, start: int, end: int) -> mx.array:
        """Rows [start, end) as numbers: a view, or decoded into a temporary."""
        return self.codec.decode(self.parts(start, end))

    def fork(self) -> Rows:
        """An independent buffer, shared until one side writes."""
        twin = copy.copy(self)
        # New array objects: `a[...] = x` changes the Python object that both sides would otherwise hold.
        twin.arrays = tuple(mx.array(a) for a in self.arrays)
        twin._holders.add(twin)
        return twin


def padded(rows: int, row_nbytes: int) -> int:
    """The rows to allocate for `rows`, so that their bytes are whole pages; `rows` where they need less than a page, or
    too many more."""
    step = PAGE // math.gcd(PAGE, row_nbytes) if row_nbytes else 1
    more = -rows % step
    return rows + more if rows * row_nbytes > PAGE and more <= _MOST_PADDING * rows else rows


@dataclass(frozen=True)
class Move:
    """`count` rows of a buffer to be copied within it, from row `source` to row `target`."""

    rows: Rows
    source: int
    target: int
    count: int


def move(moves: Sequence[Move], also: Sequence[mx.array] = ()) -> None:
    """Copy rows within their buffers, with one evaluation of all reads, `also` among them, and one of all writes.

    The reads are evaluated first: a pending one would hold its buffer, and the write would then copy all of it.
    """
    blocks = [
        [mx.contiguous(array[..., m.source : m.source + m.count, :]) for array in m.rows.arrays] for m in moves
    ]  # fmt: skip
    if moves or also:
        mx.eval(blocks, list(also))
    for m, parts in zip(moves, blocks, strict=True):
        m.rows.put_parts(m.target, parts)
    if moves:
        mx.eval([m.rows.arrays for m in moves])


def concatenated(segments: Sequence[Parts]) -> Parts:
    """Consecutive rows, concatenated."""
    return tuple(mx.contiguous(mx.concatenate(list(parts), axis=2)) for parts in zip(*segments, strict=True))
