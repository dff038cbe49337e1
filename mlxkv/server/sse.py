"""Server-sent events: a stream of JSON, with comments while nothing else is sent; and what ends when a client leaves.

On the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 5.0
COMMENT = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


def data(table: Mapping[str, Any], event: str | None = None) -> str:
    """One event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(table, ensure_ascii=False, separators=(',', ':'))}\n\n"


class ClientLeftError(Exception):
    """The client closed the connection before its reply was complete."""


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves. The body must have been read.

    Raises:
        ClientLeftError.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_end(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for each in (task, watch):
            if not each.done():
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def with_keep_alives(events: AsyncGenerator[T], seconds: float) -> AsyncIterator[T | None]:
    """The events, and None whenever none came for so long."""
    try:
        while True:
            following = asyncio.ensure_future(anext(events))
            try:
                while not (await asyncio.wait({following}, timeout=seconds))[0]:
                    yield None
            finally:
                if not following.done():
                    following.cancel()
                    with suppress(asyncio.CancelledError, StopAsyncIteration):
                        await following
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        await events.aclose()


class EventStream(Response):
    """Sends pieces of text as they come, until the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[str], end: Callable[[], Awaitable[object]]) -> None:
        """`end`: is called however it ends, even if no piece was ever asked for."""
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._end = pieces, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientLeftError):
                await unless_client_leaves(receive, self._send(send))
        finally:
            await self._end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        finally:
            await self._pieces.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
