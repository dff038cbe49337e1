"""A wait that holds the interpreter ends from outside: by a connection, or with its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from mlxkv.distributed.doorkeeper import doorkeeper
from tests.distributed.ranks import ROOT

_WAITING = """
import os, signal, sys
from mlxkv.distributed.doorkeeper import doorkeeper
with doorkeeper([os.dup(0)], ()):
    print("waiting", flush=True)
    signal.pause()
"""


def test_who_listens_is_connected_once_a_pipe_closes() -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as server, doorkeeper([read], [f"127.0.0.1:{server.getsockname()[1]}"]):
        os.close(write)
        accepted, _ = server.accept()
        assert accepted.recv(1) == b""
        accepted.close()
    os.close(read)


def test_who_has_nothing_to_say_is_killed_once_its_pipe_closes() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.stdin.close()
        assert process.wait() == -signal.SIGKILL


def test_nothing_happens_to_who_is_connected(capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        with doorkeeper([read], [f"127.0.0.1:{server.getsockname()[1]}"]):
            pass
        with pytest.raises(BlockingIOError):
            server.accept()
    os.close(read)
    os.close(write)
    assert capfd.readouterr().err == ""
