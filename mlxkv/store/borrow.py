"""Let unsaved chats and prompt caches reuse KV rows of a saved chat with the same prefix.

Only reads: creates no store, hashes no weights, records no use. Engine thread.
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

MIN_NEW_TOKENS = 256  # for fewer, a prefill is cheaper than a look at the disk


class Borrower:
    """Borrows rows for one model.

    Args:
        store: opens the store; called only if there is a database.
        identify: makes the model's identity from the file hashes it is given.
    """

    def __init__(
        self, folders: Folders, store: Callable[[], SessionStore], identify: Callable[[FileHashes], ModelIdentity]
    ) -> None:
        self._database, self._store, self._identify = folders.data / DATABASE, store, identify
        self._identity: ModelIdentity | None = None

    def borrow(self, cache: PromptCache, ids: Sequence[int], held: int = 0) -> Restored | None:
        """Fill the cache with the longest prefix of `ids` that any chat has saved, if it exceeds the `held` tokens the
        cache has. None if the store was not used or cannot be read: its errors do not matter to a borrower."""
        if len(ids) - held <= MIN_NEW_TOKENS or min(ids) < 0 or not os.path.exists(self._database):
            return None
        if not cache.can_save:
            return None
        with suppress(MlxkvError, _NeverHashedError):
            store = self._store()
            if self._identity is None:
                self._identity = self._identify(_RememberedHashes(store.file_hashes))
            return store.borrow_kv(cache, self._identity, ids, held)
        return None


class _NeverHashedError(Exception):
    """A file of the model was never hashed, so no chat was saved with this model."""


class _RememberedHashes:
    """Remembered file hashes; computes none."""

    def __init__(self, hashes: FileHashes) -> None:
        self._hashes = hashes

    def get(self, path: str, info: os.stat_result) -> str:
        if (found := self._hashes.get(path, info)) is None:
            raise _NeverHashedError
        return found

    def has(self, path: str) -> bool:
        return self._hashes.has(path)

    def put(self, path: str, info: os.stat_result, sha256: str) -> None:
        raise AssertionError("nothing is hashed here")
