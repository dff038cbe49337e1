"""EventBuffer: the events of one reply between the MLX thread and a consumer that may be slower.

It holds no more than the reply: pieces of text that were not taken yet are joined, and of the prefill's progress the
last is kept. One thread puts, another takes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from mlxkv.events import PrefillProgress, TextDelta, TurnEvent


class EventBuffer:
    """A Sink.

    Args:
        wake: called on the MLX thread once there is something to take.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake, self._lock = wake, threading.Lock()
        self._events: deque[TurnEvent] = deque()
        self.is_ended = False
        self.error: BaseException | None = None

    def put(self, event: TurnEvent) -> None:
        with self._lock:
            was_empty = not self._events
            last = None if was_empty else joined(self._events[-1], event)
            if last is None:
                self._events.append(event)
            else:
                self._events[-1] = last
        if was_empty:
            self._wake()

    def end(self, error: BaseException | None) -> None:
        self.error = error
        self.is_ended = True
        self._wake()

    def take(self) -> TurnEvent | None:
        """The next event, if there is one."""
        with self._lock:
            return self._events.popleft() if self._events else None


def joined(first: TurnEvent, second: TurnEvent) -> TurnEvent | None:
    """One event that says as much as these two, if there is one."""
    if isinstance(first, PrefillProgress) and isinstance(second, PrefillProgress):
        return second
    if not (isinstance(first, TextDelta) and isinstance(second, TextDelta)):
        return None
    if first.thinking != second.thinking or second.restarts:
        return None
    logprobs = first.logprobs + second.logprobs
    return replace(second, text=first.text + second.text, restarts=first.restarts, logprobs=logprobs)
