"""Model: what `mlxkv.load` returns: text in, text or events out, chats, sessions and prompt caches.

Ties the layers together and holds no logic of its own beyond defaults. On the thread that made it.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxkv import arguments
from mlxkv.arguments import instance, optional, public, text
from mlxkv.cache.config import DEFAULT_SINKS, CacheConfig
from mlxkv.cache.interchange import PromptText
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.traits import traits_of
from mlxkv.chat import clock
from mlxkv.chat.chat import Chat, ChatBackend
from mlxkv.chat.prompt import PromptFormat, PromptState, checked_ids
from mlxkv.config import Folders
from mlxkv.device import current_device, set_wired_limit
from mlxkv.errors import ConfigError, PromptError
from mlxkv.events import TurnEvent
from mlxkv.inference.generation import Generation
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SAMPLING, SamplingParams
from mlxkv.memory import Budget
from mlxkv.models import Hub, LoadedModel, LoadProgress, load_model
from mlxkv.models.resolve import is_repo
from mlxkv.stats import TurnStats
from mlxkv.store import ModelIdentity, SessionRecord, SessionStore, identify
from mlxkv.store.borrow import Borrower
from mlxkv.store.identity import FileHashes
from mlxkv.store.prompts.model_caches import CacheFiles
from mlxkv.system.thread_owner import Owned, Owner
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import TokenIds

_GENERATE_TOKENS = 256
_CONFIG = optional(instance(CacheConfig))


def _cache(name: str, value: Any) -> Any:
    is_file = isinstance(value, str | os.PathLike)
    advice = "read a file with `Model.load_cache` first" if is_file else ""
    return optional(instance(PromptCache, CacheConfig, advice=advice))(name, value)


@dataclass(frozen=True)
class Completion:
    """What `Model.generate` made: the text, its token ids (an end-of-text id included), and the figures."""

    text: str
    tokens: tuple[int, ...]
    stats: TurnStats


class Model:
    """A loaded model and everything to do with it. Made by `mlxkv.load`.

    Args:
        loaded: weights, tokenizer and configuration.
        folders: where sessions lie; None reads the environment.
        limited: whether what would not fit is refused. Otherwise it is tried, and the system may end the process.
    """

    def __init__(self, loaded: LoadedModel, folders: Folders | None = None, *, limited: bool = True) -> None:
        self.loaded, self.is_limited = loaded, limited
        self._owner = Owner()
        # A folder is remembered by its full path, so that its sessions resume from anywhere.
        self.name = str(loaded.path) if Path(loaded.name).expanduser().is_dir() else loaded.name
        self.tokenizer = loaded.tokenizer
        self._memory = Budget(loaded.model, self._limit(), loaded.trained_length)
        self.runner = ModelRunner(loaded.model, budget=self._memory)
        self._folders = folders
        self._prompts = PromptFormat(loaded.tokenizer)
        self._store: SessionStore | None = None

    # -- text --------------------------------------------------------------------------------------------------------

    @public(*SAMPLING, prompt=text, cache=_cache)
    def generate(
        self,
        prompt: str,
        *,
        cache: PromptCache | CacheConfig | None = None,
        max_tokens: int | None = None,
        **sampling: Any,
    ) -> Completion:
        """Continue `prompt` as raw text (no chat template).

        Args:
            cache: a PromptCache to go on from (it is changed: pass `pc.fork()` to keep it), or how to bound a new one.
                Where `prompt` begins with all of the text it holds, it is the whole prompt, and only the rest is
                prefilled; else it is a continuation.
            max_tokens: 256 by default.
            sampling: SamplingParams fields, e.g. `temperature=0.0`, `stop=["\\n\\n"]`.

        Raises:
            PromptError: the prompt is empty. ConfigError: a parameter has a value it cannot have. MismatchError: the
            PromptCache was made with another model. CacheError: something else has fed its layers, or another reply is
            being generated on it.
        """
        turn = self._completion(prompt, cache, max_tokens, sampling)()
        with set_wired_limit():
            for _ in turn.events():
                pass
        return Completion(turn.text, tuple(turn.generated), turn.stats)

    @public(*SAMPLING, prompt=text, cache=_cache)
    def stream(
        self,
        prompt: str,
        *,
        cache: PromptCache | CacheConfig | None = None,
        max_tokens: int | None = None,
        **sampling: Any,
    ) -> Iterator[TurnEvent]:
        """`generate`, as events: PrefillProgress, TextDelta, and TurnFinished at the end. What is wrong with the
        arguments is raised by the call."""
        make_turn = self._completion(prompt, cache, max_tokens, sampling)

        def events() -> Generator[TurnEvent]:
            turn = make_turn()
            with set_wired_limit():
                yield from turn.events()

        return Owned(self._owner, events())

    @public(
        cache=_CONFIG, system=optional(text), chat=optional(arguments.flag), progress=optional(arguments.function),
        save_to=optional(arguments.path),
    )  # fmt: skip
    def prefill(
        self,
        prompt: str | Sequence[int],
        cache: CacheConfig | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        progress: Callable[[int, int], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> PromptCache:
        """Read `prompt` once, into a PromptCache to generate from, chat from, fork or save: text, or token ids as a
        list, a tuple or an array of numpy or MLX.

        As far as a saved chat of this model and these bounds began alike, its rows are taken from disk instead.

        Args:
            system: makes it the beginning of a chat: this system prompt, then `prompt` as the first message begins,
                for `Model.chat(cache=pc.fork())`. `chat=True` does so without a system prompt; else it is raw text.
            progress: called with the tokens read so far and all of them.
            save_to: where it is going to be saved: if the disk limit leaves no room for it there, that is said before
                the reading. It is not saved by this.

        Raises:
            PromptError: there is nothing to read, or an id is not of this model. ConfigError: ids cannot begin a chat.
            OutOfMemoryError. StoreError: see `save_to`.
        """
        as_chat = system is not None if chat is None else chat
        backend = self._backend.at(began := clock.now())
        system = well_formed(system) if system else system
        if isinstance(prompt, str):
            prompt = well_formed(prompt)
            if not prompt and not (as_chat and system):
                raise PromptError("The text to prefill is empty; give some.")
            raw = PromptState("", TokenIds(() if as_chat else self._prompts.encode_raw(prompt)))
            read = backend.prompts.chat_prefix(system, prompt) if as_chat else raw
        else:
            if as_chat:
                raise ConfigError("Token ids cannot begin a chat: its template wants text; give text, or no `system`.")
            ids = arguments.token_ids("prompt", prompt)
            read = PromptState("", TokenIds(checked_ids(ids, getattr(self.loaded.model, "args", None))))
        config = cache or CacheConfig()
        held = backend.new_cache(config, system) if as_chat else self.make_cache(config, system)
        if save_to is not None:
            self._files.check_room(Path(save_to), held, len(read.ids))
        if as_chat:
            held.prompt = PromptText(system, str(prompt), read.text, len(read.ids), began.isoformat())
        self._borrower.borrow(held, read.ids)
        borrowed = held.offset
        if borrowed and progress is not None:
            progress(borrowed, len(read.ids))
        with set_wired_limit():
            for done in self.runner.prefill(held, read.ids[borrowed:]):
                if progress is not None:
                    progress(borrowed + done, len(read.ids))
        return held

    def _completion(
        self, prompt: str, cache: PromptCache | CacheConfig | None, max_tokens: int | None, sampling: dict[str, Any]
    ) -> Callable[[], Generation]:
        """The turn, to be made when it begins: by then the cache may hold more. All that can be checked now is."""
        if not prompt:
            raise PromptError("The prompt is empty; write something first.")
        prompt, started = well_formed(prompt), time.perf_counter()
        params = SamplingParams.for_model(
            self.loaded.generation, max_tokens=_GENERATE_TOKENS if max_tokens is None else max_tokens, **sampling
        )
        if isinstance(cache, PromptCache):
            self._check_cache(cache)

        def turn() -> Generation:
            if isinstance(cache, PromptCache):
                ids, held = self._prompts.continued(cache.log, prompt), cache
            else:
                ids, held = self._prompts.encode_raw(prompt), self.make_cache(cache or CacheConfig())
            is_kept = held is cache
            return Generation(self.runner, self.tokenizer, held, ids, params, started=started, is_kept=is_kept)

        return turn

    # -- chats -------------------------------------------------------------------------------------------------------

    @public(
        *SAMPLING, system=optional(text), cache=_cache, autosave=arguments.flag, think=optional(arguments.flag)
    )  # fmt: skip
    def chat(
        self,
        system: str | None = None,
        cache: CacheConfig | PromptCache | None = None,
        *,
        autosave: bool = False,
        think: bool | None = None,
        **sampling: Any,
    ) -> Chat:
        """A new chat; `autosave` makes it a session at its first turn, else `Chat.save` does.

        Args:
            cache: how to bound it, or a PromptCache to begin with (it is changed: pass `pc.fork()` to keep it), which
                `prefill` made with a system prompt or `chat=True`, or `import_mlx_lm`.
            think: whether the model shall reason before it answers, where its template knows of that; None leaves it to
                the model.

        Raises:
            ConfigError: a system prompt beside a PromptCache, or one that holds raw text. MismatchError: the
            PromptCache was made with another model.
        """
        params = SamplingParams.for_model(self.loaded.generation, **sampling)
        return Chat(self._backend, system=system, cache=cache, params=params, autosave=autosave, think=think)

    @public(*SAMPLING, session=arguments.label, cache=_CONFIG, fork=arguments.flag)
    def resume(self, session: str, *, cache: CacheConfig | None = None, fork: bool = False, **sampling: Any) -> Chat:
        """Go on with a session, given by title, by id, or by the unique start of one; rows on disk are not read again.

        Args:
            cache: another bound than the session had (its rows are then read again).
            fork: leave the session as it is and go on in a fork.

        A session that another process has open is only read: `Chat.read_only` says who, `Chat.fork` leads on. Where
        nothing can be saved the chat goes on without its session, and says so once.

        Raises:
            SessionNotFoundError: nothing fits, or several do. CorruptError: the turns are damaged.
        """
        return self.reopen(self.store.sessions.find(session), cache=cache, fork=fork, **sampling)

    @public(*SAMPLING, session_id=arguments.label, cache=_CONFIG, fork=arguments.flag)
    def reopen(self, session_id: str, *, cache: CacheConfig | None = None, fork: bool = False, **sampling: Any) -> Chat:
        """`resume`, by the whole id alone: no title can be taken for it."""
        store = self.store
        if fork and not store.read_only:
            session_id = store.fork(session_id)
        record = store.load(session_id)
        began = clock.from_text(record.clock) or clock.from_seconds(record.created)
        config = self._resumed_config(record, cache, began)
        past = dict(record.params.get("sampling") or {})
        params = replace(SamplingParams.saved(past), **{k: v for k, v in sampling.items() if v is not None})
        think = saved if isinstance(saved := record.params.get("think"), bool) else None
        chat = Chat(
            self._backend, system=record.system, cache=config, params=params, autosave=True, think=think, began=began
        )
        chat.load(record)
        store.enforce_limit()  # once the chat's lock is held, so that its own rows stay
        return chat

    def _resumed_config(self, record: SessionRecord, cache: CacheConfig | None, began: datetime) -> CacheConfig:
        """The bounds of a session, or those asked for, with its pinned tokens where they differ in nothing else."""
        saved = CacheConfig.from_table(record.params.get("cache"))
        if saved.sinks == "system" and not record.system:
            saved = replace(saved, sinks=DEFAULT_SINKS)  # an older version meant these by it
        if cache is None:
            learned = traits_of(self.loaded.model).learned
            if learned and saved.window and saved.window > saved.geometry(learned).window:
                return replace(saved, window=None, block=None, slack=None)  # saved when that was not looked at
            return saved
        if cache.sinks != "system":
            return cache
        made = self._backend.at(began).new_cache(cache, record.system)
        if replace(made.plan.resolved, sinks=saved.sinks) == saved:
            return saved
        pinned, most = record.params.get("pinned"), (cache.window or 1 << 24) // 4
        return replace(cache, sinks=pinned) if isinstance(pinned, int) and 0 < pinned <= most else cache

    # -- caches ------------------------------------------------------------------------------------------------------

    @public(config=_CONFIG, system=optional(text))
    def make_cache(self, config: CacheConfig | None = None, system: str | None = None) -> PromptCache:
        """An empty cache for this model.

        Raises:
            OutOfMemoryError: it could not be filled beside the weights, by the predicted peak; nothing was allocated.
        """
        config = config or CacheConfig()
        pinned = well_formed(system) if system and config.sinks == "system" else ""
        return self._make_cache(config, self._prompts.num_system_tokens(pinned) if pinned else 0)

    def _make_cache(self, config: CacheConfig, system_tokens: int) -> PromptCache:
        self._memory.limit = self._limit()
        plan = self._memory.plan(config, self.loaded.weight_bytes, system_tokens=system_tokens)
        self._memory.check(plan, self.loaded.weight_bytes)
        return PromptCache(plan, self.loaded.model, self._files)

    @public(path=arguments.path)
    def load_cache(self, path: str | os.PathLike[str]) -> PromptCache:
        """A PromptCache that `PromptCache.save` wrote.

        Raises:
            FileMissingError: no such file. MismatchError: it was made with another model; `field` says which part
            differs. CorruptError: the bytes are not what was written.
        """
        return self._files.read(Path(path))

    @public(path=arguments.path, cache=_CONFIG)
    def import_mlx_lm(self, path: str | os.PathLike[str], cache: CacheConfig | None = None) -> PromptCache:
        """A prompt cache that mlx-lm saved (any version), to go on from; its token ids are not in the file.

        Rows of another floating type than this model computes in are converted where that loses nothing (a float16
        model runs in float32 on a CPU); `plan.notes` of the cache says so.

        Whoever made the file decides what the model believes to have read, so import only what you trust.

        Args:
            cache: how to bound it, where mlx-lm had not bounded or quantized it.

        Raises:
            FileMissingError: no such file. CorruptError: the file breaks a rule. MismatchError: it was made with
            another model. CacheError: this model has other caches than keys and values. OutOfMemoryError.
        """
        return self._files.import_mlx_lm(Path(path), cache)

    def _check_cache(self, cache: PromptCache) -> None:
        cache.check_model(self.loaded.model, lambda: self.identity.model_id)

    def _limit(self) -> int:
        """Bytes that may be used now; 0: nobody looks."""
        return current_device().memory_limit if self.is_limited else 0

    @public(text=text)
    def num_tokens(self, text: str) -> int:
        """How many tokens `text` takes in a message."""
        return len(self._prompts.encode_text(well_formed(text)))

    # -- what it ties together ---------------------------------------------------------------------------------------

    @property
    def store(self) -> SessionStore:
        """The sessions on this machine; opened at first use."""
        if self._store is None:
            self._store = SessionStore.open(self._folders or Folders.from_env(), enforce=False)  # see `reopen`
        return self._store

    def open_store_for_one_reply(self) -> None:
        """Open the sessions, on a full disk to read: no reply comes after this one that could be saved."""
        if self._store is None:
            folders = self._folders or Folders.from_env()
            self._store = SessionStore.open(folders, enforce=False, when_full="read")

    @cached_property
    def identity(self) -> ModelIdentity:
        """What must match before saved rows may be used."""
        found = identify(self.loaded.path, self.loaded.config, self.store.file_hashes, name=self.name)
        if not self.loaded.is_replaced():
            return found
        return ModelIdentity.of(found.name, {**found.parts, "file.replaced": secrets.token_hex()})  # no rows are its

    @property
    def has_chat_template(self) -> bool:
        return self._prompts.has_template

    @public()
    def close(self) -> None:
        """Close the session store, if it was opened."""
        if self._store is not None:
            self._store.close()
            self._store = None

    @cached_property
    def _borrower(self) -> Borrower:
        def identity(hashes: FileHashes) -> ModelIdentity:
            return identify(self.loaded.path, self.loaded.config, hashes, name=self.name)

        return Borrower(self._folders or Folders.from_env(), lambda: self.store, identity)

    @property
    def _files(self) -> CacheFiles:
        # mlx-lm knows no built-in model and no revision in a name.
        source = self.name if is_repo(self.name) and "@" not in self.name else str(self.loaded.path)
        return CacheFiles(
            self.name, source, self.loaded.model, lambda: self.identity, self.make_cache, lambda: self.store
        )

    @cached_property
    def _backend(self) -> ChatBackend:
        return ChatBackend(
            self.runner,
            self.tokenizer,
            self._prompts,
            self._make_cache,
            lambda: self.store,
            lambda: self.identity,
            self._borrower,
            self._check_cache,
        )


@public(
    name=arguments.model_name, folders=optional(instance(Folders)), limited=arguments.flag,
    progress=optional(arguments.function), cancel=optional(instance(threading.Event)),
)  # fmt: skip
def load(
    name: str | os.PathLike[str] = "tutor",
    *,
    folders: Folders | None = None,
    limited: bool = True,
    progress: Callable[[LoadProgress], None] | None = None,
    cancel: threading.Event | None = None,
    hub: Hub | None = None,
) -> Model:
    """Load a model: a built-in name, a local folder, or a Hugging Face repository id (`org/name[@revision]`).

    Args:
        name: as a path object always a folder.
        folders: where sessions lie; None reads MLXKV_HOME or the XDG folders.
        limited: False tries to load what would not fit; the system may end the process.
        progress, cancel, hub: as `mlxkv.models.load_model` takes them.

    Raises:
        ModelError: and its kinds; one sentence each. OutOfMemoryError: it would not fit.
    """
    device = None if limited else replace(current_device(), memory_limit=1 << 62)
    loaded = load_model(os.fspath(name), device=device, progress=progress, cancel=cancel, hub=hub)
    return Model(loaded, folders, limited=limited)
