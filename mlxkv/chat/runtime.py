"""ModelRuntime: a loaded model with what its chats and prompt caches need: runner, prompts, memory, sessions.

Made by `Model`, one for each loaded model; knows no chat. Decides which model a file of a prompt cache belongs to; the
bytes are read and written by `store/prompts`. Used on the thread that loaded the model.
"""

from __future__ import annotations

import stat
import weakref
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from mlxkv.arguments import shown
from mlxkv.cache.config import DEFAULT_SINKS, CacheConfig
from mlxkv.cache.mlx_lm import ImportedCache, to_mlx_lm, to_model_dtype, window_for
from mlxkv.cache.prompt_cache import IN_NO_FILE, PromptCache
from mlxkv.chat.prompts.prompt import PromptFormat
from mlxkv.chat.tools import Tool, checked_tools
from mlxkv.config import Folders, Settings, load_settings
from mlxkv.device import Wired, current_device
from mlxkv.errors import CacheError, ConfigError, FileMissingError, MismatchError, StoreError
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.drafting.model_drafts import ModelDrafts
from mlxkv.inference.hooks import Hooks, take_hooks
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.inference.schema import Grammars
from mlxkv.memory import Budget
from mlxkv.models import LoadedModel
from mlxkv.models.resolve import is_repo
from mlxkv.safetensors.header import num_bytes
from mlxkv.store.borrow import Borrower
from mlxkv.store.identity import FileHashes, ModelIdentity, identity_of
from mlxkv.store.prompts.kv_file import describe_prompt_file, read_prompt_file, write_prompt_file
from mlxkv.store.prompts.mlx_lm_file import OUR_NAME, read_mlx_lm, write_mlx_lm
from mlxkv.store.session_store import SessionStore
from mlxkv.text.clean import clean

_MODEL_ID = "mlxkv_model_id"  # in the metadata of exports


class OpenChat(Protocol):
    """What a model closes."""

    def close_with_model(self) -> str | None: ...


