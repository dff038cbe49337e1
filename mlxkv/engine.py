"""Engine: the one thread that owns MLX. Commands in, events out; nothing else crosses.

It loads, allocates, generates, saves and restores, one command at a time; `stop` and `close` may be called from any
thread. Every error becomes a `Failed` event and the engine goes on. Only strings, numbers and frozen dataclasses
leave this thread: a lazy array evaluated elsewhere has no stream there.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mlxkv.commands import Command, ListChats, LoadModel, NewChat, OpenChat, Retry, Send, Shutdown
from mlxkv.config import Folders, Settings
from mlxkv.errors import MlxkvError
from mlxkv.events import (
    ChatList,
    ChatOpened,
    EngineEvent,
    EngineStopped,
    Failed,
    ModelLoading,
    ModelReady,
    Notice,
    SessionStatus,
    TurnEvent,
    TurnStarted,
)

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.chat import Chat
    from mlxkv.model import Model

_STATUS_SECONDS = 1.0
_log = logging.getLogger("mlxkv.engine")


class Engine:
    """Runs a model for a window.

    Args:
        folders: where sessions lie.
        settings: the defaults of new chats.
        save: False keeps nothing on disk.
        load: makes a Model; replaced in tests.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings,
        *,
        save: bool = True,
        load: Callable[..., Model] | None = None,
    ) -> None:
        self.events: deque[EngineEvent] = deque()
        self._folders, self._settings, self._save = folders, settings, save
        self._load = load
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._cancel_load = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlxkv-engine")  # not a daemon: it must end in order
        self._model: Model | None = None
        self._chat: Chat | None = None
        self._saved = ""

    # -- any thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Command) -> None:
        self._commands.put(command)

    def stop(self) -> None:
        """Stop the running reply or load; what was said or downloaded is kept."""
        self._cancel_load.set()
        if (chat := self._chat) is not None:
            chat.cancel()

    def close(self) -> None:
        """Stop, finish and join the thread; call it before the process ends."""
        if self._thread.is_alive():
            self.submit(Shutdown())
            self.stop()
            self._thread.join()

    # -- the engine thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error = None
        try:
            while True:
                command = self._commands.get()
                if isinstance(command, Shutdown):
                    break
                self._do(command)
        except BaseException as failure:
            _log.exception("the engine stopped")
            error = f"The engine stopped ({type(failure).__name__}); restart mlxkv, the chat is saved up to here."
        finally:
            self._end()
            self.events.append(EngineStopped(error))

    def _do(self, command: Command) -> None:
        try:
            for event in self._handle(command):
                self.events.append(event)
        except MlxkvError as error:
            self.events.append(Failed(str(error)))
            self.events.append(self._status())
        except Exception as error:
            _log.exception("%s failed", type(command).__name__)
            self.events.append(
                Failed(f"Something went wrong ({type(error).__name__}: {_line(error)}); the chat is kept.")
            )
            self.events.append(self._status())

    def _handle(self, command: Command) -> Iterator[EngineEvent]:
        match command:
            case LoadModel(name):
                yield from self._load_model(name)
            case NewChat(system):
                yield from self._new_chat(system)
            case OpenChat(session_id):
                yield from self._open_chat(session_id)
            case ListChats():
                yield ChatList(self._store_chats())
            case Send(text, sent_at):
                chat = self._ready_chat()
                yield from self._turn(text, lambda: chat.send(text, started=sent_at))
            case Retry():
                chat = self._ready_chat()
                started = time.perf_counter()
                yield from self._turn("", lambda: chat.retry(started=started))
            case Shutdown():
                pass

    # -- models ------------------------------------------------------------------------------------------------------

    def _load_model(self, name: str) -> Iterator[EngineEvent]:
        yield ModelLoading(name, "loading")
        before, session = self._model.name if self._model else None, self._chat.session_id if self._chat else None
        self._cancel_load.clear()
        if before is not None:
            from mlxkv.models import resolve

            resolve(name)  # a name that cannot be must not cost the model that is there
            self._drop_model()  # two models at once may not fit
        try:
            self._model = self._make_model(name)
        except MlxkvError:
            if before is not None:
                self._model = self._make_model(before)
                yield from self._again(session)
            raise
        yield ModelReady(
            name, self._model.loaded.weight_bytes, self._model.loaded.load_s, self._model.has_chat_template
        )
        if before is not None:
            yield from self._again(session)

    def _make_model(self, name: str) -> Model:
        def progress(p: Any) -> None:
            self.events.append(ModelLoading(p.name, p.phase, p.done, p.total))

        if self._load is not None:
            return self._load(name)
        from mlxkv.model import load

        return load(name, folders=self._folders, progress=progress, cancel=self._cancel_load)

    def _again(self, session: str | None) -> Iterator[EngineEvent]:
        """The chat that was in front goes on with the new model."""
        yield from self._open_chat(session) if session else self._new_chat(None)

    def _drop_model(self) -> None:
        self._close_chat()
        if self._model is not None:
            self._model.close()
        self._model = None
        gc.collect()
        import mlx.core as mx

        mx.clear_cache()

    def _ready_model(self) -> Model:
        if self._model is None:
            raise MlxkvError("No model is loaded; type /model and a folder or a repository id.")
        return self._model

    # -- chats -------------------------------------------------------------------------------------------------------

    def _new_chat(self, system: str | None) -> Iterator[EngineEvent]:
        self._close_chat()
        self._saved = "" if self._save else "off"
        if self._model is not None:
            self._chat = self._model.chat(
                system or self._settings.system, self._bounds(), autosave=self._save, **self._settings.sampling
            )
        yield ChatOpened(None, "")  # the first message will be its title
        yield self._status()

    def _open_chat(self, session_id: str) -> Iterator[EngineEvent]:
        model = self._ready_model()
        if self._chat is None or self._chat.session_id != session_id:
            # What can go wrong goes wrong here, while the chat in front is still open: two caches may not fit at once.
            model.store.load(session_id)
            with model.store.lock(session_id):
                pass
        self._close_chat()
        bounds = self._bounds() if self._settings.bounds_cache else None
        chat = self._chat = model.resume(session_id, cache=bounds, **self._settings.sampling)
        back = chat.restored
        yield ChatOpened(
            chat.session_id,
            chat.title,
            chat.messages,
            back.tokens if back else 0,
            back.bytes if back else 0,
            back.seconds if back else 0.0,
        )
        if back and back.notice:
            yield Notice(back.notice)
        if not self._save:
            chat.detach()
        self._saved = "saved" if self._save else "off"
        yield self._status()

    def _bounds(self) -> CacheConfig:
        from mlxkv.cache.config import CacheConfig

        return CacheConfig.from_settings(self._settings)

    def _store_chats(self) -> tuple[Any, ...]:
        if self._model is not None:
            return self._model.store.list()
        from mlxkv.store import SessionStore

        with SessionStore.open(self._folders) as store:
            return store.list()

    def _ready_chat(self) -> Chat:
        self._ready_model()
        if self._chat is None:
            for event in self._new_chat(None):
                self.events.append(event)
        assert self._chat is not None
        return self._chat

    def _close_chat(self) -> None:
        if self._chat is not None:
            self._chat.close()
        self._chat = None

    # -- turns -------------------------------------------------------------------------------------------------------

    def _turn(self, text: str, begin: Callable[[], Iterator[TurnEvent]]) -> Iterator[EngineEvent]:
        events = begin()
        self._saved = "saving" if self._save else "off"
        told = time.monotonic()
        yield TurnStarted(text)
        notice = ""
        for event in events:
            if isinstance(event, Notice) and event.text.startswith("The KV cache could not"):
                notice = event.text
            yield event
            if time.monotonic() - told >= _STATUS_SECONDS:
                told = time.monotonic()
                yield self._status()
        if self._save:
            self._saved = f"not saved: {notice}" if notice else "saved"
        yield self._status()

    def _status(self) -> SessionStatus:
        import mlx.core as mx

        from mlxkv.device import current_device

        cache = self._chat.cache if self._chat else None
        return SessionStatus(
            kv_bytes=cache.live_nbytes if cache else 0,
            cache_tokens=cache.num_attended if cache else 0,
            cache_window=cache.capacity if cache else 0,
            memory_used=mx.get_active_memory(),
            memory_limit=current_device().memory_limit,
            saved=self._saved,
        )

    def _end(self) -> None:
        """The thread's last act: MLX's streams of this thread are cleared exactly once, else the process aborts."""
        try:
            self._close_chat()
            if self._model is not None:
                self._model.close()
        except Exception:
            _log.exception("closing the chat failed")
        self._model = self._chat = None
        gc.collect()
        import mlx.core as mx

        mx.clear_streams()


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else "no details"
