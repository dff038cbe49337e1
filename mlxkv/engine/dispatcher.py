"""Dispatcher: command -> handler. An error becomes a `Failed` event and the next command is handled. MLX thread."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlxkv.config import Folders, Settings
from mlxkv.device import current_device
from mlxkv.engine import unloading
from mlxkv.engine.context import EngineContext
from mlxkv.engine.end_mlx import end_mlx
from mlxkv.engine.handlers import chats, compaction, model_list, models, presets, saving, status, titles, turns
from mlxkv.engine.handlers import settings as session_settings
from mlxkv.errors import MlxkvError, OutOfMemoryError, SessionLockedError
from mlxkv.events import TurnFinished
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import EngineEvent, Failed, FailureKind, ModelLoading, TurnStarted
from mlxkv.settings.setting_sources import SettingSources

if TYPE_CHECKING:
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.engine")


class Dispatcher:
    """Handles commands on the caller's thread.

    Args:
        emit: takes every event; called on this thread, for downloads on theirs.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings | SettingSources,
        emit: Callable[[EngineEvent], None],
        *,
        save: bool = True,
        load: Callable[..., Model] | None = None,
    ) -> None:
        self._emit = emit
        self.context = EngineContext(folders, settings, self._tell, save=save, load=load)

    # -- any thread --------------------------------------------------------------------------------------------------

    def pause_download(self) -> None:
        self.context.downloads.pause()

    def stop(self, *, closing: bool = False) -> None:
        self.context.stop(closing=closing)

    def answer_now(self) -> None:
        """End the reasoning of the running reply, if there is any; the answer follows."""
        self.context.answer_now()

    # -- the MLX thread ----------------------------------------------------------------------------------------------

    def handle(self, command: cmd.Command) -> None:
        is_read, is_replying = isinstance(command, cmd.READS), False
        try:
            for event in self._events(command):
                self._tell(event)
                is_replying = isinstance(event, TurnStarted) or (is_replying and not isinstance(event, TurnFinished))
                if is_replying:
                    self._answer(cmd.READS)
        except MlxkvError as error:
            self._fail(str(error), _kind(error), is_read=is_read)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is not an Exception
            _log.exception("%s failed", type(command).__name__)
            reason = next(iter(str(error).strip().splitlines()), "no details")
            self._fail(f"Something went wrong ({type(error).__name__}: {reason}); the chat is safe.", is_read=is_read)

    def _tell(self, event: EngineEvent) -> None:
        self._emit(event)
        if isinstance(event, ModelLoading):
            self._answer(cmd.READS_OF_DISK)

    def _answer(self, kinds: tuple[type[cmd.Command], ...]) -> None:
        """Answer the waiting reads up to the first that is of another kind: their order is that of the answers."""
        reads = self.context.reads
        while reads and isinstance(reads[0], kinds):
            self.handle(reads.popleft())

    def _fail(self, text: str, kind: FailureKind = FailureKind.OTHER, *, is_read: bool) -> None:
        unsent = ""
        if not is_read:  # a message that is being sent is another command's
            unsent, self.context.unsent = self.context.unsent, ""
        self._emit(Failed(text, kind, unsent, is_read))
        self._emit(status.session_status(self.context))

    def _events(self, command: cmd.Command) -> Iterator[EngineEvent]:
        context, now = self.context, time.perf_counter()
        if unloading.needs_model(context, command):
            return self._after_load(command)
        match command:
            case cmd.LoadModel():
                return models.load_model(context, command)
            case cmd.Unload(is_idle):
                return unloading.unload(context, is_idle)
            case cmd.ListModels(fitting):
                return model_list.list_models(context, fitting)
            case cmd.NewChat(system):
                return chats.new_chat(context, system)
            case cmd.OpenChat(session_id):
                return chats.open_chat(context, session_id)
            case cmd.CheckChat():
                return chats.check_chat(context)
            case cmd.Pause():
                return chats.pause(context)
            case cmd.ShowSaved():
                return saving.show_saved(context)
            case cmd.SuggestTitle():
                return titles.suggest_title(context)
            case cmd.ListChats():
                return chats.list_chats(context)
            case cmd.SearchChats(words):
                return chats.search_chats(context, words)
            case cmd.ShowTree():
                return chats.show_tree(context)
            case cmd.RenameChat(title, session_id):
                return chats.rename_chat(context, title, session_id)
            case cmd.DeleteChat(session_id):
                return chats.delete_chat(context, session_id)
            case cmd.ExportChat(kind, path, session_id):
                return chats.export_chat(context, kind, path, session_id)
            case cmd.Send():
                return turns.send(context, command)
            case cmd.Retry(turn, changes):
                return turns.retry(context, turn, now, dict(changes))
            case cmd.Edit():
                return turns.edit(context, command)
            case cmd.Continue():
                return turns.continue_reply(context, now)
            case cmd.Rewind(turn):
                undone = compaction.undo_compaction(context) if turn is None else None
                return undone or chats.rewind(context, turn)
            case cmd.Fork(turn):
                return chats.fork(context, turn)
            case cmd.PlanCompact():
                return iter((compaction.plan_compaction(context),))
            case cmd.Compact(summarise):
                return compaction.compact(context, summarise)
            case cmd.ChangeSettings():
                return session_settings.change_settings(context, command)
            case cmd.ListPresets():
                return presets.list_presets(context)
            case cmd.TakePreset(name):
                return presets.take_preset(context, name)
            case cmd.SavePreset(name, is_replacing):
                return presets.save_preset(context, name, is_replacing)
            case cmd.RenamePreset(name, new):
                return presets.rename_preset(context, name, new)
            case cmd.DeletePreset(name):
                return presets.delete_preset(context, name)
            case cmd.ShowContext():
                return iter((status.context_usage(context),))
            case cmd.ListCache():
                return status.list_cache(context)
            case cmd.CollectCache():
                return status.collect_cache(context)
            case cmd.PinChat():
                return status.pin_chat(context)
            case cmd.CountTokens(key, text):
                return status.count_tokens(context, key, text)
            case cmd.ShowStats():
                return iter((status.session_stats(context),))
            case cmd.Pull(name):
                context.downloads.start(name, current_device())
            case cmd.PausePull():
                context.downloads.pause()
        return iter(())

    def _after_load(self, command: cmd.Command) -> Iterator[EngineEvent]:
        yield from unloading.reload(self.context, command)
        if self.context.unloaded is None:
            yield from self._events(command)

    def close(self) -> None:
        """Close the chat and clear MLX's streams: the last call on this thread; without it the process aborts."""
        self.context.downloads.close()
        self.context.close()
        end_mlx()


def _kind(error: MlxkvError) -> FailureKind:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK
    if isinstance(error, OutOfMemoryError):
        return FailureKind.MEMORY
    return FailureKind.LOCKED if isinstance(error, SessionLockedError) else FailureKind.OTHER
