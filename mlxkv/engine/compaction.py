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
from mlxkv.engine.context import Front
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


def planned(front: Front) -> CompactPlan:
    model = front.ready_model
    # The built-in model is far too small to summarise: it would make things up.
    return compaction.plan(front.open_chat, model.name, model.name not in BUILT_IN and model.has_chat_template)


def run(front: Front, summarise: bool) -> Iterator[EngineEvent]:
    """With `summarise` the reply that is shown is the summary; then the branch is read and shown."""
    chat, plan, summary = front.open_chat, planned(front), None
    if summarise and not plan.summary_tokens:
        raise PromptError(f"{plan.model} cannot summarise; /compact last keeps the last messages as they are.")
    ask, how = compaction.request(plan.summary_tokens), {**front.settings.sampling, "max_tokens": plan.summary_tokens}
    if summarise:
        yield ChatOpened(chat.session_id, chat.title)
        yield TurnStarted(ask)
        try:
            for event in front.begun(chat.aside(ask, **how)):
                summary = event if isinstance(event, TurnFinished) else None
                yield event
        except MlxkvError:
            yield chats.view(chat)
            raise
        if summary is None or summary.reason == "stopped":
            yield from _as_before(front, chat)
            yield Failed("Compacting was stopped: the chat is as it was.", "stopped")
            return
        if not compaction.summary_of(summary):
            yield from _as_before(front, chat)
            raise MlxkvError(
                f"{plan.model} wrote no summary, so the chat is as it was; /compact last keeps the last messages."
            )
    yield from _gone_on(front, chat, plan, summary)


def _as_before(front: Front, chat: Chat) -> Iterator[EngineEvent]:
    yield from chats.versions(front)
    yield chats.view(chat, num_messages=len(chat.messages))
    yield figures.status(front)


def _gone_on(front: Front, chat: Chat, plan: CompactPlan, summary: TurnFinished | None) -> Iterator[EngineEvent]:
    titles: list[str] = []
    if chat.session_id is not None:
        with front.store() as store:
            titles = [found.title for found in store.list()]
    twin = compaction.branch(chat, plan, summary, titles)
    front.close_chat()
    if chat.session_id is None:
        chat.forget()  # two caches at once may not fit
    front.chat, front.before = twin, Before(chat.session_id, chat, len(twin.messages))
    front.saved = "saved" if front.save else "off"
    notice = ""
    try:
        yield from front.begun(twin.read())
    except OutOfMemoryError as error:
        notice = str(error)
    yield from chats.versions(front)
    yield chats.view(twin, num_messages=len(twin.messages))
    if notice:
        yield Notice(notice)
    what = "a summary that stays pinned, and " if summary is not None else ""
    used = f"{len(twin.log):,} of {twin.cache.capacity or len(twin.log):,} tok"
    yield Compacted(
        f"✓ compacted: {what}the last {plan.kept_messages} messages as they were · {used} · the whole chat is kept: "
        "/undo goes back to it, /tree shows both"
    )
    figures.look_at_disk(front)
    yield figures.status(front)


def undone(front: Front) -> Iterator[EngineEvent] | None:
    """Back to the whole chat, while nothing was said in its short form; None where that is not what undoing means."""
    before, chat = front.before, front.chat
    if before is None or chat is None or len(chat.messages) > before.num_messages:
        return None
    return _back(front, before)


def _back(front: Front, before: Before) -> Iterator[EngineEvent]:
    if before.session_id is not None:
        yield from chats.opened(front, before.session_id)
    else:
        front.close_chat()
        front.chat = before.chat
        yield from chats.versions(front)
        yield chats.view(before.chat, num_messages=len(before.chat.messages))
        yield figures.status(front)
    yield Notice("The whole chat is back; its short form stays as a branch." if before.session_id else "As it was.")
