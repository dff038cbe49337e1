"""A turn of the chat in front: its events, the footer now and then, and at last what versions there are. MLX thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlxkv.engine import chats, figures
from mlxkv.engine.front import Front
from mlxkv.errors import DiskError
from mlxkv.events import EngineEvent, KVNotSaved, KVSaving, NotSaved, TextDelta, TurnEvent, TurnFinished, TurnStarted

if TYPE_CHECKING:
    from mlxkv.chat import Chat

_STATUS_SECONDS = 1.0
Begin = Callable[["Chat", dict[str, Any]], Iterator[TurnEvent]]  # with the sampling parameters that are set


def run(front: Front, text: str, begin: Begin) -> Iterator[EngineEvent]:
    """The user's `text` and the reply."""
    if front.chat is None:
        _ = front.ready_model
        yield from chats.new(front, None)
    yield from _streamed(front, text, front.begun(begin(front.open_chat, front.settings.sampling)))


def again(front: Front, turn: int | None, started: float) -> Iterator[EngineEvent]:
    """A reply anew."""
    chat = front.open_chat
    turn = chat.question(turn)
    shown = chat.messages[turn].text
    yield from _sent_instead(front, turn, chat.rewind(turn), shown, started)


def edited(front: Front, turn: int, text: str, started: float) -> Iterator[EngineEvent]:
    """A message changed."""
    front.open_chat.edit(turn, text)  # raises what is wrong with it, and is not iterated
    front.open_chat.rewind(turn)
    yield from _sent_instead(front, turn, text, text, started)


def _sent_instead(front: Front, turn: int, text: str, shown: str, started: float) -> Iterator[EngineEvent]:
    """The chat has gone back to before message number `turn`, and the window follows before anything is said."""
    chat = front.open_chat
    events = front.begun(chat.send(text, started=started, **front.settings.sampling))
    yield from chats.versions(front)
    yield chats.view(chat, num_messages=turn)
    yield from _streamed(front, shown, events)


def continued(front: Front, begin: Begin) -> Iterator[EngineEvent]:
    """A reply grows: what there was of it is played again, so that text cut in the middle joins up."""
    chat = front.open_chat
    events = front.begun(begin(chat, front.settings.sampling))
    *earlier, last = chat.messages
    yield from chats.versions(front)
    yield chats.view(chat, num_messages=len(earlier))
    yield from _streamed(front, "", events, last.text)


def _streamed(front: Front, text: str, events: Iterator[TurnEvent], said: str = "") -> Iterator[EngineEvent]:
    saves = front.save
    if saves:
        with suppress(DiskError):  # the turn tells of it
            saves = not front.ready_model.store.read_only
            if saves:
                front.ready_model.store.watch_saving(lambda done, total: front.tell(KVSaving(done, total)))
    front.saved = "saving" if saves else "off"
    told = time.monotonic()
    yield TurnStarted(text)
    if said:
        yield TextDelta(said, 0)
    notice = ""
    for event in events:
        if isinstance(event, KVNotSaved) and not isinstance(event, NotSaved):
            notice = event.text
        elif isinstance(event, TurnFinished):  # its reply is on disk by now
            yield from chats.versions(front, max(0, front.open_chat.num_messages - 2))
        yield event
        if time.monotonic() - told >= _STATUS_SECONDS:
            told = time.monotonic()
            yield figures.status(front)
    if saves:
        notice = notice or ("the disk takes no more" if front.open_chat.is_behind else "")
        front.saved = f"not saved: {notice}" if notice else "saved"
    figures.look_at_disk(front)
    yield figures.status(front)
