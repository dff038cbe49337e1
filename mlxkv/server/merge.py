"""Merge several async iterators into one. On the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(sources: Sequence[AsyncGenerator[T]], label: Callable[[T, int], T]) -> AsyncGenerator[T]:
    """The events of all sources as they come, each through `label` with the number of its source.

    The first error ends all of them; closing this closes them.
    """
    queue = asyncio.Queue[tuple[T] | BaseException | None]()

    async def pump(number: int, source: AsyncGenerator[T]) -> None:
        error: BaseException | None = None
        try:
            async for event in source:
                queue.put_nowait((label(event, number),))
        except Exception as failure:
            error = failure
        finally:
            await source.aclose()
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(i, source)) for i, source in enumerate(sources)]
    try:
        num_left = len(tasks)
        while num_left:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                num_left -= 1
            else:
                yield event[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
