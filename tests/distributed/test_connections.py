"""MLX's own connections are found without MLX, and end together."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from mlxkv.distributed.connections import UNANSWERED_SECONDS, Connections

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def connect() -> Iterator[Callable[[], Ends]]:
    """Makes a connection of this process, and the end that another process would have."""
    with ExitStack() as free:
        server = free.enter_context(socket.create_server(("127.0.0.1", 0)))

        def made() -> Ends:
            one = free.enter_context(socket.create_connection(server.getsockname()))
            return one, free.enter_context(server.accept()[0])

        yield made


def test_once_one_is_lost_all_are_cut_but_no_other(connect: Callable[[], Ends]) -> None:
    own, other = connect()
    connections = Connections()
    first, second = connect(), connect()
    lost = threading.Event()
    connections.watch(lost.set)
    first[1].shutdown(socket.SHUT_WR)
    assert lost.wait(60)
    assert second[0].recv(1) == second[1].recv(1) == b""
    own.send(b"x")
    assert other.recv(1) == b"x"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has another option")
def test_what_is_sent_must_be_received_within_a_minute(connect: Callable[[], Ends]) -> None:
    own, _ = connect()
    connections = Connections()
    found, _ = connect()
    found.setblocking(False)
    connections.watch(lambda: None)
    assert not os.get_blocking(found.fileno())  # MLX reads and writes in turns
    limits = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for each in (own, found)]  # milliseconds
    assert limits == [0, UNANSWERED_SECONDS * 1000]
    connections.cut()
    assert found.recv(1) == b""
