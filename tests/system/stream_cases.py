"""Runs `mlxkv` once per case with its three streams rewired: one warmed interpreter that forks, so a case is cheap.

As a program: reads cases as JSON on stdin, writes what came of each. Imported by nobody: `test_streams` starts it.
"""

from __future__ import annotations

import base64
import gc
import importlib
import json
import os
import socket
import sys
import tempfile
from typing import Any

from mlxkv.__main__ import main


def wire(fd: int, kind: str, data: bytes) -> None:
    """Make `fd` what `kind` says."""
    match kind:
        case "closed":
            os.close(fd)
        case "null":
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        case "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), fd)
        case "gone":  # a pipe whose reader has ended
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, fd)
        case "write-only":
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        case "pipe":
            read, write = os.pipe()
            os.write(write, data)
            os.close(write)
            os.dup2(read, fd)
        case "socket":
            ours, theirs = socket.socketpair()
            ours.sendall(data)
            ours.close()
            os.dup2(theirs.fileno(), fd)
        case _:
            raise AssertionError(kind)


def child(case: dict[str, Any], home: str, out: int, err: int) -> None:
    """Become `mlxkv`; its end is that of the process."""
    os.environ.update({"MLXKV_HOME": home, **case["env"]})
    os.dup2(out, 1)
    os.dup2(err, 2)
    wire(0, case["stdin"], base64.b64decode(case["data"]))
    for fd, kind in ((1, case["stdout"]), (2, case["stderr"])):
        if kind != "file":
            wire(fd, kind, b"")
    # As a fresh interpreter has them.
    encoding = case["env"].get("PYTHONIOENCODING", "utf-8")
    streams = {"stdin": open(0, encoding=encoding, closefd=False) if case["stdin"] != "closed" else None}  # noqa: SIM115
    for fd, name in ((1, "stdout"), (2, "stderr")):
        is_open = case[name] != "closed"
        streams[name] = open(fd, "w", encoding=encoding, closefd=False) if is_open else None  # noqa: SIM115
    for name, stream in streams.items():
        setattr(sys, name, stream)
    sys.argv = ["mlxkv", *(os.fsdecode(base64.b64decode(arg)) for arg in case["args"])]
    main()


def play(case: dict[str, Any], home: str) -> dict[str, Any] | None:
    """What came of it; None in the child, which ends like any program."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (pid := os.fork()) == 0:
            child(case, home, out.fileno(), err.fileno())
            return None
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [base64.b64encode(os.pread(f.fileno(), 1 << 20, 0)).decode() for f in (out, err)]
        return {"code": code, "out": said[0], "err": said[1]}


def warm() -> None:
    """Import what a command would import."""
    for name in ("mlxkv.cli.app", "typer._adapters"):
        importlib.import_module(name)
    if sys.platform != "darwin":  # Metal does not survive a fork
        names = ("engine", "model", "cli.print_mode", "memory.preflight", "tui.line_mode", "tui.state.commands.slash")
        for name in names:
            importlib.import_module(f"mlxkv.{name}")
        for name in ("mlx_lm.models.llama", "transformers.utils.chat_template_utils", "transformers.video_utils"):
            importlib.import_module(name)
    gc.freeze()


if __name__ == "__main__":
    warm()
    for line in sys.stdin:
        case = json.loads(line)
        if (result := play(case, case["home"])) is None:
            break
        print(json.dumps(result), flush=True)
