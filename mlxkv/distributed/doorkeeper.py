"""Doorkeeper: a process beside one that connects to its group, which MLX does without letting any other thread run.

Meanwhile that process notices neither Ctrl+C nor that a machine is gone. Runs as a script with the standard library
alone. Its own input closes when its process is connected, or has ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_MOST_SECONDS = 90  # MLX tries to connect for 31
_POLL_MILLISECONDS = 200


@contextmanager
def doorkeeper(watched: Sequence[int], addresses: Sequence[str]) -> Iterator[None]:
    """In here this process connects. If one of the `watched` pipes closes, or it takes too long: with `addresses`, at
    which this process listens, MLX is given connections that close at once and fails; without, this process is killed.
    """
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), ",".join(map(str, watched)), *addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=watched) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()


def keep(pid: int, watched: Sequence[int], addresses: Sequence[str]) -> None:
    """The doorkeeper of process `pid`, its parent."""
    poll = select.poll()
    for fd in (sys.stdin.fileno(), *watched):
        poll.register(fd, 0)
    with suppress(KeyboardInterrupt):  # Ctrl+C reaches both processes
        if any(fd == sys.stdin.fileno() for fd, _ in poll.poll(_MOST_SECONDS * 1000)):
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = select.poll()
    own.register(sys.stdin.fileno(), 0)
    while not own.poll(_POLL_MILLISECONDS) and os.getppid() == pid:
        for address in addresses:
            host, _, port = address.rpartition(":")
            with suppress(OSError):
                socket.create_connection((host, int(port)), _POLL_MILLISECONDS / 1000).close()
        if not addresses:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    keep(int(sys.argv[1]), [int(fd) for fd in sys.argv[2].split(",")], sys.argv[3:])
