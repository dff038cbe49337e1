"""Control: rank 0 starts the other processes, here or over ssh, wakes them, and notices which one is gone.

Each has a pipe from rank 0, which closes however rank 0 ends, and ends with it; and one back, in which it says once a
second that it is alive, and once that it can join. Over ssh both are ssh's own: nothing listens for strangers. Threads
of its own; any thread may call it.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlxkv.distributed.connections import Connections
from mlxkv.distributed.doorkeeper import doorkeeper
from mlxkv.distributed.group import FILE_PREFIX
from mlxkv.distributed.hosts import Host, Hosts
from mlxkv.errors import MachineError, first_line

SIGN_OF_LIFE_SECONDS = 1.0
ALIVE, READY = b".", b"r"  # what the others say
_HUNG_SIGNS = 60  # that are missed in a row
_GONE_SECONDS = 2.0  # that the end of a process may be noticed later than the end of its connection
_PORTS = (33_000, 60_000)
_MODULE = ("-P", "-m", "mlxkv.distributed")
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5")


class Control:
    """The other processes of a group. This process becomes rank 0 of MLX's group: its environment is set.

    Attributes:
        hosts: in the order of ranks.
        is_broken: one of them has ended. is_closing: all are being ended.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.is_broken = self.is_closing = False
        self._connections: Connections | None = None
        self._gone: list[int] = []  # ranks, in the order they ended
        self._changed = threading.Condition()
        self._num_missed = [0] * len(
            hosts.hosts
        )  # signs of life; a time would blame the others where this process slept
        self._ready_ranks = {0}
        self._errors = [""] * len(hosts.hosts)
        port = random.randrange(*_PORTS)
        variables, files = hosts.environ(port)
        self._own_addresses = [f"{ip}:{port + n}" for n, ip in enumerate(hosts.hosts[0].ips)]  # where MLX listens
        os.environ.update(variables)
        self._set_own(files)
        self._processes = {
            rank: self._started(rank, host, {"environ": {**variables, "MLX_RANK": str(rank)}, "files": files})
            for rank, host in enumerate(hosts.hosts)
            if rank
        }
        threading.Thread(target=self._watch, daemon=True).start()

    def _set_own(self, files: dict[str, str]) -> None:
        os.environ["MLX_RANK"] = "0"
        for name, content in files.items():
            os.environ[name] = temporary(content)

    def _started(self, rank: int, host: Host, table: dict[str, object]) -> subprocess.Popen[bytes]:
        python = sys.executable if host.is_local else self.hosts.python or sys.executable
        command = [python, *_MODULE]
        if not host.is_local:
            command = [*_SSH, host.ssh, shlex.join(command)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise MachineError(f"{host.ssh} cannot be started ({first_line(error)}); check that ssh works.") from error
        assert process.stdin is not None
        with suppress(OSError):  # its end is reported by the reader
            process.stdin.write(json.dumps(table).encode() + b"\n")
            process.stdin.flush()
        errors = threading.Thread(target=self._read_errors, args=(rank, process), daemon=True)
        errors.start()
        threading.Thread(target=self._read_signs, args=(rank, process, errors), daemon=True).start()
        return process

    # -- any thread --------------------------------------------------------------------------------------------------

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Wait until each can join the group, and let them; in here this process joins.

        Raises:
            MachineError: one ended before, with what it said: over ssh perhaps that it lets no one in.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._gone or len(self._ready_ranks) == len(self.hosts.hosts))
        if found := self.gone() if self._gone else None:
            raise MachineError(
                f"{self.hosts.hosts[found[0]].ssh} ended at once ({found[1] or 'it said nothing'}); check that ssh "
                "reaches it without a password, and that mlxkv is installed there."
            )
        pipes = [process.stdout.fileno() for process in self._processes.values() if process.stdout is not None]
        with doorkeeper(pipes, self._own_addresses):
            self.call()
            yield

    def watch(self, connections: Connections) -> None:
        """Once a process has ended, cut these connections."""
        self._connections = connections
        if self.is_broken:
            connections.cut()

    def call(self) -> None:
        """Wake all."""
        for process in self._processes.values():
            with suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.write(b"w")
                process.stdin.flush()

    def gone(self) -> tuple[int, str] | None:
        """The rank that ended first and what it said last, if one does within a moment."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone, _GONE_SECONDS)
            return (self._gone[0], self._errors[self._gone[0]]) if self._gone else None

    def close(self) -> None:
        """End all. They end by themselves when their pipe closes; what does not is killed."""
        self.is_closing = True
        for process in self._processes.values():
            with suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(_GONE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- its threads -------------------------------------------------------------------------------------------------

    def _read_signs(self, rank: int, process: subprocess.Popen[bytes], errors: threading.Thread) -> None:
        assert process.stdout is not None
        while told := os.read(process.stdout.fileno(), 64):
            self._num_missed[rank] = 0
            if READY in told:
                with self._changed:
                    self._ready_ranks.add(rank)
                    self._changed.notify_all()
        process.wait()
        errors.join(_GONE_SECONDS / 2)  # for what it said last
        self._note_gone(rank)

    def _read_errors(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode(errors="replace").strip()
            if text and not text.startswith("[ring]"):
                self._errors[rank] = first_line(Exception(text))

    def _note_gone(self, rank: int) -> None:
        with self._changed:
            if rank in self._gone:
                return
            self._gone.append(rank)
            self._changed.notify_all()
            self.is_broken = True
        if self._connections is not None and not self.is_closing:
            self._connections.cut()  # over ssh the other end may only be silent

    def _watch(self) -> None:
        while not self.is_closing:
            time.sleep(SIGN_OF_LIFE_SECONDS)
            for rank, process in self._processes.items():
                self._num_missed[rank] += 1
                if self._num_missed[rank] > _HUNG_SIGNS and process.poll() is None:
                    self._errors[rank] = f"it gave no sign of life for {_HUNG_SIGNS} s"
                    process.kill()
                    self._note_gone(rank)  # its pipe may stay open: of a process that was only stopped


def temporary(content: str) -> str:
    """The path of a file with this content, for MLX to read; whoever joins the group removes it."""
    fd, path = tempfile.mkstemp(prefix=FILE_PREFIX)
    with os.fdopen(fd, "w") as file:
        file.write(content)
    return path
