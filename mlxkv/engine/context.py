"""EngineContext: the loaded model, the open chat and the settings that commands use. MLX thread, except `stop`.

It opens and closes them; the handlers in the other modules use them.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mlxkv.config import Folders, Settings
from mlxkv.errors import MlxkvError
from mlxkv.events import KVNotSaved
from mlxkv.protocol.events import EngineEvent, ModelLoading

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.chat.chat import Chat
    from mlxkv.engine.compaction import Before
    from mlxkv.engine.downloads import Downloads
    from mlxkv.model import Model
    from mlxkv.store import SessionStore

Event = TypeVar("Event")
_log = logging.getLogger("mlxkv.engine")


class EngineContext:
    """`saved` is what the footer says: see SessionStatus. `system` is the system prompt of the next new chat."""

    def __init__(
        self,
        folders: Folders,
        settings: Settings,
        emit: Callable[[EngineEvent], None],
        downloads: Downloads,
        *,
        save: bool,
        load: Callable[..., Model] | None,
    ) -> None:
        self.folders, self.settings, self.emit, self.downloads = folders, settings, emit, downloads
        self.save = save
        self.system = settings.system
        self.model: Model | None = None
        self.chat: Chat | None = None
        self.forced: set[str] = set()  # models to load although they do not fit
        self.before: Before | None = None  # what the chat in front is a short form of
        self.saved = ""
        self.unsent = ""  # a message that is to be sent and is not part of the chat yet
        self.fork: tuple[str | None, int] = (None, 0)  # a chat, and which of its family's forks it is
        self.disk_bytes = 0  # KV of all chats, as of the last look
        self._load = load
        self._cancel_load = threading.Event()
        self.num_asked = self.num_begun = 0  # commands
        self._num_stopped = 0  # of them, in their order
        self._is_closing = False

    def stop(self, *, closing: bool = False) -> None:
        """Stop the running reply or load, or the one that was asked for and has not begun; from any thread.

        `closing`: nobody is left to give an unanswered message back to, so that it stays in its chat.
        """
        self._is_closing = self._is_closing or closing
        self._num_stopped = self.num_asked
        self._cancel_load.set()
        if (chat := self.chat) is not None:
            chat.cancel(keep_message=self._is_closing)

    @property
    def was_stopped(self) -> bool:
        """Whether that was so of the command being answered."""
        return 0 < self.num_begun <= self._num_stopped

    def begun(self, events: Iterator[Event]) -> Iterator[Event]:
        """`events` of the chat in front; a stop that came before them holds."""
        if self.was_stopped:
            self.current_chat.cancel(keep_message=self._is_closing)
        return events

    # -- the model ---------------------------------------------------------------------------------------------------

    @property
    def ready_model(self) -> Model:
        if self.model is None:
            raise MlxkvError("No model is loaded; type /model and a folder or a repository id.")
        return self.model

    @property
    def loads_itself(self) -> bool:
        """Whether names mean models of this machine and the hub, as they do but in tests."""
        return self._load is None

    def make_model(self, name: str) -> Model:
        def progress(p: Any) -> None:
            self.emit(ModelLoading(p.name, p.phase, p.done, p.total))

        if self._load is not None:
            return self._load(name)
        from mlxkv.model import load

        limited = name not in self.forced
        return load(name, folders=self.folders, limited=limited, progress=progress, cancel=self._cancel_load)

    @property
    def load_was_stopped(self) -> bool:
        return self._cancel_load.is_set()

    def begin_load(self) -> None:
        if not self.was_stopped:
            self._cancel_load.clear()

    def drop_model(self) -> None:
        """Give all its memory back: two models at once may not fit."""
        self.close_chat()
        if self.model is not None:
            self.model.close()
        self.model = None
        gc.collect()
        import mlx.core as mx

        mx.clear_cache()

    # -- the chat ----------------------------------------------------------------------------------------------------

    @property
    def current_chat(self) -> Chat:
        """The chat in front.

        Raises:
            MlxkvError: there is none, because nothing has been said.
        """
        if self.chat is None:
            raise MlxkvError("No chat is open yet; write something first, or open one with /resume.")
        return self.chat

    def close_chat(self) -> None:
        chat, self.chat, self.before = self.chat, None, None
        if chat is not None and (notice := chat.close()):
            self.emit(KVNotSaved(notice))

    def bounds(self) -> CacheConfig:
        """What a new cache is to be; of a model that does not fit no more than it takes to talk."""
        from mlxkv.cache.config import CacheConfig
        from mlxkv.memory.preflight import usable_window

        config = CacheConfig.from_settings(self.settings)
        if self.model is None or self.model.is_limited or config.window is not None:
            return config
        return replace(config, window=usable_window(self.model.loaded.trained_length))

    @contextmanager
    def store(self) -> Iterator[SessionStore]:
        """The sessions on disk: the model's store, or one opened for this."""
        if self.model is not None:
            yield self.model.store
            return
        from mlxkv.store import SessionStore

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