class ModelRuntime:
    """One loaded model and the folders its chats are stored in.

    Args:
        folders: None reads the environment when the store is first needed.
        is_limited: refuse caches and prompts that would not fit in memory; otherwise the system may end the process.
        draft: whether to draft tokens, or the model that drafts, too.

    Attributes:
        name: the user's name for the model; for a folder its full path, so that its sessions resume from anywhere.
        wired: keeps its memory wired until the model is closed.
        prompts: the chat template at the current time; a chat makes its own with `PromptFormat.at`.
        chats, streams: its chats and iterators of events, as far as they are referred to; closed before the model.
    """

    def __init__(
        self, loaded: LoadedModel, folders: Folders | None, is_limited: bool, draft: bool | LoadedModel = True
    ) -> None:
        self.loaded, self.is_limited = loaded, is_limited
        self.name = str(loaded.path) if Path(loaded.name).expanduser().is_dir() else loaded.name
        self.budget = Budget(loaded.model, self._memory_limit(), loaded.trained_length)
        settings = _settings(folders)
        self.wired = Wired(current_device(), is_wanted=settings.wired)
        make_runner = ModelRunner if loaded.machines is None else loaded.machines.make_runner
        self.runner: ModelRunner = make_runner(loaded.model, settings.prefill_chunk, self.budget)
        self.weight_bytes = loaded.weight_bytes  # those of a draft model, and its cache, included
        if draft is not False:
            self.runner.drafting = Drafting(model=self._draft_model(draft) if isinstance(draft, LoadedModel) else None)
        self.prompts = PromptFormat(loaded.tokenizer)
        self.chats: weakref.WeakSet[OpenChat] = weakref.WeakSet()
        self.streams: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()
        self._models = [loaded.model, *([draft.model] if isinstance(draft, LoadedModel) else [])]
        self._folders = folders
        self._store: SessionStore | None = None

    @property
    def is_open(self) -> bool:
        return bool(self._models)

    def check_open(self) -> None:
        """Raises ConfigError: the model is closed."""
        if not self.is_open:
            raise ConfigError(f"The model {shown(self.name)} is closed; load it again with `mlxkv.load`.")

    def close(self) -> str | None:
        """Close streams, chats and sessions, and free the weights, whoever still refers to them; a sentence if
        something could not be saved."""
        notices: list[str | None] = []
        with ExitStack() as stack:
            stack.callback(self._free)
            stack.callback(self.close_store)
            stack.callback(self._leave_machines)
            stack.callback(self.wired.close)
            for chat in list(self.chats):
                stack.callback(lambda chat=chat: notices.append(chat.close_with_model()))
            for stream in list(self.streams):
                stack.callback(stream.close)
        self.chats.clear()
        return next(filter(None, notices), None)

    def _leave_machines(self) -> None:
        """Let the other processes free their parts of the model, and the rows of sessions that are gone."""
        if self.loaded.machines is None:
            return
        store, sessions = None, tuple[str, ...]()
        if self._store is not None:
            with suppress(StoreError):
                store, sessions = self._store.id, self._store.sessions.ids()
        self.loaded.machines.close(store, sessions)

    def _free(self) -> None:
        import mlx.core as mx

        for model in self._models:
            for module in model.modules():  # whoever refers to one of them
                module.clear()
            vars(model).clear()  # its traits, which have weights
        self._models.clear()
        if self.loaded.machines is None or not self.loaded.machines.is_lost:
            mx.clear_cache()

    @property
    def model(self) -> Any:
        """mlx-lm's."""
        return self.loaded.model

    @property
    def model_args(self) -> Any:
        """Its arguments, or None."""
        return getattr(self.model, "args", None)

    @property
    def tokenizer(self) -> Any:
        """mlx-lm's TokenizerWrapper."""
        return self.loaded.tokenizer

    # -- caches ------------------------------------------------------------------------------------------------------

    def new_cache(
        self,
        config: CacheConfig,
        prompts: PromptFormat | None = None,
        system: str | None = None,
        *,
        num_pinned: int = 0,
    ) -> PromptCache:
        """An empty cache; with `sinks="system"` it pins the tokens that `prompts` puts before the first message, or
        `num_pinned`.

        Raises:
            OutOfMemoryError: it could not be filled beside the weights, by the predicted peak; nothing was allocated.
        """
        self.check_open()
        if prompts is not None and config.sinks == "system":
            num_pinned = prompts.num_system_tokens(system)
        self.budget.limit = self._memory_limit()
        if (machines := self.loaded.machines) is not None:
            return machines.make_cache(config, num_pinned, self.budget, self.weight_bytes, self.model, self)
        plan = self.budget.plan(config, self.weight_bytes, system_tokens=num_pinned)
        self.budget.check(plan, self.weight_bytes)
        return PromptCache(plan, self.model, self)

    def _draft_model(self, draft: LoadedModel) -> ModelDrafts:
        """The draft model with a cache of its own.

        Raises:
            OutOfMemoryError: its cache does not fit beside the weights of both.
        """
        used = self.loaded.weight_bytes + draft.weight_bytes
        budget = Budget(draft.model, self._memory_limit(), draft.trained_length)
        plan = budget.plan(CacheConfig(), used)
        budget.check(plan, used)
        self.weight_bytes = used + budget.cache_bytes(plan)
        runner, vocab = ModelRunner(draft.model, budget=budget), draft.tokenizer.get_vocab()
        return ModelDrafts(runner, PromptCache(plan, draft.model), max(vocab.values()) + 1)

    def check_cache(self, cache: PromptCache) -> None:
        """Raises MismatchError: the cache was made with another model. CacheError: its layers were used outside it.
        ConfigError: see `check_open`."""
        self.check_open()
        cache.check_model(self.model, lambda: self.model_id)
        cache.check_log()

    # -- sampling ------------------------------------------------------------------------------------------------------

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles schemas for this model's tokenizer."""
        return Grammars(self.tokenizer)

    def take_hooks(self, given: dict[str, Any]) -> Hooks:
        """Take the hooks out of the keywords of a method that samples; see `hooks.take_hooks`."""
        return take_hooks(given, self.grammars)

    def check_sampling(self, params: SamplingParams) -> None:
        """Raises ConfigError: `logit_bias` names tokens that this model does not have."""
        size = getattr(getattr(self.model, "args", None), "vocab_size", None)
        if isinstance(size, int):
            params.check_ids(size)

    def _memory_limit(self) -> int:
        """Bytes that may be used now; 0 for no limit."""
        return current_device().memory_limit if self.is_limited else 0

    def saved_tools(self, schemas: Any) -> tuple[Tool, ...]:
        """The tools of a stored chat; none if this model, which may be another one, takes none."""
        try:
            tools = checked_tools(schemas)
            self.prompts.with_tools(tools)
        except ConfigError:
            return ()
        return tools

    # -- prompt caches as files ----------------------------------------------------------------------------------------

    def write_cache(self, path: Path, cache: PromptCache) -> int:
        """Write a file for `load_cache`; its size. Files in the store's folder count towards the disk limit."""
        config = asdict(cache.plan.resolved)
        with self.store.saving_named(path) as check_size:
            return write_prompt_file(path, cache, self.identity, config, prompt=cache.prompt, check_size=check_size)

    def check_space(self, path: Path, cache: PromptCache, num_tokens: int) -> None:
        """Raises StoreError: the disk limit leaves too little space to save the cache with this many tokens."""
        shapes = [s for g in cache.groups for a, b in g.required(num_tokens) for s in g.shapes(b - a).values()]
        self.store.check_named(path, 4 * num_tokens + sum(num_bytes(dtype, shape) for shape, dtype in shapes))

    def load_cache(self, path: Path) -> PromptCache:
        """See Model.load_cache."""
        _check_there(path)
        self._check_whole()
        config = CacheConfig.from_table(describe_prompt_file(path).get("config"))
        if config.sinks == "system":  # an older version wrote this for them
            config = replace(config, sinks=DEFAULT_SINKS)
        cache = self.new_cache(config)
        cache.prompt = read_prompt_file(path, cache, self.identity).prompt
        return cache

    def _check_whole(self) -> None:
        """Raises CacheError: each process has a part of the model, and a file has rows of all of it."""
        if self.loaded.machines is not None:
            raise CacheError(IN_NO_FILE)

    def export_cache(self, path: Path, cache: PromptCache, version: str) -> int:
        """Write a file for mlx-lm, with the metadata that `mlx_lm.generate --prompt-cache-file` reads; its size."""
        name = self.name
        # mlx-lm knows no built-in model and no revision in a name.
        source = name if is_repo(name) and "@" not in name else str(self.loaded.path)
        about = {"model": source, "tokenizer_config": "{}", _MODEL_ID: self.model_id}
        if source != name:
            about[OUR_NAME] = name
        with self.store.saving_named(path) as check_size:
            return write_mlx_lm(path, to_mlx_lm(cache), version, about, check_size=check_size)

    def import_mlx_lm(self, path: Path, config: CacheConfig | None) -> PromptCache:
        """See Model.import_mlx_lm."""
        _check_there(path)
        self._check_whole()
        file = read_mlx_lm(path)
        held = self.new_cache(config or CacheConfig())
        layers, notes = to_model_dtype(file.layers, held.plan, path.name)
        if file.metadata.get(_MODEL_ID, self.model_id) != self.model_id:
            why = f"{path.name} was made with other weights than {self.name} has; load the model it was made with."
            raise MismatchError(why, "model_id")
        if config is None and held.capacity < layers[0].offset:
            held = self.new_cache(CacheConfig(window=window_for(layers[0].offset)))
        return ImportedCache(held.plan, self.model, layers, self, notes)

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
        """The hashes of the model that generates a chat's replies."""
        return self._identify(self.store.file_hashes)

    @property
    def model_id(self) -> str:
        return self.identity.model_id

    @cached_property
    def row_identity(self) -> ModelIdentity:
        """That of the rows in this process's caches: of a part, where the model is split between processes."""
        return self._of_part(self.identity)

    def _of_part(self, whole: ModelIdentity) -> ModelIdentity:
        machines = self.loaded.machines
        return whole if machines is None else whole.of_part(machines.split.part)

    @cached_property
    def borrower(self) -> Borrower:
        """Lets unsaved chats and prompt caches reuse rows of saved chats."""
        return Borrower(self.folders, lambda: self.store, lambda hashes: self._of_part(self._identify(hashes)))

    def _identify(self, hashes: FileHashes) -> ModelIdentity:
        return identity_of(self.loaded, self.name, hashes)


def _check_there(path: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissingError(f"There is no file {clean(str(path))!r}; check the path.") from error
    except OSError:
        return  # reading it reports the error
    if is_folder:
        raise FileMissingError(f"{clean(str(path))} is a folder; name the file in it.")


def _settings(folders: Folders | None) -> Settings:
    """The user's settings; the defaults if they cannot be read, which the store reports."""
    try:
        return load_settings(Folders.from_env() if folders is None else folders)
    except ConfigError:
        return Settings()
