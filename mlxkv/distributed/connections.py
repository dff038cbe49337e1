"""Connections: those that MLX makes in this process and keeps to itself, found among the open files. Any thread."""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

UNANSWERED_SECONDS = 60
_MACOS_DROP_TIME = 0x80  # TCP_RXT_CONNDROPTIME, in seconds
_LOST = getattr(select, "POLLRDHUP", 0)  # macOS reports POLLHUP, which need not be asked for


class Connections:
    """The TCP connections that appear between its making and `watch`: meanwhile the process joins a group."""

    def __init__(self) -> None:
        self._others = {os.fstat(found.fileno()).st_ino for found in _tcp()}
        self._own: list[socket.socket] = []
        self._when_lost: Callable[[], None] = lambda: None

    def watch(self, when_lost: Callable[[], None]) -> None:
        """Once one is lost, cut all: MLX would wait for another machine, which waits too; then call `when_lost`.

        One is lost if what was sent is not received for a minute, as behind a cable that was pulled: the system would
        try for a quarter of an hour. Nothing is sent between replies, so a machine may sleep then.
        """
        self._when_lost = when_lost
        own = [os.dup(found.fileno()) for found in _tcp() if os.fstat(found.fileno()).st_ino not in self._others]
        self._own = [socket.socket(fileno=fd) for fd in own]  # `socket.dup` would make them wait, and MLX's with them
        for connection in self._own:
            with suppress(OSError):
                if sys.platform == "darwin":
                    connection.setsockopt(socket.IPPROTO_TCP, _MACOS_DROP_TIME, UNANSWERED_SECONDS)
                else:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_SECONDS * 1000)
        if self._own:
            threading.Thread(target=self._wait, daemon=True).start()

    def cut(self) -> None:
        """Close all, so that a collective fails that would wait for ever."""
        for connection in self._own:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if not self._own:  # none is TCP
            self._when_lost()

    def _wait(self) -> None:
        poll = select.poll()
        with ExitStack() as held:
            for connection in self._own:
                poll.register(held.enter_context(connection), _LOST)
            poll.poll()
            self.cut()
        self._when_lost()


def _tcp() -> Iterator[socket.socket]:
    """Every TCP connection of this process, each until the next is asked for."""
    for fd in [int(entry.name) for entry in Path("/dev/fd").iterdir() if entry.name.isdecimal()]:
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as found:
                if found.type == socket.SOCK_STREAM and found.family in (socket.AF_INET, socket.AF_INET6):
                    found.getpeername()
                    yield found
