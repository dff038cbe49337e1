"""ReplyGate: lets one reply of a chat run at a time, and cancels it.

`cancel` may be called from any thread, the rest on the MLX thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from mlxkv.errors import ConfigError
from mlxkv.system.thread_owner import Owned, Owner

Event = TypeVar("Event")


class ReplyGate:
    """A run is one iterator of events, from its first event until it ends, is closed or is garbage-collected."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._cancel = threading.Event()  # of the run that is iterated, else of the newest
        self.asked = threading.Event()  # to end the reasoning of the run
        self._running: weakref.ref[Generator[Any]] | None = None

    def start(self, events: Callable[[Callable[[], bool]], Iterator[Event]]) -> Generator[Event]:
        """Start a run of `events`, which is called at the first event with a function that tells whether to stop.

        Raises:
            ConfigError: see `check_idle`; also from the iterator, where another run has begun since. WrongThreadError:
            from the iterator on another thread, which leaves it unchanged.
        """
        self.check_idle()
        cancel = self._cancel = threading.Event()
        run = self._run(cancel, events, me := [])
        me.append(weakref.ref(run))
        return Owned(self._owner, run)

    def _run(
        self,
        cancel: threading.Event,
        events: Callable[[Callable[[], bool]], Iterator[Event]],
        me: list[weakref.ref[Generator[Any]]],
    ) -> Generator[Event]:
        self.check_idle()
        self._cancel, self._running = cancel, me[0]
        self.asked.clear()
        try:
            yield from events(cancel.is_set)
        finally:
            self._running = None

    def check_idle(self) -> None:
        """Raises ConfigError: a reply is being generated."""
        if self._running is not None and self._running() is not None:
            raise ConfigError("A reply of this chat is still being generated; iterate it to its end or close it.")

    def cancel(self) -> None:
        """Stop the run that is iterated, else the one made last, but none made later."""
        self._cancel.set()

    def close(self) -> None:
        """Close the run, if there is one."""
        if self._running is not None and (run := self._running()) is not None:
            run.close()
