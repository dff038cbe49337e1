"""Handlers for compaction: plan, summarise, branch, undo. MLX thread.

`mlxkv.chat.compaction` decides which messages stay. Stopped or failed, compaction leaves the chat unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlxkv.chat import compaction
from mlxkv.chat.chat import Chat
from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers import chats
from mlxkv.engine.handlers.status import session_status, update_disk_bytes
from mlxkv.errors import MlxkvError, OutOfMemoryError, PromptError
from mlxkv.events import Notice, TurnFinished
from mlxkv.models import BUILT_IN
from mlxkv.protocol.events import ChatOpened, Compacted, EngineEvent, Failed, FailureKind, TurnStarted
from mlxkv.protocol.status import CompactPlan, SaveState


@dataclass(frozen=True)
class Uncompacted:
    """The chat before compaction. `num_messages` is the length of the compacted branch when it was made."""

    session_id: str | None
    chat: Chat  # to return to if nothing is saved
    num_messages: int


def plan_compaction(context: EngineContext) -> CompactPlan:
    model = context.ready_model
    # The built-in model is too small to summarise: it would invent things.
    can_summarise = model.name not in BUILT_IN and model.has_chat_template
    return compaction.plan(context.current_chat, model.name, can_summarise)


def compact(context: EngineContext, summarise: bool) -> Iterator[EngineEvent]:
    """Compact the open chat. With `summarise` the summary is shown as a reply while it is generated."""
    chat, plan, summary = context.current_chat, plan_compaction(context), None
    if summarise:
        if not plan.summary_tokens:
            raise PromptError(f"{plan.model} cannot summarise; /compact last keeps only the last messages.")
        request = compaction.request(plan.summary_tokens)
        yield ChatOpened(chat.session_id, chat.title)
        yield TurnStarted(request)
        try:
            sampling: dict[str, Any] = {**context.settings.sampling, "max_tokens": plan.summary_tokens}
            events = chat.aside(request, **sampling)
            context.apply_earlier_stop()
            for event in events:
                summary = event if isinstance(event, TurnFinished) else None
                yield event
        except MlxkvError:
            yield from chats.show_chat(context)
            raise
        is_stopped = summary is None or summary.reason == "stopped"
        if summary is None or is_stopped or not compaction.summary_of(summary):
            yield from chats.show_chat(context)
            yield session_status(context)
            if not is_stopped:
                raise MlxkvError(f"{plan.model} wrote no summary, so the chat is unchanged; try /compact last.")
            yield Failed("Compaction was stopped; the chat is unchanged.", FailureKind.STOPPED)
            return
    yield from _open_branch(context, chat, plan, summary)


def _open_branch(
    context: EngineContext, chat: Chat, plan: CompactPlan, summary: TurnFinished | None
) -> Iterator[EngineEvent]:
    titles: list[str] = []
    if chat.session_id is not None:
        with context.store() as store:
            titles = [saved.title for saved in store.list()]
    branch = compaction.branch(chat, plan, summary, titles)
    context.close_chat()
    if chat.session_id is None:
        chat.forget()  # two caches at once may not fit
    context.chat, context.uncompacted = branch, Uncompacted(chat.session_id, chat, len(branch.messages))
    context.set_saved(SaveState.SAVED if context.save else SaveState.OFF)
    notice = ""
    try:
        events = branch.read()
        context.apply_earlier_stop()
        yield from events
    except OutOfMemoryError as error:
        notice = str(error)
    yield from chats.show_chat(context)
    if notice:
        yield Notice(notice)
    yield Compacted(summary is not None, plan.kept_messages, len(branch.log), branch.cache.capacity)
    update_disk_bytes(context)
    yield session_status(context)


def undo_compaction(context: EngineContext) -> Iterator[EngineEvent] | None:
    """Return to the whole chat; None if the open chat was not compacted, or was continued since."""
    before, chat = context.uncompacted, context.chat
    if before is None or chat is None or len(chat.messages) > before.num_messages:
        return None
    return _return_to(context, before)


def _return_to(context: EngineContext, before: Uncompacted) -> Iterator[EngineEvent]:
    if before.session_id is not None:
        yield from chats.open_chat(context, before.session_id)
        yield Notice("Returned to the whole chat; the compacted one stays as a branch.")
    else:
        context.close_chat()
        context.chat = before.chat
        yield from chats.show_chat(context)
        yield session_status(context)
        yield Notice("Returned to the whole chat.")
