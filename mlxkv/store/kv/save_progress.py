"""How far a save has come, for whoever watches: told while it takes longer than a blink. On the writer's thread."""

from __future__ import annotations

import time
from collections.abc import Callable

BLINK = 0.3  # seconds; what is over by then is not worth a word
EVERY = 1.0  # seconds between two figures, as between two looks at the engine
Tell = Callable[[int, int], None]  # bytes done, bytes in all; equal once, at the end of a save that was told of


class Progress:
    """One save after the other. Set `tell` from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell: Tell | None = None
        self._clock = clock
        self._done = self._total = 0
        self._due = 0.0
        self._told = False

    def begin(self, total: int) -> None:
        self._done, self._total, self._told = 0, max(1, total), False
        self._due = self._clock() + BLINK

    def add(self, size: int) -> None:
        """So many bytes more need no writing."""
        self._done += size
        if self._clock() >= self._due and self.tell is not None:
            self._due, self._told = self._clock() + EVERY, True
            self.tell(min(self._done, self._total - 1), self._total)

    def end(self) -> None:
        """It is over, well or not."""
        if self._told and self.tell is not None:
            self.tell(self._total, self._total)
