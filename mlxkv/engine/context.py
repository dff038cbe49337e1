"""EngineContext: the loaded model, the open chat and the settings that commands use. MLX thread, except `stop`.

It opens and closes them for the handlers in the other modules.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxkv.config import Folders, Settings
from mlxkv.distributed.group import wish_given
from mlxkv.engine.downloads import Downloads
from mlxkv.errors import MismatchError, MlxkvError
from mlxkv.events import KVNotSaved, Notice
from mlxkv.protocol.commands import Command
from mlxkv.protocol.events import EngineEvent, LoadPhase, ModelLoading, ModelReady
from mlxkv.protocol.status import SaveState, Unattended
from mlxkv.settings.setting_sources import SettingSources

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.chat.chat import Chat
    from mlxkv.engine.handlers.compaction import Uncompacted
    from mlxkv.engine.unloading import UnloadedModel
    from mlxkv.model import Model
    from mlxkv.store.session_store import SessionStore

_log = logging.getLogger("mlxkv.engine")


class EngineContext:
    """Attributes are set by handlers. `first` are the settings that a new chat begins with: those of an option."""

    def __init__(
        self,
        folders: Folders,
        settings: Settings | SettingSources,
        emit: Callable[[EngineEvent], None],
        *,
        save: bool,
        load: Callable[..., Model] | None,
    ) -> None:
        self.folders, self.emit = folders, emit
        self.sources = SettingSources.of(settings)
        self.first = self.sources.chat
        self.downloads = Downloads(emit)
        self.save = save
        self.model: Model | None = None
        self.unloaded: UnloadedModel | None = None  # the model that the next message loads again
        self.chat: Chat | None = None
        self.oversized: set[str] = set()  # models to load although they do not fit
        self.uncompacted: Uncompacted | None = None  # the chat that the open one was compacted from
        self.saved, self.save_problem = SaveState.NOTHING, ""
        self.unsent = ""  # a message that is being sent and is not part of the chat yet
        self.fork_number: tuple[str | None, int] = (None, 0)  # of a session in its family
        self.unattended: tuple[object, Unattended | None] = (None, None)  # as last found, and from what
        self.disk_bytes = 0  # KV of all chats when last counted
        self.load = load  # a test's replacement of `mlxkv.load`; its names are not models of this machine or the hub
        self.cancel_load = threading.Event()
        self.num_submitted = self.num_started = 0  # commands, not counting reads
        self.reads: deque[Command] = deque()  # submitted and not answered
        self.wants_title = False  # a reply has ended since the chat was last asked for a title
        self._num_stopped = 0  # of the submitted ones, in order
        self._is_closing = False

    @property
    def settings(self) -> Settings:
        """The settings in force in the open chat."""
        return self.sources.settings

    def stop(self, *, closing: bool = False) -> None:
        """Stop the running reply or load, or one that was submitted and has not started; from any thread.

        `closing`: an unanswered message stays in its chat, since no window is left to return it to.
        """
        self._is_closing = self._is_closing or closing
        self._num_stopped = self.num_submitted
        self.cancel_load.set()
        if (chat := self.chat) is not None:
            chat.cancel(keep_message=self._is_closing)

    def answer_now(self) -> None:
        """End the reasoning of the running reply; from any thread."""
        if (chat := self.chat) is not None:
            chat.answer_now()

    @property
    def was_stopped(self) -> bool:
        """Whether the current command was stopped."""
        return 0 < self.num_started <= self._num_stopped

    @property
    def is_awaited(self) -> bool:
        """Whether a command waits for the current one to end."""
        return self.num_submitted > self.num_started or bool(self.reads)

    def apply_earlier_stop(self) -> None:
        """Cancel the reply just begun if its command was stopped before."""
        if self.was_stopped:
            self.current_chat.cancel(keep_message=self._is_closing)

    def set_saved(self, saved: SaveState, problem: str = "") -> None:
        self.saved, self.save_problem = saved, problem

    # -- the model ---------------------------------------------------------------------------------------------------

    @property
    def ready_model(self) -> Model:
        """The loaded model. Raises MlxkvError: there is none."""
        if self.model is None:
            raise MlxkvError("No model is loaded; type /model and a folder or a repository id.")
        return self.model

    def load_model(self, name: str, adapter: str | None = None) -> Model:
        def progress(p: Any) -> None:
            self.emit(ModelLoading(p.name, LoadPhase(p.phase), p.done, p.total))

        if self.load is not None:
            return self.load(name) if adapter is None else self.load(name, adapter_path=adapter)
        from mlxkv.model import load

        loading = partial(
            load,
            name,
            folders=self.folders,
            limited=name not in self.oversized,
            progress=progress,
            cancel=self.cancel_load,
            adapter_path=adapter,
            distributed=wish_given(),
        )
        try:
            return loading(draft=self.settings.drafting)
        except MismatchError as error:  # a draft model chosen for another model
            if self.settings.draft_model is None:
                raise
            self.emit(Notice(f"{error} Continuing without it."))
            return loading(draft=True)

    def model_ready(self, name: str) -> ModelReady:
        """That `name`, as it was asked for, is the loaded model."""
        model = self.ready_model
        loaded = model.loaded
        return ModelReady(name, loaded.weight_bytes, loaded.load_s, model.has_chat_template, model.adapter or "")

    def begin_load(self) -> None:
        if not self.was_stopped:
            self.cancel_load.clear()

    def unload_model(self) -> None:
        """Release all memory of the model: two models at once may not fit."""
        machines = None if self.model is None else self.model.loaded.machines
        try:
            self.close_chat()
            if self.model is not None:
                self.model.close()
        finally:
            self.model = None
        gc.collect()
        if machines is None or not machines.is_lost:
            import mlx.core as mx

            mx.clear_cache()

    # -- the chat ----------------------------------------------------------------------------------------------------

    @property
    def current_chat(self) -> Chat:
        """The open chat. Raises MlxkvError: there is none."""
        if self.chat is None:
            raise MlxkvError("No chat is open yet; write something first, or open one with /resume.")
        return self.chat

    def close_chat(self) -> None:
        chat, self.chat, self.uncompacted = self.chat, None, None
        if chat is not None and (notice := chat.close()):
            self.emit(KVNotSaved(notice))

    def cache_config(self) -> CacheConfig:
        """The configuration of a new cache; for an oversized model a small window."""
        from mlxkv.cache.config import CacheConfig
        from mlxkv.memory.preflight import usable_window

        config = CacheConfig.from_settings(self.settings)
        if self.model is None or self.model.is_limited or config.window is not None:
            return config
        return replace(config, window=usable_window(self.model.loaded.trained_length))

    @contextmanager
    def store(self) -> Iterator[SessionStore]:
        """The model's store, or one opened for the block."""
        if self.model is not None:
            yield self.model.store
            return
        from mlxkv.store.session_store import SessionStore

        with SessionStore.open(self.folders, enforce=False) as store:
            yield store

    def close(self) -> None:
        try:
            self.close_chat()
            if self.model is not None:
                self.model.close()
        except Exception:
            _log.exception("closing the chat failed")
        self.model = self.chat = None
