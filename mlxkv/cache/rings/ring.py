"""RingKVCache: one layer's keys and values in buffers that are allocated once and rotate in place.

It implements mlx-lm's cache protocol, so every mlx-lm model and loop can use it. `geometry.py` maps positions to rows,
`rows.py` stores them (`quantized.py` is the same ring in 8 or 4 bits), `flushes.py` evicts a block and reverses that,
`sink_rotation.py` moves the sinks, `masks.py` has masks and calls that cross a block boundary, `plan.py` decides the
size. On the MLX thread.

Writes are in place: `buffer[..., a:b, :] = x` makes no copy while nothing else holds the buffer, so no view may outlive
the attention call that reads it.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

import mlx.core as mx

from mlxkv.cache.rings import flushes
from mlxkv.cache.rings.geometry import Geometry, Segment
from mlxkv.cache.rings.masks import gather, gather_mask, mask_of, row_positions
from mlxkv.cache.rings.mlx_lm_calls import UNSAVED, refuse_batch, refuse_quantizing, refuse_saving
from mlxkv.cache.rings.rows import PLAIN, Codec, Parts, Rows, concatenated
from mlxkv.cache.rings.sink_rotation import SinkRotation
from mlxkv.errors import CacheError, RewindError

NEVER = 1 << 62  # an offset that no cache reaches


class RingKVCache:
    """A preallocated ring of `geometry.rows` rows with pinned attention sinks.

    Args:
        geometry: rows of the ring; see `geometry.Geometry`.
        rotation: moves the sinks' keys; None leaves them at their absolute positions.
        native_window: a sliding-window layer sees exactly this many tokens (itself included), as it was trained, and
            the sinks, where its geometry has any.
        key_codec, value_codec: how rows are stored.
        is_shared: layers without a cache of their own read this one after each call (`keys_and_values`).

    Attributes:
        undo_blocks: valid blocks in the undo area.
        is_evicted_ahead: the block that the next token evicts is evicted already; the next write clears this.
        is_intact: False while blocks move.
        is_forked: a write may have to make room before: the buffers are shared with a fork, or not of full size yet.
        max_positions: the tokens that the model has learned positions for; None where it has no table of them.
    """

    def __init__(
        self,
        geometry: Geometry,
        rotation: SinkRotation | None = None,
        native_window: int | None = None,
        key_codec: Codec = PLAIN,
        value_codec: Codec = PLAIN,
        is_shared: bool = False,
    ) -> None:
        self.geometry = geometry
        self.rotation = rotation if geometry.sinks else None
        self.native_window = native_window
        self.key_codec, self.value_codec = key_codec, value_codec
        self.key_rows: Rows | None = None  # (B, n_kv_heads, rows, head_dim)
        self.value_rows: Rows | None = None  # (B, n_kv_heads, rows, v_head_dim)
        self.pristine: Parts | None = None  # the sinks' keys as first written, (B, n_kv_heads, sinks, head_dim)
        self.offset = 0
        self.undo_blocks = 0
        self.is_evicted_ahead, self.is_intact, self.is_forked = False, True, False
        self.is_shared = is_shared
        self.max_positions: int | None = None
        self._crossed: tuple[mx.array, mx.array] | None = None  # rows that the last call across a boundary attended to
        self._positions_at = -1  # number of flushes that `_slot_positions` is valid for
        self._slot_positions = mx.zeros((0,), mx.int32)  # position of each row, for array masks

    # -- mlx-lm's protocol -------------------------------------------------------------------------------------------

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Append S tokens and return what they attend to.

        `keys` (B, n_kv_heads, S, head_dim), `values` likewise. A call inside one block is written in place and
        returns a prefix of the buffers; a call across a block boundary (mlx-lm's own loops) concatenates for this
        layer, with the array mask that `make_mask` made, and leaves the ring as if the call had been cut.

        Raises:
            CacheError: the tokens end beyond `max_positions`; nothing was computed or written.
        """
        S = keys.shape[2]
        if self.max_positions is not None and self.offset + S > self.max_positions:
            raise CacheError(
                f"This model has learned positions for {self.max_positions:,} tokens, and this call ends at "
                f"{self.offset + S:,}; end the reply there, or start a new chat with a shorter prompt."
            )
        self._crossed = None
        if self.key_rows is None:
            self.allocate(keys.shape, values.shape[-1], keys.dtype, values.dtype)
        row, room = self.geometry.next_row(self.offset)
        if S > room:
            if self.is_evicted_ahead:  # a model that feeds more tokens than it was given
                flushes.undo([self])
            fetched = gather(self, keys, values)
            self._crossed = fetched if self.is_shared else None
            done = 0
            while done < S:
                row, room = self.geometry.next_row(self.offset)
                step = min(S - done, room)
                self._write(row, keys[..., done : done + step, :], values[..., done : done + step, :])
                done += step
            return fetched
        self._write(row, keys, values)
        return self._fetch(row + S)

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:
        """The mask for the next N tokens: None, "causal", or a boolean array (N, rows that will be fetched)."""
        if N > self.geometry.tokens_to_boundary(self.offset):
            return gather_mask(self, N, window_size)
        return mask_of(self, N, window_size, return_array)

    @property
    def state(self) -> list[Any]:
        """The arrays, for mx.eval; saving them is refused (see `mlx_lm_calls`)."""
        return [*self._arrays, UNSAVED]

    @property
    def meta_state(self) -> NoReturn:
        """Asked for by `save_prompt_cache` before mlx-lm 0.32."""
        refuse_saving()

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Self:
        """This cache if its rows are quantized so already; called for `kv_bits` of mlx-lm's loops.

        Raises:
            CacheError: they are not.
        """
        if self.key_codec != self.value_codec or self.key_codec != Codec(bits, group_size):
            refuse_quantizing(group_size, bits)
        return self

    merge = filter = extend = extract = prepare = finalize = refuse_batch

    @property
    def _arrays(self) -> list[mx.array]:
        if self.key_rows is None:
            return []
        return [*self._keys.arrays, *self._values.arrays, *(self.pristine or ())]

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Rewind by `n` tokens, exactly.

        Raises:
            RewindError: the rows to rewind to are no longer in the undo area.
        """
        n = min(n, self.offset)
        if n > self.rewindable:
            raise RewindError(
                f"Rewinding {n} tokens needs rows that were evicted: this cache can rewind {self.rewindable}; "
                f"raise `slack` or prefill again."
            )
        self._crossed = None
        flushes.rewind([self], n)
        return n

    def size(self) -> int:
        return self.geometry.live(self.offset)

    def empty(self) -> bool:
        return self.key_rows is None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        held = (self.key_rows, self.value_rows)
        return sum(rows.nbytes for rows in held if rows is not None) + sum(x.nbytes for x in self.pristine or ())

    def keys_and_values(self) -> tuple[Any, Any]:
        """The attended rows as numbers, for layers that share another layer's cache."""
        if self._crossed is not None:
            return self._crossed
        live = self.geometry.live(self.offset)
        return self._keys.dense(0, live), self._values.dense(0, live)

    @property
    def keys(self) -> mx.array | None:
        """The buffer (packed numbers of quantized rows). Models with an indexer set it to tie the evaluation of one
        cache to another's (`mx.depends`), or clear it where they never read it."""
        return None if self.key_rows is None else self.key_rows.arrays[0]

    @keys.setter
    def keys(self, buffer: mx.array) -> None:
        self._keys.replace(buffer)

    @property
    def values(self) -> mx.array | None:
        """Likewise; an indexer clears the values it never reads by zeros of the shape of its keys."""
        return None if self.value_rows is None else self.value_rows.arrays[0]

    @values.setter
    def values(self, buffer: mx.array) -> None:
        own = self._values.arrays[0]
        self._values.replace(buffer if buffer.shape == own.shape else mx.zeros_like(own))

    # -- beyond that protocol -----------------------------------------------------------------------------------------

    @property
    def rewindable(self) -> int:
        """Tokens that `trim` can rewind now."""
        return self.offset - self.geometry.rewind_floor(self.offset, self.undo_blocks)

    @property
    def evicted(self) -> int:
        """Tokens that were evicted."""
        return self.geometry.flushes(self.offset) * self.geometry.block

    def live_nbytes(self, num_tokens: int) -> int:
        """Bytes of the rows attended after `num_tokens` of those fed."""
        if self.key_rows is None:
            return 0
        return (self._keys.row_nbytes + self._values.row_nbytes) * self.geometry.live(min(num_tokens, self.offset))

    @property
    def shared_nbytes(self) -> int:
        """Bytes of the buffers shared with a fork."""
        return sum(rows.shared_nbytes for rows in (self.key_rows, self.value_rows) if rows is not None)

    def growth(self, num_tokens: int) -> int:
        """Bytes that feeding so many tokens allocates: the copy of a fork's rows, and what a fork grows by."""
        return sum(rows.growth(self._rows_for(self.offset + num_tokens)) for rows in self.buffers)

    @property
    def room(self) -> int:
        """The offset up to which `make_room` does nothing; 0 while the buffers are shared."""
        if self.key_rows is None or any(rows.is_shared for rows in self.buffers):
            return 0
        held = min(rows.held for rows in self.buffers)
        return held if held < self.geometry.rows else NEVER

    def make_room(self, num_tokens: int) -> None:
        """Before `num_tokens` more: make the buffers this ring's own, and large enough.

        A ring that has evicted nothing copies only the rows in use, and grows from then on; else it copies all.
        """
        has_evicted = self.evicted or self.undo_blocks or self.is_evicted_ahead
        live = self.geometry.rows if has_evicted else self.offset
        for rows in self.buffers:
            rows.make_room(self._rows_for(self.offset + num_tokens), live)
        self.is_forked = self.room < NEVER

    def _rows_for(self, offset: int) -> int:
        """Rows of a buffer that holds `offset` tokens: a prefix of them until blocks move."""
        moves = offset > self.geometry.capacity or self.evicted or self.undo_blocks or self.is_evicted_ahead
        return self.geometry.rows if moves else offset

    def fork(self) -> Self:
        """An independent copy; the buffers are shared until one side writes, which copies the rows in use."""
        twin = copy.copy(self)
        if self.key_rows is not None:
            twin.key_rows, twin.value_rows = self._keys.fork(), self._values.fork()
            self.is_forked = twin.is_forked = True
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A fork, without a second rope: mlx-lm's server copies prompt caches like this."""
        return self.fork()

    def reset(self) -> None:
        """Forget all tokens; the buffers stay allocated."""
        self.offset = self.undo_blocks = 0
        self.is_evicted_ahead, self.is_intact, self._crossed = False, True, None

    def allocate(self, key_shape: tuple[int, ...], v_dim: int, k_dtype: mx.Dtype, v_dtype: mx.Dtype) -> None:
        """Make the buffers, once. `key_shape` is (B, n_kv_heads, any, head_dim)."""
        B, H, _, D = key_shape
        rows = self.geometry.rows
        self.key_rows = Rows((B, H, rows, D), k_dtype, self.key_codec)
        self.value_rows = Rows((B, H, rows, v_dim), v_dtype, self.value_codec)
        if self.rotation is not None:
            self.pristine = Rows((B, H, self.geometry.sinks, D), k_dtype, self.key_codec).arrays

    def read(self, a: int, b: int) -> tuple[Parts, Parts]:
        """Positions [a, b) of keys and values, sinks pristine. They must be held; evaluate before the next write."""
        segments = list(self.geometry.segments(a, b, self.offset))
        keys = concatenated([self._key_parts(s) for s in segments])
        values = concatenated([self._values.parts(s.row, s.row + s.b - s.a) for s in segments])
        return keys, values

    def row_spans(self, a: int, b: int) -> list[list[tuple[mx.array, int, int]]]:
        """The rows of positions [a, b), as `read` would return them: for each array of keys, then of values, spans
        (buffer, first row, rows). The positions must be held; drop the spans before the ring is written to."""
        out: list[list[tuple[mx.array, int, int]]] = []
        for s in self.geometry.segments(a, b, self.offset):
            in_pristine = self.evicted and self.pristine is not None and s.b <= self.geometry.sinks
            keys, first = (self.pristine or (), s.a) if in_pristine else (self._keys.arrays, s.row)
            rows = s.b - s.a
            found = [*((x, first, rows) for x in keys), *((x, s.row, rows) for x in self._values.arrays)]
            out = [[*piece, more] for piece, more in zip(out, found, strict=True)] if out else [[x] for x in found]
        return out

    def write_at(self, a: int, b: int, offset: int, keys: Parts, values: Parts) -> None:
        """Write positions [a, b) from `read` to their rows after `offset` tokens; call `finish_restore` at the end."""
        for s in self.geometry.segments(a, b, offset):
            for rows, parts in ((self._keys, keys), (self._values, values)):
                rows.put_parts(s.row, [part[..., s.a - a : s.b - a, :] for part in parts])

    def finish_restore(self, offset: int, undo_blocks: int) -> None:
        """Continue from `offset`; `write_at` has written every required row."""
        self.offset, self.undo_blocks = offset, undo_blocks
        if self.evicted:
            mx.eval(self.keep_pristine())
            self.place_sinks(self.evicted)

    def positions(self, offset: int) -> mx.array:
        """(live,) the position of each attended row after `offset` tokens (int32)."""
        flushes = self.geometry.flushes(offset)
        if flushes != self._positions_at:  # they change with a flush only: not in every decode step
            self._positions_at, self._slot_positions = flushes, row_positions(self.geometry, flushes)
        return self._slot_positions[: self.geometry.live(offset)]

    # -- moving rows -------------------------------------------------------------------------------------------------

    @property
    def buffers(self) -> tuple[Rows, Rows]:
        """Keys and values.

        Raises:
            CacheError: nothing was fed yet.
        """
        return self._keys, self._values

    @property
    def _keys(self) -> Rows:
        return _allocated(self.key_rows)

    @property
    def _values(self) -> Rows:
        return _allocated(self.value_rows)

    def _fetch(self, live: int) -> tuple[Any, Any]:
        """The rows that the tokens just written attend to: the first `live` of the buffers."""
        assert self.key_rows is not None
        assert self.value_rows is not None
        return self.key_rows.arrays[0][:, :, :live], self.value_rows.arrays[0][:, :, :live]

    def _write(self, row: int, keys: mx.array, values: mx.array) -> None:
        """Write tokens that fit before the next boundary to their rows, from `row` on."""
        # Each call costs time in every layer of every step: as few as possible here.
        assert self.key_rows is not None
        assert self.value_rows is not None
        geometry, S = self.geometry, keys.shape[2]
        if self.is_forked:
            self.make_room(S)
        if row == geometry.current and self.offset >= geometry.capacity and not self.is_evicted_ahead:
            flushes.flush([self])
        self.is_evicted_ahead = False
        self.offset += S
        self.key_rows.put(row, keys)
        self.value_rows.put(row, values)

    def keep_pristine(self) -> Parts:
        """Keep copies of the sinks' keys, which the first flush rotates; evaluate them before."""
        if self.pristine is None:
            return ()
        self.pristine = tuple(mx.contiguous(part) for part in self._keys.parts(0, self.geometry.sinks))
        return self.pristine

    def place_sinks(self, evicted: int) -> None:
        """Move the sinks' keys to the distance they would have without the evicted tokens."""
        if self.rotation is None or self.pristine is None:
            return
        if evicted:
            self._keys.put_parts(0, self.key_codec.encode(self.rotation(self.key_codec.decode(self.pristine), evicted)))
        else:
            self._keys.put_parts(0, self.pristine)

    def _key_parts(self, s: Segment) -> Parts:
        if self.evicted and self.pristine is not None and s.b <= self.geometry.sinks:
            return tuple(part[..., s.a : s.b, :] for part in self.pristine)
        return self._keys.parts(s.row, s.row + s.b - s.a)


def _allocated(rows: Rows | None) -> Rows:
    if rows is None:
        raise CacheError("This cache is empty; prefill it before reading its rows.")
    return rows
