"""A turn of the chat in front: its events, the footer now and then, and at last what versions there are. MLX thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxkv.engine import chats
from mlxkv.engine import status as figures
from mlxkv.engine.context import EngineContext
from mlxkv.errors import DiskError, MessageTooLongError, MlxkvError
from mlxkv.events import KVNotSaved, NotSaved, PromptEvicted, TextDelta, TurnEvent, TurnFinished
from mlxkv.protocol.commands import Edit, Send
from mlxkv.protocol.events import EngineEvent, KVSaving, MessageTooLong, TurnStarted
from mlxkv.stats import Overflow

if TYPE_CHECKING:
    from mlxkv.chat.chat import Chat

_STATUS_SECONDS = 1.0
Begin = Callable[["Chat", dict[str, Any]], Iterator[TurnEvent]]  # with the sampling parameters that are set


def run(context: EngineContext, send: Send) -> Iterator[EngineEvent]:
    """The user's message and the reply."""
    context.unsent = send.text
    if context.chat is None:
        _ = context.ready_model
        yield from chats.new(context, None)
    chat, how = context.current_chat, context.settings.sampling
    yield from _sent(
        context, send.text, lambda: chat.send(send.text, started=send.sent_at, whole=not send.anyway, **how)
    )


def again(context: EngineContext, turn: int | None, started: float) -> Iterator[EngineEvent]:
    """A reply anew: the window goes back to the message first, the chat with the first event."""
    chat, how = context.current_chat, context.settings.sampling
    turn = chat.question(turn)
    yield from _sent(context, chat.messages[turn].text, lambda: chat.retry(turn, started=started, **how), turn)


def edited(context: EngineContext, edit: Edit) -> Iterator[EngineEvent]:
    """A message changed: as `again`."""
    context.unsent = edit.text
    chat, how = context.current_chat, context.settings.sampling

    def begin() -> Iterator[TurnEvent]:
        return chat.edit(edit.turn, edit.text, started=edit.sent_at, whole=not edit.anyway, **how)

    yield from _sent(context, edit.text, begin, edit.turn)


def _sent(
    context: EngineContext, text: str, begin: Callable[[], Iterator[TurnEvent]], instead_of: int | None = None
) -> Iterator[EngineEvent]:
    """`text` as the next message, or instead of one; where it becomes no part of the chat, that is as it was."""
    chat = context.current_chat
    before = chat.turns
    try:
        events = context.begun(begin())
        if instead_of is not None:
            yield from chats.versions(context)
            yield chats.view(chat, num_messages=instead_of)
        yield from _streamed(context, text, events, is_instead=instead_of is not None)
    except MlxkvError as error:
        if chat.turns != before:
            context.unsent = ""
        elif instead_of is not None:
            yield from _as_it_is(context)
        if not isinstance(error, MessageTooLongError):
            raise
        yield MessageTooLong(text, _offered(chat, error.overflow))
        yield figures.status(context)
    context.unsent = ""


def _offered(chat: Chat, overflow: Overflow) -> Overflow:
    """Without a larger window where the chat keeps the one it has: see `chats.resettled`."""
    return replace(overflow, window=0) if chat.session_id is None and chat.turns else overflow


def _as_it_is(context: EngineContext) -> Iterator[EngineEvent]:
    chat = context.current_chat
    yield from chats.versions(context)
    yield chats.view(chat, num_messages=len(chat.messages))


def continued(context: EngineContext, begin: Begin) -> Iterator[EngineEvent]:
    """A reply grows: what there was of it is played again, so that text cut in the middle joins up."""
    chat = context.current_chat
    events = context.begun(begin(chat, context.settings.sampling))
    *earlier, last = chat.messages
    yield from chats.versions(context)
    yield chats.view(chat, num_messages=len(earlier))
    yield from _streamed(context, "", events, last.text)


def _streamed(
    context: EngineContext, text: str, events: Iterator[TurnEvent], said: str = "", *, is_instead: bool = False
) -> Iterator[EngineEvent]:
    """`is_instead`: the chat had gone on otherwise from here, and does again if nothing comes of this."""
    chat = context.current_chat
    saves = context.save
    if saves:
        with suppress(DiskError):  # the turn tells of it
            saves = not context.ready_model.store.read_only
            if saves:
                context.ready_model.store.progress.tell = lambda done, total: context.emit(KVSaving(done, total))
    context.saved = "saving" if saves else "off"
    told = time.monotonic()
    yield TurnStarted(text)
    if said:
        yield TextDelta(said, 0)
    notice = ""
    try:
        for event in events:
            if isinstance(event, KVNotSaved) and not isinstance(event, NotSaved):
                notice = event.text
            elif isinstance(event, PromptEvicted):
                event = replace(event, overflow=_offered(chat, event.overflow))
            elif isinstance(event, TurnFinished) and event.unanswered and is_instead:
                yield from _as_it_is(context)
            elif isinstance(event, TurnFinished):  # its reply is on disk by now
                yield from chats.versions(context, max(0, chat.num_messages - 2))
            yield event
            if time.monotonic() - told >= _STATUS_SECONDS:
                told = time.monotonic()
                yield figures.status(context)
    finally:
        if saves:
            notice = notice or ("the disk takes no more" if chat.is_behind else "")
            context.saved = f"not saved: {notice}" if notice else "saved" if chat.session_id else ""
    figures.look_at_disk(context)
    yield figures.status(context)
