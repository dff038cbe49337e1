"""Handlers for turns: send, retry, edit and continue a reply. MLX thread.

They forward the events of a turn, and add the message versions and the session's status.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers import chats
from mlxkv.engine.handlers.status import session_status, update_disk_bytes
from mlxkv.errors import DiskError, MessageTooLongError, MlxkvError
from mlxkv.events import KVNotSaved, NotSaved, TextDelta, TurnEvent, TurnFinished
from mlxkv.protocol.commands import Edit, Send
from mlxkv.protocol.events import EngineEvent, MessageTooLong, SaveProgress, TurnStarted
from mlxkv.protocol.status import SaveState

if TYPE_CHECKING:
    pass

_STATUS_SECONDS = 1.0  # between two status events of a turn


def send(context: EngineContext, command: Send) -> Iterator[EngineEvent]:
    context.unsent = command.text
    if context.chat is None:
        _ = context.ready_model  # raises an error without one
        yield from chats.new_chat(context)
    start = partial(context.current_chat.send, command.text, whole=not command.anyway)
    yield from _run(context, command.text, command.sent_at, start)


def retry(
    context: EngineContext, turn: int | None, started: float, changes: Mapping[str, Any] | None = None
) -> Iterator[EngineEvent]:
    """`changes`: settings for this reply alone; `think` is the chat's again after it."""
    chat, sampling = context.current_chat, dict(changes or {})
    turn, think = chat.question(turn), chat.thinking
    chat.thinking = sampling.pop("think", think)
    try:
        start = partial(chat.retry, turn)
        yield from _run(context, chat.messages[turn].text, started, start, turn, sampling)
    finally:
        chat.thinking = think


def edit(context: EngineContext, command: Edit) -> Iterator[EngineEvent]:
    context.unsent = command.text
    start = partial(context.current_chat.edit, command.turn, command.text, whole=not command.anyway)
    yield from _run(context, command.text, command.sent_at, start, command.turn)


def continue_reply(context: EngineContext, started: float) -> Iterator[EngineEvent]:
    """Continue the last reply. Its text is emitted again, so that Markdown cut in the middle is rendered whole."""
    chat = context.current_chat
    events = chat.continue_reply(started=started, **context.settings.sampling)
    context.apply_earlier_stop()
    messages = chat.messages
    yield from chats.show_chat(context, num_messages=len(messages) - 1)
    yield session_status(context)
    yield from _stream(context, "", events, messages[-1].text)


def _run(
    context: EngineContext,
    text: str,
    started: float,
    start: Callable[..., Iterator[TurnEvent]],
    replaced: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Iterator[EngineEvent]:
    """Send `text` as the next message, or in place of message `replaced`; the window then shows the chat before it.

    If `text` does not become part of the chat, the chat is shown unchanged.
    """
    chat = context.current_chat
    before = chat.turns
    try:
        events = start(started=started, **{**context.settings.sampling, **(sampling or {})})
        context.apply_earlier_stop()
        if replaced is not None:
            yield from chats.show_chat(context, num_messages=replaced)
            yield session_status(context, replaced)
        yield from _stream(context, text, events, is_replacing=replaced is not None)
    except MlxkvError as error:
        if chat.turns != before:
            context.unsent = ""
        elif replaced is not None:
            yield from chats.show_chat(context)
        if not isinstance(error, MessageTooLongError):
            raise
        yield MessageTooLong(text, error.overflow)
        yield session_status(context)
    context.unsent = ""


def _stream(
    context: EngineContext, text: str, events: Iterator[TurnEvent], earlier: str = "", *, is_replacing: bool = False
) -> Iterator[EngineEvent]:
    """Emit a turn. `is_replacing`: the old branch is shown again if there is no reply."""
    chat = context.current_chat
    saves = context.save
    if saves:
        with suppress(DiskError):  # the turn reports it
            store = context.ready_model.store
            saves = not store.read_only
            if saves:
                store.progress.tell = lambda done, total: context.emit(SaveProgress(done, total))
    context.set_saved(SaveState.SAVING if saves else SaveState.OFF)
    last_status = time.monotonic()
    yield TurnStarted(text)
    if earlier:
        yield TextDelta(earlier, 0)
    problem = ""
    try:
        for event in events:
            match event:
                case KVNotSaved() if not isinstance(event, NotSaved):
                    problem = "the KV cache; the chat itself is"
                case TurnFinished(unanswered=True) if is_replacing:
                    yield from chats.show_chat(context)
                case TurnFinished():  # its reply is on disk by now
                    context.wants_title = True
                    yield chats.versions(context, max(0, len(chat.turns) - 2))
            yield event
            if time.monotonic() - last_status >= _STATUS_SECONDS:
                last_status = time.monotonic()
                yield session_status(context)
    finally:
        if saves:
            problem = problem or ("the disk is full" if chat.is_behind else "")
            saved = SaveState.SAVED if chat.session_id else SaveState.NOTHING
            context.set_saved(SaveState.NOT_SAVED if problem else saved, problem)
    update_disk_bytes(context)
    yield session_status(context)
