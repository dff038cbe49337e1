"""What the window needs of an engine, so that a thread, a child process and a test's fake are interchangeable."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mlxkv.protocol.commands import Command
from mlxkv.protocol.events import EngineEvent


class EnginePort(Protocol):
    """`start`, `submit`, `stop` and `close` return at once, but for `close`, which waits for the thread to end."""

    events: deque[EngineEvent]
    """The engine appends, the window's timer drains."""

    def start(self) -> None:
        """Start the engine thread."""
        ...

    def submit(self, command: Command) -> None:
        """Queue a command; commands are answered in order."""
        ...

    def stop(self) -> None:
        """Stop the running reply and keep what was said. From any thread."""
        ...

    def close(self) -> None:
        """Shut down and join. Must be called before the process ends."""
        ...
