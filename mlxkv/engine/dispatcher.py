"""Dispatcher: command -> handler. An error becomes a `Failed` event and the next command is handled. MLX thread."""

from __future__ import annotations

import errno
import gc
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlxkv.config import Folders, Settings
from mlxkv.engine import chats, disk, models, turns
from mlxkv.engine import compaction as compacting
from mlxkv.engine import status as figures
from mlxkv.engine.context import EngineContext
from mlxkv.engine.downloads import Downloads
from mlxkv.errors import MlxkvError, OutOfMemoryError, SessionLockedError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import EngineEvent, Failed

if TYPE_CHECKING:
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.engine")


class Dispatcher:
    """Answers commands on the thread it was first used on.

    Args:
        emit: takes every event; called on this thread, and for downloads on theirs.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings,
        emit: Callable[[EngineEvent], None],
        *,
        save: bool = True,
        load: Callable[..., Model] | None = None,
    ) -> None:
        self._emit = emit
        self._downloads = Downloads(emit)
        self.context = EngineContext(folders, settings, emit, self._downloads, save=save, load=load)

    # -- any thread --------------------------------------------------------------------------------------------------

    def pause_download(self) -> None:
        self._downloads.pause()

    def stop(self, *, closing: bool = False) -> None:
        self.context.stop(closing=closing)

    # -- the MLX thread ----------------------------------------------------------------------------------------------

    def handle(self, command: cmd.Command) -> None:
        try:
            for event in self._events(command):
                self._emit(event)
        except MlxkvError as error:
            self._failed(str(error), _kind(error))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            _log.exception("%s failed", type(command).__name__)
            self._failed(f"Something went wrong ({type(error).__name__}: {_line(error)}); the chat is kept.")

    def _failed(self, text: str, kind: str = "") -> None:
        unsent, self.context.unsent = self.context.unsent, ""
        self._emit(Failed(text, kind, unsent))
        self._emit(figures.status(self.context))

    def _events(self, command: cmd.Command) -> Iterator[EngineEvent]:
        from mlxkv.device import current_device

        context, now = self.context, time.perf_counter()
        match command:
            case cmd.LoadModel():
                return models.load(context, command)
            case cmd.ListModels(fitting):
                return models.listed(context, fitting)
            case cmd.NewChat(system):
                return chats.new(context, system)
            case cmd.OpenChat(session_id):
                return chats.opened(context, session_id)
            case cmd.CheckChat():
                return chats.checked(context)
            case cmd.ListChats():
                return chats.listed(context)
            case cmd.SearchChats(words):
                return chats.found(context, words)
            case cmd.ShowTree():
                return chats.tree(context)
            case cmd.RenameChat(title, session_id):
                return chats.renamed(context, title, session_id)
            case cmd.DeleteChat(session_id):
                return chats.deleted(context, session_id)
            case cmd.ExportChat(kind, path, session_id):
                return chats.exported(context, kind, path, session_id)
            case cmd.Send():
                return turns.run(context, command)
            case cmd.Retry(turn):
                return turns.again(context, turn, now)
            case cmd.Edit():
                return turns.edited(context, command)
            case cmd.Continue():
                return turns.continued(context, lambda chat, how: chat.continue_reply(started=now, **how))
            case cmd.Rewind(turn):
                back = compacting.undone(context) if turn is None else None
                return chats.rewound(context, turn) if back is None else back
            case cmd.Fork(turn):
                return chats.forked(context, turn)
            case cmd.ChangeSettings(settings):
                return chats.resettled(context, settings)
            case cmd.SetSystem(text):
                return chats.given_system(context, text)
            case cmd.ShowContext():
                return iter((figures.context(context),))
            case cmd.ListCache():
                return disk.listed(context)
            case cmd.CollectCache():
                return disk.collected(context)
            case cmd.PinChat():
                return disk.pinned(context)
            case cmd.CountTokens(key, text):
                return figures.counted(context, key, text)
            case cmd.PlanCompact():
                return iter((compacting.planned(context),))
            case cmd.Compact(summarise):
                return compacting.run(context, summarise)
            case cmd.ShowStats():
                return iter((figures.totals(context),))
            case cmd.Pull(name):
                self._downloads.start(name, current_device())
            case cmd.PausePull():
                self._downloads.pause()
        return iter(())

    def close(self) -> None:
        """The thread's last act: MLX's streams of this thread are cleared exactly once, else the process aborts."""
        self._downloads.close()
        self.context.close()
        gc.collect()
        import mlx.core as mx

        mx.clear_streams()


def _kind(error: MlxkvError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if isinstance(error, OutOfMemoryError):
        return "memory"
    return "locked" if isinstance(error, SessionLockedError) else ""


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else "no details"
