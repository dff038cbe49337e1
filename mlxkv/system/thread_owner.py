"""The thread that a model, its chats and its caches belong to (Owner), and generators bound to it (Owned).

MLX evaluates an array on the thread that made it, and SQLite connections are bound to their thread. Calls from another
thread are refused before they reach either.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any, TypeVar

from mlxkv.errors import WrongThreadError

Event = TypeVar("Event")


class Owner:
    """The thread that creates this object."""

    def __init__(self) -> None:
        self._ident, self._name = threading.get_ident(), threading.current_thread().name

    def check(self) -> None:
        """Raises WrongThreadError: called from another thread."""
        if threading.get_ident() != self._ident:
            raise WrongThreadError(
                f"This model was loaded by the thread {self._name!r} and is used from "
                f"{threading.current_thread().name!r}; use it only on the thread that loaded it "
                "(only `chat.cancel()` may be called from others)."
            )


class Owned(Generator[Event, Any, None]):
    """`events` for their owner only. Another thread gets an error, and the owner can still continue."""

    def __init__(self, owner: Owner, events: Generator[Event, Any, None]) -> None:
        self._owner, self._events = owner, events

    def __repr__(self) -> str:
        return "<events of a reply; iterate over them>"

    def send(self, value: Any) -> Event:
        self._owner.check()
        return self._events.send(value)

    def throw(self, *error: Any) -> Event:
        self._owner.check()
        return self._events.throw(*error)

    def close(self) -> None:
        self._owner.check()
        self._events.close()
