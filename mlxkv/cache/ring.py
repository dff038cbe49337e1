"""RingKVCache: one layer's keys and values in buffers that are allocated once and rotate in place.

It speaks mlx-lm's cache protocol, so every mlx-lm model and loop can use it. Where rows lie is `geometry.py`, the
sinks' positions are `positions.py`, calls that cross a block boundary `crossing.py`, how large a ring should be
`plan.py`. Used on the thread that owns MLX.

The rule that keeps writes in place: `buffer[..., a:b, :] = x` is done without a copy only while nobody else holds
the buffer, so no view outlives the attention call that reads it.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx

from mlxkv.cache.crossing import gather, gather_mask, row_positions
from mlxkv.cache.geometry import Geometry
from mlxkv.cache.positions import SinkRotation
from mlxkv.errors import CacheError, RewindError


class RingKVCache:
    """A preallocated ring of `geometry.rows` rows with pinned attention sinks.

    Args:
        geometry: rows of the ring; see `geometry.Geometry`.
        rotation: moves the sinks' keys; None keeps their absolute positions.
        native_window: a sliding-window layer sees exactly this many tokens (itself included), as it was trained.
    """

    def __init__(
        self, geometry: Geometry, rotation: SinkRotation | None = None, native_window: int | None = None
    ) -> None:
        self.geometry = geometry
        self.rotation = rotation if geometry.sinks else None
        self.native_window = native_window
        self.keys: mx.array | None = None  # (B, n_kv_heads, rows, head_dim)
        self.values: mx.array | None = None  # (B, n_kv_heads, rows, v_head_dim)
        self.pristine: mx.array | None = None  # (B, n_kv_heads, sinks, head_dim), as first written
        self.offset = 0
        self.undo_blocks = 0  # valid blocks in the undo area
        self._positions_at = -1  # flushes that `_slot_positions` belong to
        self._slot_positions = mx.zeros((0,), mx.int32)  # position of each row, for array masks

    # -- mlx-lm's protocol -------------------------------------------------------------------------------------------

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append S tokens and return what they attend to.

        `keys` (B, n_kv_heads, S, head_dim), `values` likewise. A call inside one block is written in place and
        returns a prefix of the buffers; a call across a block boundary (callers that are not ours) concatenates for
        this layer, with the array mask that `make_mask` made, and leaves the ring as if it had been cut.
        """
        S = keys.shape[2]
        if self.keys is None:
            self.allocate(keys.shape, values.shape[-1], keys.dtype, values.dtype)
        if S > self.geometry.room(self.offset):
            fetched = gather(self, keys, values)
            done = 0
            while done < S:
                step = min(S - done, self.geometry.room(self.offset))
                self._write(keys[..., done : done + step, :], values[..., done : done + step, :])
                done += step
            return fetched
        live = self._write(keys, values)
        return self._keys[..., :live, :], self._values[..., :live, :]

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:
        """The mask for the next N tokens: None, "causal", or a boolean array (N, rows that will be fetched)."""
        window = min((w for w in (self.native_window, window_size) if w is not None), default=None)
        geometry, offset = self.geometry, self.offset
        if N > geometry.room(offset):
            return gather_mask(self, N, window)
        if window is not None and offset + N > window:
            rows = self._positions(offset + N)
            queries = mx.arange(offset, offset + N)[:, None]
            return (rows <= queries) & (rows > queries - window)
        if N == 1:
            return None
        if not return_array:
            return "causal"
        return self._positions(offset + N) <= mx.arange(offset, offset + N)[:, None]

    @property
    def state(self) -> list[mx.array]:
        """The arrays, for mx.eval."""
        return [a for a in (self.keys, self.values, self.pristine) if a is not None]

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens, exactly.

        Raises:
            RewindError: the rows to go back to have left the undo area.
        """
        n = min(n, self.offset)
        if n > self.rewindable:
            raise RewindError(
                f"Rewinding {n} tokens needs rows that have rotated out: this cache can go back {self.rewindable}; "
                f"raise `slack` or prefill again."
            )
        target = self.offset - n
        while self.geometry.flushes(self.offset) > self.geometry.flushes(target):
            self._undo_flush()
        self.offset = target
        return n

    def size(self) -> int:
        return self.geometry.live(self.offset)

    def empty(self) -> bool:
        return self.keys is None

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.state)

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The attended rows, for layers that share another layer's cache."""
        live = self.geometry.live(self.offset)
        return self._keys[..., :live, :], self._values[..., :live, :]

    # -- what mlxkv adds ---------------------------------------------------------------------------------------------

    @property
    def rewindable(self) -> int:
        """Tokens that `trim` can take back now."""
        return self.offset - self.geometry.rewind_floor(self.offset, self.undo_blocks)

    @property
    def evicted(self) -> int:
        """Tokens that have rotated out."""
        return self.geometry.flushes(self.offset) * self.geometry.block

    @property
    def live_nbytes(self) -> int:
        """Bytes of the attended rows."""
        if self.keys is None:
            return 0
        return (self._keys.nbytes + self._values.nbytes) * self.geometry.live(self.offset) // self.geometry.rows

    def fork(self) -> RingKVCache:
        """An independent copy; the buffers are shared until one side writes."""
        twin = copy.copy(self)
        # New array objects: `a[...] = x` changes the Python object that both sides would otherwise hold.
        twin.keys, twin.values, twin.pristine = (
            None if a is None else mx.array(a) for a in (self.keys, self.values, self.pristine)
        )
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> RingKVCache:
        """As mlx-lm's server copies prompt caches: a fork, without a second rope."""
        return self.fork()

    def reset(self) -> None:
        """Forget everything; the buffers stay."""
        self.offset = self.undo_blocks = 0

    def allocate(self, key_shape: tuple[int, ...], v_dim: int, k_dtype: mx.Dtype, v_dtype: mx.Dtype) -> None:
        """Make the buffers, once. `key_shape` is (B, n_kv_heads, any, head_dim)."""
        B, H, _, D = key_shape
        rows = self.geometry.rows
        self.keys = mx.zeros((B, H, rows, D), k_dtype)
        self.values = mx.zeros((B, H, rows, v_dim), v_dtype)
        if self.rotation is not None:
            self.pristine = mx.zeros((B, H, self.geometry.sinks, D), k_dtype)

    def read(self, a: int, b: int) -> tuple[mx.array, mx.array]:
        """Positions [a, b) as contiguous copies, sinks pristine. They must be held (see `held`)."""
        parts = list(self.geometry.segments(a, b, self.offset))
        keys = [self._read_keys(s.a, s.b, s.row) for s in parts]
        values = [self._values[..., s.row : s.row + s.b - s.a, :] for s in parts]
        copies = (mx.contiguous(mx.concatenate(keys, axis=2)), mx.contiguous(mx.concatenate(values, axis=2)))
        mx.eval(copies)
        return copies

    def write_at(self, a: int, b: int, offset: int, keys: mx.array, values: mx.array) -> None:
        """Put positions [a, b) where they lie after `offset` tokens: for restoring, before `settle`."""
        for s in self.geometry.segments(a, b, offset):
            rows, part = slice(s.row, s.row + s.b - s.a), slice(s.a - a, s.b - a)
            self._keys[..., rows, :] = keys[..., part, :]
            self._values[..., rows, :] = values[..., part, :]

    def settle(self, offset: int, undo_blocks: int) -> None:
        """Every needed row has been put back by `write_at`: go on from `offset`."""
        self.offset, self.undo_blocks = offset, undo_blocks
        if self.evicted:
            self._keep_pristine()
            self._place_sinks()

    # -- moving rows -------------------------------------------------------------------------------------------------

    @property
    def _keys(self) -> mx.array:
        if self.keys is None:
            raise CacheError("This cache is empty: feed it tokens before reading it.")
        return self.keys

    @property
    def _values(self) -> mx.array:
        if self.values is None:
            raise CacheError("This cache is empty: feed it tokens before reading it.")
        return self.values

    def _write(self, keys: mx.array, values: mx.array) -> int:
        """Write S tokens that fit before the next boundary; the number of attended rows."""
        geometry, S = self.geometry, keys.shape[2]
        if geometry.blocks_evicted(self.offset) > geometry.flushes(self.offset):
            self._flush()
        self.offset += S
        live = geometry.live(self.offset)
        self._keys[..., live - S : live, :] = keys
        self._values[..., live - S : live, :] = values
        return live

    def _flush(self) -> None:
        """The current block is complete: oldest block to the undo area, current block to its slot, sinks forward."""
        geometry = self.geometry
        n = geometry.flushes(self.offset)  # the block that leaves
        if n == 0:
            self._keep_pristine()
        old, current = geometry.slot_row(n), geometry.current
        if geometry.undo:
            self._move_block(old, geometry.undo_row(n))
        self._move_block(current, old)
        self.undo_blocks = min(self.undo_blocks + 1, geometry.undo)
        self._place_sinks((n + 1) * geometry.block)

    def _undo_flush(self) -> None:
        """Go back to just before the last flush: last ring block to the current area, undo block to its slot."""
        geometry = self.geometry
        n = geometry.flushes(self.offset) - 1  # the block that comes back
        old, R = geometry.slot_row(n), geometry.block
        self._move_block(old, geometry.current)
        self._move_block(geometry.undo_row(n), old)
        self.undo_blocks -= 1
        self.offset = geometry.capacity + n * R
        self._place_sinks(n * R)

    def _move_block(self, source: int, target: int) -> None:
        """Copy one block of rows. Evaluated step by step: a pending read would hold the buffer, and the write would
        then copy all of it; and only one block's copy is alive at a time."""
        R = self.geometry.block
        for buffer in (self._keys, self._values):
            block = mx.contiguous(buffer[..., source : source + R, :])
            mx.eval(block)
            buffer[..., target : target + R, :] = block
            mx.eval(buffer)

    def _keep_pristine(self) -> None:
        if self.pristine is not None:
            self.pristine = mx.contiguous(self._keys[..., : self.geometry.sinks, :])
            mx.eval(self.pristine)  # as in `_move_block`

    def _place_sinks(self, evicted: int | None = None) -> None:
        """Put the sinks' keys at the distance they would have if the evicted tokens had never been."""
        if self.rotation is None or self.pristine is None:
            return
        by = self.evicted if evicted is None else evicted
        self._keys[..., : self.geometry.sinks, :] = self.rotation(self.pristine, by) if by else self.pristine

    def _read_keys(self, a: int, b: int, row: int) -> mx.array:
        if self.evicted and self.pristine is not None and b <= self.geometry.sinks:
            return self.pristine[..., a:b, :]
        return self._keys[..., row : row + b - a, :]

    def _positions(self, offset: int) -> mx.array:
        """(live,) the position that each attended row holds after `offset` tokens (int32)."""
        flushes = self.geometry.flushes(offset)
        if flushes != self._positions_at:  # they change with a flush only: a decode step must not make them anew
            self._positions_at, self._slot_positions = flushes, row_positions(self.geometry, flushes)
        return self._slot_positions[: self.geometry.live(offset)]
