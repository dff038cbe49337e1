"""ModelRuntime: a loaded model with what its chats and prompt caches need: runner, prompts, memory, sessions.

Made by `Model`, one for each loaded model; knows no chat. Used on the thread that loaded the model.
"""

from __future__ import annotations

import secrets
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompt import PromptFormat
from mlxkv.chat.prompt_files import PromptCacheFiles
from mlxkv.config import Folders
from mlxkv.device import current_device
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget
from mlxkv.models import LoadedModel
from mlxkv.store import ModelIdentity, SessionStore, identify
from mlxkv.store.borrow import Borrower
from mlxkv.store.identity import FileHashes


class ModelRuntime:
    """One loaded model and the folders its chats are stored in.

    Args:
        folders: None reads the environment when the store is first needed.
        is_limited: refuse what would not fit in memory; otherwise it is tried, and the system may end the process.

    Attributes:
        name: what the user calls the model; of a folder the full path, so that its sessions resume from anywhere.
        prompts: the chat template at the current time; a chat makes its own with `PromptFormat.at`.
    """

    def __init__(self, loaded: LoadedModel, folders: Folders | None, is_limited: bool) -> None:
        self.loaded, self.is_limited = loaded, is_limited
        self.name = str(loaded.path) if Path(loaded.name).expanduser().is_dir() else loaded.name
        self.budget = Budget(loaded.model, self._memory_limit(), loaded.trained_length)
        self.runner = ModelRunner(loaded.model, budget=self.budget)
        self.prompts = PromptFormat(loaded.tokenizer)
        self._folders = folders
        self._store: SessionStore | None = None

    @property
    def model(self) -> Any:
        """mlx-lm's."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        """mlx-lm's TokenizerWrapper."""
        return self.loaded.tokenizer

    # -- caches ------------------------------------------------------------------------------------------------------

    def new_cache(
        self, config: CacheConfig, prompts: PromptFormat | None = None, system: str | None = None
    ) -> PromptCache:
        """An empty cache; with `sinks="system"` it pins the tokens that `prompts` puts before the first message.

        Raises:
            OutOfMemoryError: it could not be filled beside the weights, by the predicted peak; nothing was allocated.
        """
        num_pinned = prompts.num_system_tokens(system) if prompts is not None and config.sinks == "system" else 0
        self.budget.limit = self._memory_limit()
        plan = self.budget.plan(config, self.loaded.weight_bytes, system_tokens=num_pinned)
        self.budget.check(plan, self.loaded.weight_bytes)
        return PromptCache(plan, self.model, self.files)

    def check_cache(self, cache: PromptCache) -> None:
        """Raises MismatchError: the cache was made with another model."""
        cache.check_model(self.model, lambda: self.identity.model_id)

    @cached_property
    def files(self) -> PromptCacheFiles:
        return PromptCacheFiles(self)

    def _memory_limit(self) -> int:
        """Bytes that may be used now; 0 for no limit."""
        return current_device().memory_limit if self.is_limited else 0

    # -- sessions ----------------------------------------------------------------------------------------------------

    @property
    def folders(self) -> Folders:
        return self._folders or Folders.from_env()

    @property
    def store(self) -> SessionStore:
        """The sessions on this machine; opened at first use. `Model.reopen` enforces the disk limit."""
        if self._store is None:
            self._store = SessionStore.open(self.folders, enforce=False)
        return self._store

    def open_store_for_one_reply(self) -> None:
        """Open the sessions, on a full disk for reading only: no later reply could be saved."""
        if self._store is None:
            self._store = SessionStore.open(self.folders, enforce=False, when_full="read")

    def close_store(self) -> None:
        """Close the sessions, if they were opened."""
        if self._store is not None:
            self._store.close()
            self._store = None

    @cached_property
    def identity(self) -> ModelIdentity:
        """What must match before saved rows may be used."""
        found = self._identify(self.store.file_hashes)
        if not self.loaded.is_replaced():
            return found
        # The files are no longer those that were loaded: no saved rows match.
        return ModelIdentity.of(found.name, {**found.parts, "file.replaced": secrets.token_hex()})

    @cached_property
    def borrower(self) -> Borrower:
        """Rows of saved chats for what is not saved itself."""
        return Borrower(self.folders, lambda: self.store, self._identify)

    def _identify(self, hashes: FileHashes) -> ModelIdentity:
        return identify(self.loaded.path, self.loaded.config, hashes, name=self.name)
