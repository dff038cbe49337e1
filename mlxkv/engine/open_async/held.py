"""Held: a handle on an object of the MLX thread, such as a chat or a prompt cache.

Any thread may have the handle; the object is made, used and freed on the MLX thread alone. What is asked of one handle
is done in the order in which it was asked.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mlxkv.engine.request_thread import RequestThread, Sink
from mlxkv.errors import ClosedError
from mlxkv.events import TurnEvent

if TYPE_CHECKING:
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.engine")
T = TypeVar("T")
R = TypeVar("R")


class Held(Generic[T]):
    """A handle. The object is freed with it, or when the thread ends.

    Args:
        make: makes the object; an iterator of events whose value it is.
        close: called with it before it is freed.

    Attributes:
        made: of an object that is made at once: done when it is there, with an error that every use raises, too.
    """

    made: Future[Any]

    def __init__(
        self,
        thread: RequestThread,
        make: Callable[[Model], Generator[TurnEvent, None, T]],
        close: Callable[[T], object] = bool,
    ) -> None:
        self._thread, self._cell = thread, _Cell(thread, make, close)
        weakref.finalize(self, thread.post, self._cell.close).atexit = False

    @classmethod
    def of(
        cls,
        thread: RequestThread,
        make: Callable[[Model], T],
        close: Callable[[T], object] = bool,
        after: Held[Any] | None = None,
    ) -> Held[T]:
        """Of an object that is made at once; `after`: after what was asked of that handle."""

        def steps(model: Model) -> Generator[TurnEvent, None, T]:
            return make(model)
            yield

        held = cls(thread, steps, close)
        cell = held._cell
        held.made = thread.call(lambda model: [*cell.fill(model)], cell if after is None else after._cell)
        return held

    def fill(self, sink: Sink) -> int:
        """Begin to make it; see `RequestThread.iterate`."""
        return self._thread.iterate(self._cell.fill, sink, self._cell)

    def call(self, function: Callable[[T], R]) -> Future[R]:
        """Call a function of the object; see `RequestThread.call`."""
        cell = self._cell
        return self._thread.call(lambda _: function(cell.value), cell)

    def iterate(self, events: Callable[[T], Iterator[TurnEvent]], sink: Sink) -> int:
        """Iterate what a function of the object returns; see `RequestThread.iterate`."""
        cell = self._cell
        return self._thread.iterate(lambda _: events(cell.value), sink, cell)

    def close(self) -> Future[Any]:
        """Close the object now, whatever of it is still in line."""
        cell = self._cell
        return self._thread.call(lambda _: cell.close())

    @property
    def get(self) -> Callable[[], T]:
        """For the MLX thread: returns the object."""
        cell = self._cell
        return lambda: cell.value


class _Cell(Generic[T]):
    """Where the object is; on the MLX thread."""

    def __init__(
        self,
        thread: RequestThread,
        make: Callable[[Model], Generator[TurnEvent, None, T]],
        close: Callable[[T], object],
    ) -> None:
        self._thread, self._make, self._close = thread, make, close
        self._value: list[T] = []
        self._error: BaseException | None = None

    def fill(self, model: Model) -> Iterator[TurnEvent]:
        try:
            self._value.append((yield from self._make(model)))
        except Exception as error:
            self._error = error
            raise
        self._thread.closers[id(self)] = self.close

    @property
    def value(self) -> T:
        if self._error is not None:
            raise self._error
        if not self._value:
            raise ClosedError("This was closed; make another.")
        return self._value[0]

    def close(self) -> Any:
        self._thread.closers.pop(id(self), None)
        return self._close(self._value.pop()) if self._value else None
