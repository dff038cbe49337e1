"""The network of a machine in tests: `ssh` whose host is a process here, behind a slow proxy that can be cut.

MLX's connections to this process and from it pass the proxy, which hands each piece on some time later. SIGUSR1 closes
them all, as a machine in between would.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mlxkv.distributed import __main__ as process
from tests.distributed.ranks import ROOT

_PROCESS = """
import sys
from mlxkv.distributed import __main__ as process
process._line = lambda: sys.argv[1]
process.main()
"""
_open: list[socket.socket] = []


def ssh_in(folder: Path, seconds: float) -> Path:
    """Make a folder for PATH whose `ssh` is this, and which writes the id of the proxies' process into "pid" there."""
    folder.mkdir()
    script = folder / "ssh"
    script.write_text(
        f'#!/bin/sh\nexport PROXY_PID="{folder / "pid"}" PYTHONPATH="{ROOT}"\n'
        f'exec "{sys.executable}" "{__file__}" {seconds}\n'
    )
    script.chmod(0o700)
    return folder


def serve(listening: socket.socket, target: tuple[str, int], seconds: float) -> None:
    while True:
        accepted, _ = listening.accept()
        while True:
            with suppress(ConnectionRefusedError):  # as MLX, which tries again: it does not listen yet
                onward = socket.create_connection(target)
                break
            time.sleep(0.05)
        for here, there in ((accepted, onward), (onward, accepted)):
            here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _open.append(here)
            pieces: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            threading.Thread(target=take, args=(here, pieces), daemon=True).start()
            threading.Thread(target=give, args=(there, pieces, seconds), daemon=True).start()


def take(source: socket.socket, pieces: SimpleQueue[tuple[float, bytes]]) -> None:
    data = b"x"
    while data:
        try:
            data = source.recv(1 << 16)
        except OSError:
            data = b""
        pieces.put((time.monotonic(), data))


def give(target: socket.socket, pieces: SimpleQueue[tuple[float, bytes]], seconds: float) -> None:
    while True:
        taken, data = pieces.get()
        time.sleep(max(0.0, taken + seconds - time.monotonic()))
        with suppress(OSError):
            if data:
                target.sendall(data)
                continue
            target.shutdown(socket.SHUT_RDWR)
        return


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def behind_proxies(table: dict[str, Any]) -> list[tuple[int, int]]:
    """Let MLX's connections pass proxies, in what rank 0 tells this process; from and to which ports these lead."""
    hosts: list[list[str]] = json.loads(table["files"]["MLX_HOSTFILE"])
    found = []
    for rank, (address,) in enumerate(hosts):
        host, _, port = address.rpartition(":")
        own = free_port()
        hosts[rank] = [f"{host}:{own}"]
        # Others connect to the hostfile's port of this process, and this process to another one than the hostfile's.
        found.append((int(port), own) if rank == int(table["environ"]["MLX_RANK"]) else (own, int(port)))
    table["files"]["MLX_HOSTFILE"] = json.dumps(hosts)
    return found


def main(seconds: str) -> None:
    """Start the proxies in a process of their own, which ends with this one; become the one that rank 0 asked for."""
    table = json.loads(process._line())
    ports = json.dumps(behind_proxies(table))
    proxies = subprocess.Popen([sys.executable, __file__, "serve", seconds, ports], stdin=subprocess.PIPE, stdout=2)
    assert proxies.stdin is not None
    os.set_inheritable(proxies.stdin.fileno(), True)
    Path(os.environ["PROXY_PID"]).write_text(str(proxies.pid))
    os.execv(sys.executable, [sys.executable, "-c", _PROCESS, json.dumps(table)])


def serve_until_closed(seconds: float, ports: Sequence[tuple[int, int]]) -> None:
    for outside, inside in ports:
        listening = socket.create_server(("127.0.0.1", outside))
        threading.Thread(target=serve, args=(listening, ("127.0.0.1", inside), seconds), daemon=True).start()
    signal.signal(signal.SIGUSR1, cut)
    while os.read(0, 1):
        pass


def cut(*_: object) -> None:
    for connection in _open:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve_until_closed(float(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main(sys.argv[1])
