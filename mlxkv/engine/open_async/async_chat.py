"""AsyncChat and AsyncPromptCache: handles for `asyncio` on a chat and a prompt cache of the MLX thread.

They forward; `chat/chat.py` and `cache/prompt_cache.py` say what a chat and a prompt cache do.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

from mlxkv.engine.open_async.async_events import AsyncEvents
from mlxkv.engine.open_async.held import Held
from mlxkv.engine.request_thread import RequestThread, Sink
from mlxkv.events import Message, ReplyFinished, TurnEvent, TurnFinished
from mlxkv.inference.sampling_types import Sampling
from mlxkv.model import Completion
from mlxkv.stats import TurnStats

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.chat.chat import Chat
    from mlxkv.model import Model
    from mlxkv.store.records import Restored

R = TypeVar("R")


@dataclass(frozen=True)
class _Shown:
    """What a chat was like after the last thing that was done with it."""

    messages: tuple[Message, ...] = ()
    stats: TurnStats = field(default_factory=TurnStats)
    title: str = ""
    session_id: str | None = None
    read_only: str | None = None
    restored: Restored | None = None

    @classmethod
    def of(cls, chat: Chat) -> Self:
        return cls(chat.messages, chat.stats, chat.title, chat.session_id, chat.read_only, chat.restored)


class AsyncChat:
    """A chat, made by `AsyncModel.chat` and `AsyncModel.resume`. Its methods are those of `Chat`.

    What is asked of one chat is done in that order: a second message waits for the end of the first reply. Several
    chats, and requests beside them, get a token each in turn. The properties are as of the last thing that was done.
    """

    def __init__(self, thread: RequestThread, make: Callable[[Model], Chat], after: Held[Chat] | None = None) -> None:
        """`make` is called on the MLX thread; `after`: see `Held.of`."""
        self._thread, shown = thread, [_Shown()]
        self._shown = shown

        def made(model: Model) -> Chat:
            chat = make(model)
            shown[0] = _Shown.of(chat)
            return chat

        self._held = Held.of(thread, made, lambda chat: chat.close(), after)

    async def made(self) -> Self:
        """Wait until it is there."""
        await asyncio.wrap_future(self._held.made)
        return self

    # -- turns -------------------------------------------------------------------------------------------------------

    def send(
        self,
        text: str,
        *,
        begin: str | None = None,
        whole: bool = False,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncEvents:
        """Send `text` and iterate the reply; see `Chat.send`. The last event is a ReplyFinished.

        Leaving the loop stops the reply: what was generated stays in the chat, and a message without any leaves it.

        Args:
            timeout: seconds for the reply, its time in line included; then it is stopped and a TimeoutError raised.
            begin, whole, sampling: as for `Chat.send`.

        Raises (the first step of the loop):
            QueueFullError: too many wait. ClosedError: the chat or the model is closed. Others: as `Chat.send`.
        """
        return self._turn(lambda chat, now: chat.send(text, begin=begin, whole=whole, started=now, **sampling), timeout)

    def reply(
        self, *, begin: str | None = None, timeout: float | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncEvents:
        """Reply to the messages as they are; see `Chat.reply`, and `send`."""
        return self._turn(lambda chat, now: chat.reply(begin=begin, started=now, **sampling), timeout)

    async def ask(
        self,
        text: str | None = None,
        *,
        begin: str | None = None,
        whole: bool = False,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """`send` the text, or `reply` without one, and return the whole reply; arguments and errors as of these."""
        if text is None:
            return await self.reply(begin=begin, timeout=timeout, **sampling).completion()
        return await self.send(text, begin=begin, whole=whole, timeout=timeout, **sampling).completion()

    async def add(self, role: str, text: str, *, tool_call_id: str | None = None) -> None:
        """See `Chat.add`."""
        await self.run(lambda chat: chat.add(role, text, tool_call_id=tool_call_id))

    def retry(
        self, turn: int | None = None, *, timeout: float | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncEvents:
        """See `Chat.retry`, and `send`."""
        return self._turn(lambda chat, now: chat.retry(turn, started=now, **sampling), timeout)

    def edit(
        self,
        turn: int,
        text: str,
        *,
        whole: bool = False,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncEvents:
        """See `Chat.edit`, and `send`."""
        return self._turn(lambda chat, now: chat.edit(turn, text, whole=whole, started=now, **sampling), timeout)

    def continue_reply(self, *, timeout: float | None = None, **sampling: Unpack[Sampling]) -> AsyncEvents:
        """See `Chat.continue_reply`, and `send`."""
        return self._turn(lambda chat, now: chat.continue_reply(started=now, **sampling), timeout)

    def aside(self, text: str, *, timeout: float | None = None, **sampling: Unpack[Sampling]) -> AsyncEvents:
        """See `Chat.aside`, and `send`."""
        return self._turn(lambda chat, _: chat.aside(text, **sampling), timeout, is_recorded=False)

    def cancel(self) -> None:
        """Stop the reply that is being generated; its loop still gets a TurnFinished. See `Chat.cancel`."""
        get = self._held.get
        self._thread.post(lambda: get().cancel())

    def answer_now(self) -> None:
        """End the reasoning of the reply that is being generated; see `Chat.answer_now`."""
        get = self._held.get
        self._thread.post(lambda: get().answer_now())

    def _turn(
        self,
        events: Callable[[Chat, float], Iterator[TurnEvent]],
        timeout: float | None,
        *,
        is_recorded: bool = True,
    ) -> AsyncEvents:
        held, shown = self._held, self._shown

        def begin(sink: Sink) -> int:
            now = time.perf_counter()

            def turn(chat: Chat) -> Iterator[TurnEvent]:
                try:
                    for event in events(chat, now):
                        if not isinstance(event, TurnFinished):
                            yield event
                            continue
                        shown[0] = _Shown.of(chat)
                        tokens = () if event.unanswered or not is_recorded else chat.turns[-1].ids
                        yield ReplyFinished(**{f.name: getattr(event, f.name) for f in fields(event)}, tokens=tokens)
                finally:
                    shown[0] = _Shown.of(chat)

            return held.iterate(turn, sink)

        return AsyncEvents(self._thread, begin, timeout)

    # -- the rest ------------------------------------------------------------------------------------------------------

    async def undo(self) -> str:
        """See `Chat.undo`."""
        return await self.run(lambda chat: chat.undo())

    async def rewind(self, turn: int) -> str:
        """See `Chat.rewind`."""
        return await self.run(lambda chat: chat.rewind(turn))

    async def fork(self, turn: int | None = None) -> AsyncChat:
        """See `Chat.fork`."""
        get = self._held.get
        return await AsyncChat(self._thread, lambda _: get().fork(turn), self._held).made()

    async def save(self, title: str | None = None) -> str:
        """See `Chat.save`."""
        return await self.run(lambda chat: chat.save(title))

    async def run(self, function: Callable[[Chat], R]) -> R:
        """Call a function of the Chat on the MLX thread, for what this class has no method for.

        It should take milliseconds, as all replies wait for it, and return plain values: no chat, cache or array.
        """
        shown = self._shown

        def called(chat: Chat) -> R:
            try:
                return function(chat)
            finally:
                shown[0] = _Shown.of(chat)

        return await asyncio.wrap_future(self._held.call(called))

    async def close(self) -> str | None:
        """End the reply, save all rows and unlock the session; one sentence if something could not be saved."""
        return await asyncio.wrap_future(self._held.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- properties ----------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, without the system prompt."""
        return self._shown[0].messages

    @property
    def stats(self) -> TurnStats:
        """The figures of the last turn."""
        return self._shown[0].stats

    @property
    def title(self) -> str:
        """The title that the chat is listed under, or "" if it has none."""
        return self._shown[0].title

    @property
    def session_id(self) -> str | None:
        """None while this chat is not saved."""
        return self._shown[0].session_id

    @property
    def read_only(self) -> str | None:
        """A sentence naming the other process that has the session open; then only forks can continue. Else None."""
        return self._shown[0].read_only

    @property
    def restored(self) -> Restored | None:
        """What `resume` loaded from disk; None in a new chat."""
        return self._shown[0].restored


