"""AsyncEvents: the events of one reply, for `async for`.

Between an EventBuffer, which the MLX thread fills, and the event loop that iterates.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from functools import partial
from typing import Self

from mlxkv.engine.open_async.event_buffer import EventBuffer
from mlxkv.engine.request_thread import RequestThread, Sink
from mlxkv.errors import ClosedError
from mlxkv.events import TurnEvent, TurnFinished
from mlxkv.model import Completion


class AsyncEvents(AsyncIterator[TurnEvent]):
    """The events of one reply; the last is a TurnFinished.

    The request is put in line by the first step of the loop. Leaving the loop (`break`, an error, a cancelled task,
    `aclose`) cancels it before its next chunk or token; `async with` around the loop does so where a variable still
    holds this object. A consumer that is slower than the model gets longer pieces of text.
    """

    def __init__(self, thread: RequestThread, begin: Callable[[Sink], int], timeout: float | None = None) -> None:
        """`begin` puts the request in line and returns its id; `timeout`: seconds from then on."""
        self._thread, self._begin, self._timeout = thread, begin, timeout
        self._id: int | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TurnEvent:
        if self._is_over:
            raise StopAsyncIteration
        loop = asyncio.get_running_loop()
        try:
            if self._id is None:
                self._ready = asyncio.Event()
                self._buffer = EventBuffer(partial(loop.call_soon_threadsafe, self._ready.set))
                self._until = None if self._timeout is None else loop.time() + self._timeout
                self._id = self._begin(self._buffer)
            while True:
                self._ready.clear()
                if not (is_ended := self._buffer.is_ended) and self._until is not None and loop.time() >= self._until:
                    raise TimeoutError
                if (event := self._buffer.take()) is not None:
                    return event
                if is_ended:
                    break
                async with asyncio.timeout_at(self._until):
                    await self._ready.wait()
        except TimeoutError:
            self._leave()
            raise TimeoutError(f"The reply took longer than {self._timeout:g} s; it was cancelled.") from None
        except BaseException:
            self._leave()
            raise
        self._is_over = True
        if self._buffer.error is not None:
            raise self._buffer.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request, unless it has ended."""
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._id is not None and not self._is_over:
            self._thread.cancel(self._id)
        self._is_over = True

    async def completion(self) -> Completion:
        """Iterate to the end; the whole reply.

        Raises:
            ClosedError: it was cut off, since its chat was closed.
        """
        end = None
        async for event in self:
            end = event if isinstance(event, TurnFinished) else end
        if end is None:
            raise ClosedError("The chat was closed before its reply ended.")
        found = {field.name: getattr(end, field.name) for field in fields(Completion) if hasattr(end, field.name)}
        return Completion(**{"tokens": (), **found})
