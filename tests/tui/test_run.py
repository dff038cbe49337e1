"""What stands around the window: its parent is told of the end, and standard error is kept off the screen."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxkv import tui
from mlxkv.config import Folders, Settings
from mlxkv.tui.app import ChatApp
from tests.system.test_supervisor import Run


class Recorder:
    """An engine and a supervisor that remember what is asked of them."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.asked.append(name)


def test_the_parent_knows_of_the_end_before_the_engine_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that never returns lets the engine wait for ever: from `quit` on the parent looks."""
    monkeypatch.setattr(ChatApp, "run", lambda *_, **__: 0)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    one: Any = Recorder()
    assert tui.run(one, (), Settings(), Folders.from_env(), supervisor=one) == 0
    assert one.asked == ["quit", "close"]


WINDOW = """
import os
from mlxkv.cli import start as cli_start
from mlxkv import (engine, tui)
from mlxkv.protocol.commands import LoadModel
from mlxkv.config import Folders, Settings
engine.Engine = lambda *_, **__: None
tui.run = lambda *_: os.write(2, b"thread panicked")
cli_start.open_window(Folders.from_env(), Settings(), [LoadModel("x")], None, True)
os.write(2, b"after it")
"""


@pytest.mark.slow
def test_a_panic_of_a_tokenizer_is_not_drawn_over_the_window(home: Path) -> None:
    """Rust prints it on descriptor 2, whatever Python makes of that."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", WINDOW])
    run = Run(pid, fd)
    assert run.end() == 0
    assert run.output == b"after it"
    assert b"thread panicked" in (Folders.from_env().state / "mlxkv.log").read_bytes()