class AsyncPromptCache:
    """A prompt cache, made by `AsyncModel.prefill` and `AsyncModel.load_cache`.

    It never changes: every request and chat that is given one continues a fork of it. Its memory is freed with it.

    Attributes:
        offset: the number of tokens it holds.
        nbytes: the size of its buffers in bytes.
    """

    offset: int
    nbytes: int

    def __init__(self, thread: RequestThread, held: Held[PromptCache]) -> None:
        self._thread, self.held = thread, held

    @classmethod
    async def of(cls, thread: RequestThread, held: Held[PromptCache]) -> Self:
        """Of a cache that is there, or is made at once."""
        made = cls(thread, held)
        made.offset, made.nbytes = await made.run(lambda cache: (cache.offset, cache.nbytes))
        return made

    async def fork(self) -> AsyncPromptCache:
        """A second handle on the same tokens, which stays when this one is closed."""
        get = self.held.get
        return await AsyncPromptCache.of(self._thread, Held.of(self._thread, lambda _: get().fork(), after=self.held))

    async def save(self, path: str | os.PathLike[str]) -> int:
        """See `PromptCache.save`."""
        return await self.run(lambda cache: cache.save(path))

    async def export_mlx_lm(self, path: str | os.PathLike[str], version: str = "0.32") -> int:
        """See `PromptCache.export_mlx_lm`."""
        return await self.run(lambda cache: cache.export_mlx_lm(path, version))

    async def run(self, function: Callable[[PromptCache], R]) -> R:
        """Call a function of the PromptCache on the MLX thread; see `AsyncChat.run`. It must not change it."""
        return await asyncio.wrap_future(self.held.call(function))

    async def close(self) -> None:
        """Free its memory now; what was forked from it stays."""
        await asyncio.wrap_future(self.held.close())
