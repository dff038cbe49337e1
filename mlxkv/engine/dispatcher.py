"""Desk: which part of the engine answers which command. Errors become events, and it goes on. On the MLX thread."""

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
from mlxkv.engine.context import Front
from mlxkv.engine.downloads import Downloads
from mlxkv.errors import MlxkvError, OutOfMemoryError, SessionLockedError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import EngineEvent, Failed

if TYPE_CHECKING:
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.engine")


class Desk:
    """Answers commands on the thread it was first used on.

    Args:
        tell: takes every event; called on this thread, and for downloads on theirs.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings,
        tell: Callable[[EngineEvent], None],
        *,
        save: bool = True,
        load: Callable[..., Model] | None = None,
    ) -> None:
        self._tell = tell
        self._downloads = Downloads(tell)
        self.front = Front(folders, settings, tell, self._downloads, save=save, load=load)

    # -- any thread --------------------------------------------------------------------------------------------------

    def pause_download(self) -> None:
        self._downloads.pause()

    def stop(self, *, closing: bool = False) -> None:
        self.front.stop(closing=closing)

    # -- the MLX thread ----------------------------------------------------------------------------------------------

    def answer(self, command: cmd.Command) -> None:
        try:
            for event in self._events(command):
                self._tell(event)
        except MlxkvError as error:
            self._failed(str(error), _kind(error))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            _log.exception("%s failed", type(command).__name__)
            self._failed(f"Something went wrong ({type(error).__name__}: {_line(error)}); the chat is kept.")

    def _failed(self, text: str, kind: str = "") -> None:
        unsent, self.front.unsent = self.front.unsent, ""
        self._tell(Failed(text, kind, unsent))
        self._tell(figures.status(self.front))

    def _events(self, command: cmd.Command) -> Iterator[EngineEvent]:
        from mlxkv.device import current_device

        front, now = self.front, time.perf_counter()
        match command:
            case cmd.LoadModel():
                return models.load(front, command)
            case cmd.ListModels(fitting):
                return models.listed(front, fitting)
            case cmd.NewChat(system):
                return chats.new(front, system)
            case cmd.OpenChat(session_id):
                return chats.opened(front, session_id)
            case cmd.CheckChat():
                return chats.checked(front)
            case cmd.ListChats():
                return chats.listed(front)
            case cmd.SearchChats(words):
                return chats.found(front, words)
            case cmd.ShowTree():
                return chats.tree(front)
            case cmd.RenameChat(title, session_id):
                return chats.renamed(front, title, session_id)
            case cmd.DeleteChat(session_id):
                return chats.deleted(front, session_id)
            case cmd.ExportChat(kind, path, session_id):
                return chats.exported(front, kind, path, session_id)
            case cmd.Send():
                return turns.run(front, command)
            case cmd.Retry(turn):
                return turns.again(front, turn, now)
            case cmd.Edit():
                return turns.edited(front, command)
            case cmd.Continue():
                return turns.continued(front, lambda chat, how: chat.continue_reply(started=now, **how))
            case cmd.Rewind(turn):
                back = compacting.undone(front) if turn is None else None
                return chats.rewound(front, turn) if back is None else back
            case cmd.Fork(turn):
                return chats.forked(front, turn)
            case cmd.ChangeSettings(settings):
                return chats.resettled(front, settings)
            case cmd.SetSystem(text):
                return chats.given_system(front, text)
            case cmd.ShowContext():
                return iter((figures.context(front),))
            case cmd.ListCache():
                return disk.listed(front)
            case cmd.CollectCache():
                return disk.collected(front)
            case cmd.PinChat():
                return disk.pinned(front)
            case cmd.CountTokens(key, text):
                return figures.counted(front, key, text)
            case cmd.PlanCompact():
                return iter((compacting.planned(front),))
            case cmd.Compact(summarise):
                return compacting.run(front, summarise)
            case cmd.ShowStats():
                return iter((figures.totals(front),))
            case cmd.Pull(name):
                self._downloads.start(name, current_device())
            case cmd.PausePull():
                self._downloads.pause()
        return iter(())

    def close(self) -> None:
        """The thread's last act: MLX's streams of this thread are cleared exactly once, else the process aborts."""
        self._downloads.close()
        self.front.close()
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
