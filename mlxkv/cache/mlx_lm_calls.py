"""ForeignCalls: what mlx-lm's functions may ask of a cache and a ring cannot give, each refused in one sentence.

mlx-lm saves, quantizes and batches caches of its own classes only: its loader finds a class by name in its own module,
and its batches have no eviction. A ring has nothing to be turned into there without losing its bounds, so it says how a
cache of mlx-lm's own is made of it. Used by `ring.RingKVCache`; on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Self

from mlxkv.cache.rows import Codec
from mlxkv.errors import CacheError

_EXPORT = "write it with `PromptCache.export_mlx_lm(path)` and give mlx-lm what its `load_prompt_cache(path)` returns"


class _Unsaved:
    """Stands in `state` beside the arrays. `mx.eval` passes it over; `save_prompt_cache` quotes what it cannot save."""

    def __format__(self, spec: str) -> str:
        raise CacheError(f"mlx-lm cannot save mlxkv's caches, since it could not load them again; {_EXPORT}.")

    __str__ = __repr__ = lambda self: format(self)  # type: ignore[assignment]


UNSAVED = _Unsaved()


class ForeignCalls:
    """`key_codec` and `value_codec` are the ring's."""

    key_codec: Codec
    value_codec: Codec

    @property
    def meta_state(self) -> NoReturn:
        """What `save_prompt_cache` before mlx-lm 0.32 asks for."""
        format(UNSAVED)
        raise AssertionError

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Self:
        """What `kv_bits` of mlx-lm's loops calls: this cache where its rows are quantized so already.

        Raises:
            CacheError: they are not.
        """
        if self.key_codec == self.value_codec == Codec(bits, group_size):
            return self
        raise CacheError(
            f"mlx-lm cannot quantize mlxkv's caches and keep their window; make the cache with "
            f"`CacheConfig(bits={bits}, group_size={group_size})` and leave `kv_bits` out, or {_EXPORT}."
        )

    def merge(self, caches: Sequence[Any]) -> NoReturn:
        _refuse_batch()

    def filter(self, *args: object, **kwargs: object) -> NoReturn:
        _refuse_batch()

    extend = extract = prepare = finalize = filter


def _refuse_batch() -> NoReturn:
    raise CacheError(f"mlx-lm cannot batch mlxkv's caches, whose windows rotate in place; {_EXPORT}.")
