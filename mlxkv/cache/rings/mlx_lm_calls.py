"""Errors for mlx-lm's functions that a ring cannot serve, each in one sentence.

mlx-lm saves, quantizes and batches caches of its own classes only: its loader finds a class by name in its own module,
and its batches have no eviction. A ring converted to one of them would lose its bounds, so the error says how to export
one. For `ring.RingKVCache`; on the MLX thread.
"""

from __future__ import annotations

from typing import NoReturn

from mlxkv.errors import CacheError

_EXPORT = "write it with `PromptCache.export_mlx_lm(path)` and give mlx-lm what its `load_prompt_cache(path)` returns"


class _Unsaved:
    """An entry of `state` beside the arrays: `mx.eval` skips it, `save_prompt_cache` formats what it cannot save."""

    def __format__(self, spec: str) -> str:
        refuse_saving()

    __str__ = __repr__ = lambda self: format(self)  # type: ignore[assignment]


UNSAVED = _Unsaved()


def refuse_saving() -> NoReturn:
    raise CacheError(f"mlx-lm cannot save mlxkv's caches, since it could not load them again; {_EXPORT}.")


def refuse_quantizing(group_size: int, bits: int) -> NoReturn:
    raise CacheError(
        f"mlx-lm cannot quantize mlxkv's caches and keep their window; make the cache with "
        f"`CacheConfig(bits={bits}, group_size={group_size})` and leave `kv_bits` out, or {_EXPORT}."
    )


def refuse_batch(*args: object, **kwargs: object) -> NoReturn:
    raise CacheError(f"mlx-lm cannot batch mlxkv's caches, whose windows rotate in place; {_EXPORT}.")
