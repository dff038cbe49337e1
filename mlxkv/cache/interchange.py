"""Values that a cache exchanges with the store and with mlx-lm: buffers, text, layers. No MLX at import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from mlxkv.cache.rings.rows import Parts

Kind = Literal["KVCache", "RotatingKVCache", "QuantizedKVCache"]
KINDS: tuple[str, ...] = get_args(Kind)
"""The mlx-lm classes that can be read and written; all others are refused."""

OPAQUE = -1
"""In a token log: a token of an imported cache, whose id is unknown. It can be continued, but not prefilled again."""


@dataclass(frozen=True)
class Buffer:
    """The bytes of an array (1, heads, rows, row_bytes), to read rows into. Release it soon: while it is referenced,
    the next token copies the whole array."""

    data: memoryview
    row_bytes: int
    heads: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Places:
    """Destination of a chunk's rows: `spans` of positions [from, to) in order, with the row of the first, None for rows
    to skip; `tensors`: the chunk's arrays by name."""

    spans: tuple[tuple[int, int, int | None], ...]
    tensors: Mapping[str, Buffer]


@dataclass(frozen=True)
class PromptText:
    """The text of the first `num_tokens` of a cache that begins a chat.

    `text` begins the first message after the prompt `system`; `rendered` is what the chat template made of both, with
    `clock` for the time (None: unknown).
    """

    system: str | None
    text: str
    rendered: str
    num_tokens: int
    clock: str | None = None


@dataclass(frozen=True)
class LayerState:
    """One layer in mlx-lm's form. `keys` and `values` are one array (1, n_kv_heads, rows, head_dim), or the packed
    numbers, scales and biases of one. `keep`, `max_size` and `idx` belong to the rotating kind, `group_size` and `bits`
    to the quantized one."""

    kind: Kind
    keys: Parts
    values: Parts
    offset: int
    keep: int = 0
    max_size: int = 0
    idx: int = 0
    group_size: int = 0
    bits: int = 0
