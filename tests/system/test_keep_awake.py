"""The Mac is kept awake while something runs, by one process of `caffeinate` that ends with it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from mlxkv.cli.app import main
from mlxkv.server.app import _Api
from mlxkv.server.errors import invalid
from mlxkv.server.security import Access
from mlxkv.system.keep_awake import KeepAwake

Caffeinate = Callable[[], list[tuple[int, list[str]]]]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caffeinate:
    """A program `caffeinate` on PATH. Returns what was started so far, its process and arguments, once that is any."""
    program, log = tmp_path / "bin" / "caffeinate", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$$ $@" >> {log}\nexec sleep 600\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    def read() -> list[tuple[int, list[str]]]:
        end = time.monotonic() + 60
        while not log.exists() or not log.read_text().endswith("\n"):
            assert time.monotonic() < end, "nothing was started"
            time.sleep(0.005)
        lines = [line.split() for line in log.read_text().splitlines()]
        return [(int(pid), arguments) for pid, *arguments in lines]

    return read


def lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_one_process_for_all_that_runs_at_once(started: Caffeinate) -> None:
    awake = KeepAwake()
    with awake.running():
        awake.set(True)
        awake.set(True)
        ((pid, arguments),) = started()
        assert arguments == ["-i", "-w", str(os.getpid())]
        assert lives(pid)
    assert lives(pid)  # `set` still says so
    awake.set(False)
    assert not lives(pid)
    with awake.running():
        assert len(started()) in (1, 2)  # the second may not have come to its log
    assert not any(lives(pid) for pid, _ in started())


def test_nothing_happens_where_it_is_not_wanted_or_not_there(
    started: Caffeinate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KeepAwake(False).running():
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with KeepAwake().running():
        pass
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (["-p", "-n", "hi"], "mlxkv.cli.print_mode.answer"),
        (["-p", "--batch", __file__], "mlxkv.cli.batch.run_batch"),
        (["models", "pull", "org/name"], "mlxkv.models.download"),
    ],
)
def test_commands_keep_it_awake(
    arguments: list[str], work: str, started: Caffeinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def wait(*_: object, **__: object) -> int:
        seen.extend(pid for pid, _ in started() if lives(pid))
        return 0

    monkeypatch.setattr("mlxkv.cli.app._loaded", lambda *_: (None, None))
    monkeypatch.setattr(work, wait)
    with suppress(SystemExit):
        main(arguments)
    assert len(seen) == 1
    assert not lives(seen[0])


def test_a_request_to_the_endpoint_keeps_it_awake(started: Caffeinate) -> None:
    seen: list[int] = []

    @asynccontextmanager
    async def use(_: str) -> AsyncIterator[None]:
        seen.extend(pid for pid, _ in started() if lives(pid))
        yield
        raise invalid(None, "enough")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "state": {"request_id": "r"}}  # fmt: skip
    api = _Api(cast(Any, SimpleNamespace(use=use)), Access(), 1.0, KeepAwake())
    asked = SimpleNamespace(asked=SimpleNamespace(model=""), jobs=[])
    asyncio.run(api._answer(Request(scope, receive), lambda _: cast(Any, asked)))
    assert len(seen) == 1
    assert not lives(seen[0])
