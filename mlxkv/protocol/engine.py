"""EnginePort: the methods of an engine that the window uses, so that tests can replace it."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mlxkv.protocol.commands import Command
from mlxkv.protocol.events import EngineEvent


class EnginePort(Protocol):
    """All methods return at once except `close`, which waits for the engine thread. Any thread."""

    events: deque[EngineEvent]
    """The engine appends; the window's timer drains."""

    def start(self) -> None:
        """Start the engine thread."""
        ...

    def submit(self, command: Command) -> None:
        """Queue a command; commands are handled in order."""
        ...

    def stop(self) -> None:
        """Stop the running reply; its text is kept."""
        ...

    def answer_now(self) -> None:
        """End the reasoning of the running reply; the answer follows."""
        ...

    def close(self) -> None:
        """Shut down and join; required before the process ends."""
        ...
