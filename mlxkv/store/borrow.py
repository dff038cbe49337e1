"""Rows of saved chats for what is saved nowhere, a chat with saving off or a prompt cache, that begins as one of them.

Reads what is at hand and writes nothing: no store is made for it, no weights are hashed, nothing says that it was read.
Engine thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mlxkv.config import Folders
from mlxkv.errors import MlxkvError
from mlxkv.store.db.open import DATABASE
from mlxkv.store.identity import FileHashes, ModelIdentity
from mlxkv.store.records import Restored
from mlxkv.store.session_store import SessionStore

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache

FEW = 256  # new tokens; for fewer the disk is not asked


class Lender:
    """Lends to one model.

    Args:
        store: opens the sessions; only asked where there are some.
        identify: what the model is called there, by means of the file hashes given.
    """

    def __init__(
        self, folders: Folders, store: Callable[[], SessionStore], identify: Callable[[FileHashes], ModelIdentity]
    ) -> None:
        self._database, self._store, self._identify = folders.data / DATABASE, store, identify
        self._identity: ModelIdentity | None = None

    def lend(self, cache: PromptCache, ids: Sequence[int], held: int = 0) -> Restored | None:
        """Fill the cache with the longest beginning of `ids` that some chat has saved, if that is more than the `held`
        tokens it has; None where nobody was asked. What is wrong with the store is nothing to whoever only borrows."""
        if len(ids) - held <= FEW or min(ids) < 0 or not os.path.exists(self._database) or not cache.can_save:
            return None
        with suppress(MlxkvError, _UnknownError):
            store = self._store()
            if self._identity is None:
                self._identity = self._identify(_Known(store.file_hashes))
            return store.borrow_kv(cache, self._identity, ids, held)
        return None


class _UnknownError(Exception):
    """A file was never hashed: then no chat was saved with this model."""


class _Known:
    """Hashes that are remembered; none are made."""

    def __init__(self, hashes: FileHashes) -> None:
        self._hashes = hashes

    def get(self, path: str, info: os.stat_result) -> str:
        if (found := self._hashes.get(path, info)) is None:
            raise _UnknownError
        return found

    def has(self, path: str) -> bool:
        return self._hashes.has(path)

    def put(self, path: str, info: os.stat_result, sha256: str) -> None:
        raise AssertionError("nothing is hashed here")
