"""Rows of a reply that ended in a batch, back into a cache of ours. On the MLX thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.ring import RingKVCache


def take_rows(cache: PromptCache, ids: Sequence[int], layers: Sequence[Any]) -> bool:
    """Make `cache` hold the tokens of mlx-lm's caches of one row, which begin `ids`; whether that is possible.

    It is not if a layer keeps something other than keys and values, or has evicted rows; the cache is unchanged then.
    """
    pairs = list(zip(leaves(cache.layers), leaves(layers), strict=True))
    lengths = {_num_rows(native) for ring, native in pairs if isinstance(ring, RingKVCache)}
    if len(lengths) != 1 or not all(isinstance(ring, RingKVCache) for ring, _ in pairs):
        return False
    (num_tokens,) = lengths
    if not num_tokens or num_tokens > min(len(ids), cache.capacity or num_tokens):
        return False
    cache.reset()
    cache.make_room(num_tokens)
    for ring, native in pairs:
        ring.update_and_fetch(native.keys, native.values)
    mx.eval([layer.state for layer in cache.layers])
    cache.advance(ids[:num_tokens])
    return True


def _num_rows(native: Any) -> int:
    """The tokens that a cache of mlx-lm has all rows of; 0 if it has not."""
    keys = getattr(native, "keys", None)
    is_plain = type(native).__name__ in ("KVCache", "RotatingKVCache")
    return native.offset if is_plain and keys is not None and keys.shape[-2] == native.offset else 0
