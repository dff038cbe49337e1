"""Protocols that a KV cache implements for the store, which moves rows in and out as bytes.

The cache layer implements them (mlxkv.cache.prompt_cache); tests use a small fake. No MLX at import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlxkv.cache.interchange import Places
from mlxkv.cache.peers import Peers

if TYPE_CHECKING:
    import mlx.core as mx

Range = tuple[int, int]
"""Positions [a, b)."""


@runtime_checkable
class RowPlaces(Protocol):
    """Optional part of a LayerGroup besides `import_rows`: places to read rows into without a copy."""

    def places(self, a: int, b: int, parts: Sequence[Range]) -> Places:
        """Places for `parts` of the rows [a, b) of a whole chunk. Drop them before the cache is used."""
        ...

    def mark_imported(self, a: int, b: int) -> None:
        """Note that the rows [a, b) were read into their places."""
        ...


@runtime_checkable
class RowViews(Protocol):
    """Optional part of a LayerGroup besides `export_rows`: views of rows, without a copy by MLX."""

    def views(self, a: int, b: int) -> Mapping[str, Sequence[memoryview]]:
        """The bytes of [a, b) for each tensor of `shapes`, as pieces in order. Drop them before the cache is used: it
        writes into the same memory."""
        ...


@runtime_checkable
class RecurrentStates(Protocol):
    """A LayerGroup of whole recurrent states instead of rows: the state after p tokens counts as the row [p - 1, p)."""

    @property
    def prefixes(self) -> Sequence[int]:
        """Positions of states where parts end that other chats begin with too."""
        ...


class LayerGroup(Protocol):
    """Layers that hold the same positions, e.g. all full-attention layers. Axis -2 of every tensor is rows."""

    @property
    def name(self) -> str:
        """Matches `[a-z0-9.]{1,64}`."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of one position over all layers of the group."""
        ...

    @property
    def sinks(self) -> int:
        """Rows pinned at the front."""
        ...

    @property
    def block(self) -> int:
        """Rows per ring block."""
        ...

    def held(self) -> list[Range]:
        """Ranges that can be exported now, ascending and disjoint: [0, sinks) and [first, offset)."""
        ...

    def required(self, offset: int) -> list[Range]:
        """Ranges that must be imported to continue at `offset`."""
        ...

    def optional(self, offset: int) -> list[Range]:
        """Evicted blocks that make it rewindable again; each range is imported whole or not at all."""
        ...

    def shapes(self, rows: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Exactly the tensors of a chunk of `rows` rows: {"0.k": ((1, 4, rows, 8), "F32"), ...}, safetensors types."""
        ...

    def export_rows(self, a: int, b: int) -> Mapping[str, mx.array]:
        """Contiguous, evaluated copies of the rows of [a, b), which is within one range of `held()`."""
        ...

    def import_rows(self, a: int, b: int, arrays: dict[str, mx.array]) -> None:
        """Take the rows of [a, b), a part of one range of `required` or `optional`; called in ascending order."""
        ...


class KVCacheLike(Protocol):
    """All layers and the token log; `offset == len(log)`."""

    @property
    def peers(self) -> Peers | None:
        """None: this process has the whole model."""
        ...

    @property
    def log(self) -> Sequence[int]: ...

    @property
    def groups(self) -> Sequence[LayerGroup]: ...

    def layout(self) -> Mapping[str, Any]:
        """Everything that determines the meaning of a row's bytes, besides the model, as JSON values."""
        ...

    def reset(self) -> None: ...

    def begin_restore(self, ids: Sequence[int]) -> None: ...

    def finish_restore(self) -> None:
        """End a restore after all required rows; on any error before, the caller calls `reset()`."""
        ...
