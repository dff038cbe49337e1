"""ServedModel: one loaded model on its MLX thread, for the event loop: a job in, an async iterator of its events out.

Requests wait here, in one bounded line; as many run as the endpoint has slots. On the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from mlxkv.engine.request_thread import RequestThread
from mlxkv.errors import ClosedError, MlxkvError
from mlxkv.server.endpoint import Endpoint, EndpointOptions
from mlxkv.server.errors import ApiError, busy
from mlxkv.server.jobs import Job, JobEvent

if TYPE_CHECKING:
    from mlxkv.model import Model

MAX_WAITING = 64
T = TypeVar("T")
_Queue = asyncio.Queue[tuple[int, JobEvent | BaseException | None]]


class ServedModel:
    """A model that is served; made by `load`.

    Attributes:
        name: its name.
        num_running: jobs that wait or run.
    """

    def __init__(self, thread: RequestThread, endpoint: Endpoint, name: str, max_waiting: int) -> None:
        self._thread, self._endpoint, self.name = thread, endpoint, name
        self._free = asyncio.Semaphore(endpoint.capacity.num_slots)
        self._max_waiting, self._num_waiting, self.num_running = max_waiting, 0, 0
        self._keys = itertools.count(1)
        self._drains: set[asyncio.Task[None]] = set()

    @classmethod
    async def load(
        cls, load: Callable[[Event], Model], options: EndpointOptions, max_waiting: int = MAX_WAITING
    ) -> ServedModel:
        """Load a model.

        Raises:
            MlxkvError: it cannot be loaded or served.
        """
        thread = RequestThread(load)
        try:
            await asyncio.wrap_future(thread.start())
            endpoint = await asyncio.wrap_future(thread.call(lambda model: Endpoint(model, options)))
            name = await asyncio.wrap_future(thread.call(lambda model: model.name))
        except BaseException:
            thread.begin_close()
            raise
        return cls(thread, endpoint, name, max_waiting)

    @property
    def window(self) -> int | None:
        """The most tokens of a prompt and its reply."""
        return self._endpoint.capacity.window

    @property
    def num_slots(self) -> int:
        """Requests that run at once."""
        return self._endpoint.capacity.num_slots

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return self._num_waiting

    async def close(self) -> None:
        """Stop what runs, save what a restart would have to prefill, and end the thread."""
        with suppress(MlxkvError):
            await asyncio.wrap_future(self._thread.call(lambda model: self._endpoint.close()))
        await asyncio.wrap_future(self._thread.begin_close())

    async def events(self, job: Job) -> AsyncGenerator[JobEvent]:
        """The events of a job: an Accepted first, then those of its replies, each of which ends with an Ended.

        Closing the iterator cancels what runs.

        Raises:
            ApiError, MlxkvError: it cannot be answered; only after the first event while it is computed.
        """
        if self.num_running >= self.num_slots + self._max_waiting:  # those that only begin to wait count, too
            raise busy(self.num_running - self.num_slots)
        self.num_running += 1
        try:
            key = next(self._keys)
            try:
                yield await self._call(lambda model: self._endpoint.prepare(key, job))
                async with aclosing(self._run(key, job.n)) as events:
                    async for event in events:
                        yield event
            finally:
                with suppress(ClosedError):
                    self._thread.call(lambda model: self._endpoint.forget(key))
        finally:
            self.num_running -= 1

    async def _run(self, key: int, n: int) -> AsyncGenerator[JobEvent]:
        self._num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._num_waiting -= 1
        queue, running = _Queue(), dict[int, int]()
        try:
            for indexes in ([0], range(1, n)):  # the others begin with the rows that the first one leaves
                self._submit(key, indexes, queue, running)
                while running:
                    index, event = await queue.get()
                    if event is None:
                        del running[index]
                    elif isinstance(event, BaseException):
                        del running[index]
                        raise event
                    else:
                        yield event
        finally:
            for request_id in running.values():
                self._thread.cancel(request_id)
            drain = asyncio.ensure_future(self._drain(queue, set(running)))
            self._drains.add(drain)
            drain.add_done_callback(self._drains.discard)

    def _submit(self, key: int, indexes: Iterable[int], queue: _Queue, running: dict[int, int]) -> None:
        """Submit the requests of these replies; their events go to `queue`, their ids to `running`."""
        loop = asyncio.get_running_loop()
        for index in indexes:

            def emit(event: JobEvent | BaseException | None, index: int = index) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, (index, event))

            sink = self._endpoint.sink(key, index, emit)
            make = lambda model, request_id, sink=sink: self._endpoint.request(sink, request_id)  # noqa: E731
            running[index] = self._thread.submit(make, sink)

    async def _drain(self, queue: _Queue, running: set[int]) -> None:
        """Wait until cancelled requests have left their slots, then let the next job in."""
        while running:
            index, event = await queue.get()
            if event is None or isinstance(event, BaseException):
                running.discard(index)
        self._free.release()

    async def _call(self, function: Callable[[Model], T]) -> T:
        try:
            return await asyncio.wrap_future(self._thread.call(function))
        except ClosedError as error:
            raise ApiError(503, "The server is ending; try again later.") from error
