"""CacheConfig: the options of a KV cache, and the ring geometry that follows from them. Pure values; no MLX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Literal

from mlxkv.arguments import keywords, shown, whole
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.config import Settings
from mlxkv.errors import ConfigError

MAX_DEFAULT_WINDOW = 32_768
DEFAULT_SINKS = 4
_DEFAULT_SLACK = 512
MAX_WINDOW = 2**24
MAX_BYTES = 2**50
_PAIR = re.compile("[84]/[84]")


@keywords
@dataclass(frozen=True)
class CacheConfig:
    """A bounded KV cache.

    Args:
        window: tokens attended beyond the sinks, rounded up to whole blocks; None picks the largest power of two that
            fits this machine's memory, at most the model's trained length and 32,768.
        sinks: first tokens, which are never evicted; "system" pins all tokens before the first message: the
            system prompt, and text that the template adds there (at least 4 tokens, at most the first quarter of
            the window).
        block: tokens evicted at a time; None means 256 for a window of 4,096 or more, else about a sixteenth of it.
        slack: tokens that can at least be rewound once the window is full, rounded up to blocks; None means about
            512, at most a quarter of the window.
        bits: None keeps the model's own precision; 8, 4 or a pair (keys, values), also written "8/4", quantizes.
        group_size: numbers that share a scale when quantized.
        positions: "streaming" keeps the sinks at the distance they would have without the evicted tokens
            (StreamingLLM, arXiv 2309.17453); "absolute" lets them drift away.
        checkpoint_bytes: memory for earlier states of recurrent layers, to rewind to; at least one is kept. None means
            the larger of a quarter of the rows' memory and six states.

    Raises:
        ConfigError: a field has an invalid value; the message names field, value and rule.
    """

    window: int | None = None
    sinks: int | Literal["system"] = "system"
    block: int | None = None
    slack: int | None = None
    bits: int | tuple[int, int] | str | None = None
    group_size: int = 64
    positions: Literal["streaming", "absolute"] = "streaming"
    checkpoint_bytes: int | None = None

    def __post_init__(self) -> None:
        bounds = {
            "window": (1, MAX_WINDOW),
            "block": (1, MAX_WINDOW // 2),
            "slack": (0, MAX_WINDOW),
            "checkpoint_bytes": (0, MAX_BYTES),
        }
        for name, (low, high) in bounds.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value, low, high))
        if not _is(self.sinks, "system"):
            object.__setattr__(self, "sinks", whole("sinks", self.sinks, 0, MAX_WINDOW, word=' or "system"'))
        object.__setattr__(self, "bits", _bits(self.bits))
        if whole("group_size", self.group_size) not in (32, 64):
            raise ConfigError(f"`group_size` is {shown(self.group_size)}; it must be 32 or 64.")
        object.__setattr__(self, "group_size", int(self.group_size))
        if not _is(self.positions, "streaming", "absolute"):
            raise ConfigError(f'`positions` is {shown(self.positions)}; it must be "streaming" or "absolute".')

    @property
    def named_bits(self) -> int | str | None:
        """`bits` as the setting writes them: None, 8, 4 or "8/4"."""
        return named_bits(self.bits)

    @property
    def key_and_value_bits(self) -> tuple[int | None, int | None]:
        """The bits of keys and of values; None is the model's own precision."""
        assert not isinstance(self.bits, str)  # a pair since __post_init__
        return self.bits if isinstance(self.bits, tuple) else (self.bits, self.bits)

    @classmethod
    def from_settings(cls, settings: Settings) -> CacheConfig:
        """The cache that the user's settings describe."""
        return cls(
            window=settings.window,
            sinks=settings.sinks,  # type: ignore[arg-type]
            bits=settings.kv_bits,
            checkpoint_bytes=settings.checkpoint_bytes,
        )

    @classmethod
    def chosen(cls, settings: Settings) -> CacheConfig | None:
        """`from_settings`, None if the user set none of them: a resumed chat then keeps its own."""
        return cls.from_settings(settings) if settings.bounds_cache else None

    @classmethod
    def from_table(cls, table: Mapping[str, Any] | None) -> CacheConfig:
        """Read a saved table, with JSON's lists for tuples; unknown names (of other versions) are ignored."""
        known = {f.name for f in fields(cls)}
        found = ((name, value) for name, value in (table or {}).items() if name in known)
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found}
        return cls(**values)

    def default_window(self, trained_length: int | None, bytes_per_token: int, budget: int) -> int:
        """The default window: a power of two within the trained length, 32,768 and `budget` bytes."""
        most = min(trained_length or MAX_DEFAULT_WINDOW, MAX_DEFAULT_WINDOW)
        if bytes_per_token:
            most = min(most, budget // bytes_per_token)
        return 2 ** int(math.log2(max(most, 64)))

    def geometry(self, window: int, system_tokens: int = 0) -> Geometry:
        """The ring of the full-attention layers, with `system_tokens` before the first message."""
        block = self.block or default_block(window)
        rounded = max(-(-window // block), 2) * block
        slack = min(_DEFAULT_SLACK, rounded // 4) if self.slack is None else self.slack
        undo = -(-slack // block) if self.slack is not None else max(slack // block, 1)
        sinks = min(max(system_tokens, DEFAULT_SINKS), rounded // 4) if self.sinks == "system" else self.sinks
        return Geometry(sinks, rounded, block, undo)

    def native_geometry(self, native_window: int, slack: int, sinks: int = 0) -> Geometry:
        """The ring of a layer trained with a sliding window: at least that many tokens beyond its sinks."""
        block = max(16, 2 ** int(math.log2(max(native_window // 8, 1))))
        blocks = max(-(-(native_window + block - 1) // block), 2)
        return Geometry(sinks, blocks * block, block, -(-slack // block))


def default_block(window: int) -> int:
    """256 for windows of 4,096 or more, else the power of two nearest a sixteenth, between 16 and 256."""
    if window >= 4096:
        return 256
    return min(max(2 ** round(math.log2(max(window / 16, 1))), 16), 256)


def _is(value: object, *words: str) -> bool:
    return isinstance(value, str) and value in words


def named_bits(bits: Any) -> int | str | None:
    """The bits of a config, which may come from a file, as the setting writes them: a pair is "8/4"."""
    if not isinstance(bits, list | tuple):
        return bits
    return bits[0] if len({*bits}) == 1 else "/".join(map(str, bits))


def _bits(bits: Any) -> int | tuple[int, int] | None:
    """None, 8 or 4, or a pair of these, as a tuple."""
    if bits is None:
        return None
    if isinstance(bits, str) and _PAIR.fullmatch(bits):
        return int(bits[0]), int(bits[2])
    is_pair = isinstance(bits, list | tuple)
    found: list[int] = []
    with suppress(ConfigError):  # reported below
        found = [whole("bits", n, 4, 8) for n in (bits if is_pair else (bits,))]
    if len(found) != (2 if is_pair else 1) or not {*found} <= {4, 8}:
        raise ConfigError(
            f'`bits` is {shown(bits)}; it must be None, 4, 8 or a pair of these like (8, 4), which "8/4" means too.'
        )
    return (found[0], found[1]) if is_pair else found[0]
