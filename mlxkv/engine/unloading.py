"""Gives the model's memory back, and loads it again for the next command that needs it. MLX thread.

What the window shows stays as it is: the chat is closed, which saves its rows, and opened again without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlxkv.engine.closed_chat import ClosedChat
from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers.status import session_status
from mlxkv.errors import MlxkvError, PromptError, SessionLockedError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import ChatOpened, EngineEvent, Failed, FailureKind, ModelLoading, ModelUnloaded, Versions

PAUSE_SECONDS = 60.0  # without a command, after which the chat saves what a long prefill would cost
CHECK_SECONDS = 1.0  # between two checks of a chat that is open in another process
TITLE_SECONDS = 1.0  # after a reply, after which the model is asked for a title
AGAIN_SECONDS = 60.0  # until unloading is tried again, for example after a download

_WITHOUT_MODEL = (
    cmd.LoadModel, cmd.ListModels, cmd.Pull, cmd.PausePull, cmd.Unload, cmd.NewChat, cmd.CheckChat, cmd.Pause,
    cmd.ListChats, cmd.SearchChats, cmd.ListCache, cmd.CollectCache, cmd.CountTokens, cmd.ListPresets,
    cmd.DeletePreset, cmd.SuggestTitle, cmd.ShowSaved,
)  # fmt: skip
_OF_ONE_CHAT = (cmd.RenameChat, cmd.DeleteChat, cmd.ExportChat)


@dataclass(frozen=True)
class UnloadedModel:
    """What loads a model again, and the chat that was open."""

    name: str
    adapter: str | None
    chat: ClosedChat

    def with_new_chat(self, system: str | None) -> UnloadedModel:
        return replace(self, chat=ClosedChat(system=system))


def idle_commands(context: EngineContext) -> Iterator[tuple[float, cmd.Command]]:
    """What to do while no command arrives: seconds to wait, then a command."""
    while context.chat is not None and context.chat.read_only:
        yield CHECK_SECONDS, cmd.CheckChat()
    minutes, waited = context.settings.unload_after, 0.0
    if context.chat is not None and context.wants_title:
        yield TITLE_SECONDS, cmd.SuggestTitle()
        waited = TITLE_SECONDS
    after = float("inf") if minutes is None or context.model is None else minutes * 60
    if context.chat is not None and after > PAUSE_SECONDS:
        yield PAUSE_SECONDS - waited, cmd.Pause()
        waited = PAUSE_SECONDS
    while after < float("inf") and context.model is not None:
        yield after - waited, cmd.Unload(is_idle=True)
        after, waited = AGAIN_SECONDS, 0.0


def unload(context: EngineContext, is_idle: bool) -> Iterator[EngineEvent]:
    """Save the chat's rows and free weights and caches. `is_idle`: nobody asked for it, so nothing is said if it cannot
    be done now.

    Raises:
        MlxkvError: there is nothing to unload, or the chat could not be opened again as it is.
    """
    chat, why = context.chat, ""
    if context.unloaded is not None:
        why = f"{context.unloaded.name} is unloaded already; your next message loads it again."
    elif chat is not None and chat.read_only:
        why = "This chat is open in another mlxkv; close it there, or start another one with /new."
    elif chat is not None and chat.is_behind:
        why = "The end of this chat is not saved, because the disk is full; free some space before unloading."
    elif context.downloads.is_running and is_idle:
        why = "A download is running."
    if why and not is_idle:
        raise MlxkvError(why)
    if why:
        return
    import mlx.core as mx

    model, before = context.ready_model, mx.get_active_memory()
    unloaded = UnloadedModel(model.name, model.adapter, ClosedChat.of(context))
    again = len(chat.log) if chat is not None and unloaded.chat.unsaved is not None else 0
    del chat, model
    context.unload_model()
    context.unloaded = unloaded
    freed = max(0, before - mx.get_active_memory())
    yield ModelUnloaded(unloaded.name, freed, again, is_idle)
    yield session_status(context)


def needs_model(context: EngineContext, command: cmd.Command) -> bool:
    """Whether `command` needs the model that is unloaded now, or its chat."""
    if context.unloaded is None or isinstance(command, _WITHOUT_MODEL):
        return False
    if isinstance(command, cmd.ChangeSettings):
        return not command.for_all  # the chat's own are stored with it
    session = context.unloaded.chat.session
    return not isinstance(command, _OF_ONE_CHAT) or command.session_id in (None, session)


def reload(context: EngineContext, command: cmd.Command) -> Iterator[EngineEvent]:
    """Load the model again, and open its chat for `command`; if that is stopped, the model stays unloaded.

    Raises:
        MlxkvError: it cannot be loaded. PromptError, SessionLockedError: another process has changed the chat or has it
            open; then it is shown as it is now.
    """
    unloaded = context.unloaded
    assert unloaded is not None
    context.unsent = command.text if isinstance(command, cmd.Send | cmd.Edit) else ""
    context.begin_load()
    yield ModelLoading(unloaded.name)
    try:
        context.model = context.load_model(unloaded.name, unloaded.adapter)
    except MlxkvError as error:
        if not context.cancel_load.is_set():
            raise
        unsent, context.unsent = context.unsent, ""
        yield Failed(str(error), FailureKind.STOPPED, unsent, isinstance(command, cmd.READS))
        yield session_status(context)
        return
    context.unloaded = None
    yield context.model_ready(unloaded.name)
    if not isinstance(command, cmd.OpenChat):
        yield from _reopen(context, unloaded.chat)


def _reopen(context: EngineContext, closed: ClosedChat) -> Iterator[EngineEvent]:
    """Open the chat that the window still shows, and show it only if it has changed."""
    opened: list[EngineEvent] = []
    for event in closed.reopen(context, is_same_model=True):
        if isinstance(event, ChatOpened | Versions):
            opened.append(event)
        else:
            yield event
    chat = context.current_chat
    if chat.read_only:
        yield from opened
        raise SessionLockedError(chat.read_only)
    if chat.num_messages != closed.num_messages:
        yield from opened
        raise PromptError("This chat was changed in another mlxkv meanwhile and is shown as it is now; send it again.")
