"""Engine: the thread that owns MLX and handles one command at a time. Its methods may be called from any thread.

Only strings, numbers and frozen dataclasses leave the thread, since a lazy array can only be evaluated where it was
made.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mlxkv.config import Folders, Settings
from mlxkv.engine.dispatcher import Dispatcher
from mlxkv.engine.unloading import idle_commands
from mlxkv.protocol.commands import READS, Command, PausePull, Shutdown
from mlxkv.protocol.events import EngineEvent, EngineStopped
from mlxkv.settings.setting_sources import SettingSources

if TYPE_CHECKING:
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.engine")


class Engine:
    """Runs a model for a window.

    Args:
        folders: of sessions and caches.
        settings: the defaults of new chats; their sources say which of a chat's own values they hide.
        save: False saves nothing on disk.
        load: makes a Model; for tests.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings | SettingSources,
        *,
        save: bool = True,
        load: Callable[..., Model] | None = None,
    ) -> None:
        self.events: deque[EngineEvent] = deque()
        self._dispatcher = Dispatcher(folders, settings, self.events.append, save=save, load=load)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlxkv-engine")  # not a daemon: it must end in order

    # -- any thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Command) -> None:
        if isinstance(command, PausePull):  # it must not wait for the end of a reply
            self._dispatcher.pause_download()
            return
        if isinstance(command, READS):
            self._dispatcher.context.reads.append(command)
        else:
            self._dispatcher.context.num_submitted += 1
        self._commands.put(command)

    def stop(self) -> None:
        """Stop the running reply or load. A partial reply is kept; a message without one leaves the chat
        (`TurnFinished.returned`)."""
        self._dispatcher.stop()

    def answer_now(self) -> None:
        """End the reasoning of the running reply, if there is any; the answer follows."""
        self._dispatcher.answer_now()

    def close(self) -> None:
        """Stop, shut down and join; required before the process ends. An unanswered message stays in its chat."""
        if self._thread.is_alive():
            self.submit(Shutdown())
            self._dispatcher.stop(closing=True)
            self._thread.join()

    # -- the engine thread -------------------------------------------------------------------------------------------

    def _next(self) -> Command:
        """Wait for a command. Meanwhile, a chat that is locked by another process is checked, the open chat gets a
        title and saves its recurrent state, once, and an idle model is unloaded."""
        for seconds, command in idle_commands(self._dispatcher.context):
            with suppress(queue.Empty):
                return self._commands.get(timeout=seconds)
            self._dispatcher.handle(command)
        return self._commands.get()

    def _run(self) -> None:
        error = None
        try:
            while not isinstance(command := self._next(), Shutdown):
                context = self._dispatcher.context
                if not isinstance(command, READS):
                    context.num_started += 1
                elif not context.reads or context.reads[0] is not command:
                    continue  # it was answered during a reply
                else:
                    context.reads.popleft()
                self._dispatcher.handle(command)
        except BaseException as failure:
            _log.exception("the engine stopped")
            error = f"The engine stopped ({type(failure).__name__}); restart mlxkv; the chat is saved up to here."
        finally:
            self._dispatcher.close()
            self.events.append(EngineStopped(error))
