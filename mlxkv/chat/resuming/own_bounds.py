"""Whether the KV cache that a chat's own settings ask for can be made here: the chat may come from a larger machine."""

from __future__ import annotations

from collections.abc import Callable

from mlxkv.cache.config import CacheConfig
from mlxkv.errors import MlxkvError


def fitting(config: CacheConfig | None, make_cache: Callable[[CacheConfig], object]) -> tuple[CacheConfig | None, str]:
    """`config`, or None if its cache cannot be made, and then a sentence why.

    Args:
        make_cache: makes an empty cache, or raises an MlxkvError.
    """
    try:
        if config is not None:
            make_cache(config)
    except MlxkvError as error:
        return None, f"{error} So this chat's own size of the KV cache is left out."
    return config, ""
