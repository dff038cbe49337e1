"""A slow network gives the same reply, and a cut one ends it in a sentence that names the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.system.supervisor import ENDED_AT_ONCE
from tests.distributed.kills import is_running
from tests.distributed.proxy import ssh_in
from tests.distributed.ranks import ROOT, folder_of

_TALKER = str(ROOT / "tests/distributed/talker.py")
_TOKENS = 3  # of a reply, each of which takes over a second
_HOSTS = [{"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "far", "ips": ["127.0.0.1"]}]


@contextmanager
def talker(model: Path, folder: Path, path: Path) -> Iterator[tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]]:
    """Rank 0 here and another process behind `path`'s ssh, in one chat."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps(_HOSTS))
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, _TALKER, str(hosts), str(model), "tensor", "chat", str(_TOKENS)],
        env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process, map(json.loads, process.stdout)
        finally:
            process.kill()


def say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


@pytest.mark.slow
def test_fifty_milliseconds_of_delay_and_a_cut(tmp_path: Path) -> None:
    folder = folder_of("qwen2", tmp_path / "model")
    with mlxkv.load(folder) as model:
        chat = model.chat("be brief", temperature=0.0, max_tokens=_TOKENS)
        expected = ["hello", chat.ask("hello").text]
    path = ssh_in(tmp_path / "bin", 0.05)
    with talker(folder, tmp_path, path) as (process, lines):
        pids = next(lines)["pids"]
        say(process, "hello")
        assert next(line for line in lines if line["at"] == "saved")["messages"] == expected
        say(process, "and now")
        last = next(line for line in lines if line["at"] == "token")
        os.kill(int((path / "pid").read_text()), signal.SIGUSR1)
        *_, last = last, *lines
        assert process.stderr is not None
        said = last.get("text", process.stderr.read())
        assert process.wait() == (3 if last["at"] == "error" else ENDED_AT_ONCE)  # where MLX waits for ever
    assert "(rank 1) was lost" in said
    assert not any(map(is_running, pids))
    with mlxkv.load(folder) as model:
        messages = [message.text for message in model.resume("chat").messages]
    assert messages[:3] == [*expected, "and now"]
