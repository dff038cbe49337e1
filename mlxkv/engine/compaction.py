"""Compacting the chat in front: what it would cost, the summary as it is written, the branch, the way back. MLX thread.

What stays is decided in `mlxkv.chat.compaction`. Stopped or failed, it leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlxkv.chat import compaction
from mlxkv.chat.chat import Chat
from mlxkv.engine import chats
from mlxkv.engine import status as figures
from mlxkv.engine.context import EngineContext
from mlxkv.errors import MlxkvError, OutOfMemoryError, PromptError
from mlxkv.events import Notice, TurnFinished
from mlxkv.models import BUILT_IN
from mlxkv.protocol.events import ChatOpened, Compacted, EngineEvent, Failed, TurnStarted
from mlxkv.protocol.status import CompactPlan


@dataclass(frozen=True)
class Before:
    """The chat that the one in front is a short form of. `num_messages`: how many that began with."""

    session_id: str | None
    chat: Chat  # for where nothing is saved
    num_messages: int


def planned(context: EngineContext) -> CompactPlan:
    model = context.ready_model
    # The built-in model is far too small to summarise: it would make things up.
    return compaction.plan(context.current_chat, model.name, model.name not in BUILT_IN and model.has_chat_template)


def run(context: EngineContext, summarise: bool) -> Iterator[EngineEvent]:
    """With `summarise` the reply that is shown is the summary; then the branch is read and shown."""
    chat, plan, summary = context.current_chat, planned(context), None
    if summarise and not plan.summary_tokens:
        raise PromptError(f"{plan.model} cannot summarise; /compact last keeps the last messages as they are.")
    ask, how = compaction.request(plan.summary_tokens), {**context.settings.sampling, "max_tokens": plan.summary_tokens}
    if summarise:
        yield ChatOpened(chat.session_id, chat.title)
        yield TurnStarted(ask)
        try:
            for event in context.begun(chat.aside(ask, **how)):
                summary = event if isinstance(event, TurnFinished) else None
                yield event
        except MlxkvError:
            yield chats.view(chat)
            raise
        if summary is None or summary.reason == "stopped":
            yield from _as_before(context, chat)
            yield Failed("Compacting was stopped: the chat is as it was.", "stopped")
            return
        if not compaction.summary_of(summary):
            yield from _as_before(context, chat)
            raise MlxkvError(
                f"{plan.model} wrote no summary, so the chat is as it was; /compact last keeps the last messages."
            )
    yield from _gone_on(context, chat, plan, summary)


def _as_before(context: EngineContext, chat: Chat) -> Iterator[EngineEvent]:
    yield from chats.versions(context)
    yield chats.view(chat, num_messages=len(chat.messages))
    yield figures.status(context)


def _gone_on(
    context: EngineContext, chat: Chat, plan: CompactPlan, summary: TurnFinished | None
) -> Iterator[EngineEvent]:
    titles: list[str] = []
    if chat.session_id is not None:
        with context.store() as store:
            titles = [found.title for found in store.list()]
    twin = compaction.branch(chat, plan, summary, titles)
    context.close_chat()
    if chat.session_id is None:
        chat.forget()  # two caches at once may not fit
    context.chat, context.before = twin, Before(chat.session_id, chat, len(twin.messages))
    context.saved = "saved" if context.save else "off"
    notice = ""
    try:
        yield from context.begun(twin.read())
    except OutOfMemoryError as error:
        notice = str(error)
    yield from chats.versions(context)
    yield chats.view(twin, num_messages=len(twin.messages))
    if notice:
        yield Notice(notice)
    what = "a summary that stays pinned, and " if summary is not None else ""
    used = f"{len(twin.log):,} of {twin.cache.capacity or len(twin.log):,} tok"
    yield Compacted(
        f"✓ compacted: {what}the last {plan.kept_messages} messages as they were · {used} · the whole chat is kept: "
        "/undo goes back to it, /tree shows both"
    )
    figures.look_at_disk(context)
    yield figures.status(context)


def undone(context: EngineContext) -> Iterator[EngineEvent] | None:
    """Back to the whole chat, while nothing was said in its short form; None where that is not what undoing means."""
    before, chat = context.before, context.chat
    if before is None or chat is None or len(chat.messages) > before.num_messages:
        return None
    return _back(context, before)


def _back(context: EngineContext, before: Before) -> Iterator[EngineEvent]:
    if before.session_id is not None:
        yield from chats.opened(context, before.session_id)
    else:
        context.close_chat()
        context.chat = before.chat
        yield from chats.versions(context)
        yield chats.view(before.chat, num_messages=len(before.chat.messages))
        yield figures.status(context)
    yield Notice("The whole chat is back; its short form stays as a branch." if before.session_id else "As it was.")
