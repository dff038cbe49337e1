"""The terminal goes away while SIGHUP is ignored, as under nohup: everything ends, and what was said is kept."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.store.session_store import SessionStore
from mlxkv.system.terminal import GONE, handle_interrupts
from tests.tui.terminal import Terminal

LONG = ["--temp", "0", "--max-tokens", "2000"]


@pytest.fixture(autouse=True)
def without_hang_up() -> Iterator[None]:
    """Children inherit that a signal is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def code_after_hang_up(terminal: Terminal, limit: float = 60.0) -> int:
    os.close(terminal.fd)
    end = time.monotonic() + limit
    while not (ended := os.waitpid(terminal.pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
            pytest.fail("it lives on without a terminal")
        threading.Event().wait(0.02)
    return os.waitstatus_to_exitcode(ended[1])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["window", "plain", "print"])
def test_it_ends_and_keeps_what_was_said(mode: str, stories_path: Path) -> None:
    options = {"plain": ["--plain"], "print": ["-p"]}.get(mode, [])
    terminal = Terminal(["-m", str(stories_path), *LONG, *options, "Once upon a time"], module="mlxkv")
    terminal.wait_for("Lily")
    assert code_after_hang_up(terminal) == GONE
    with SessionStore.open(Folders.from_env()) as store:
        (chat,) = store.list()
        with store.lock(chat.id):  # no process has it open any more
            turns = store.load(chat.id).turns
    assert [turn.role for turn in turns] == ["user", "assistant"]
    assert "Lily" in turns[1].text


@pytest.mark.slow
def test_a_question_ends_too(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--name" / "blobs").mkdir(parents=True)
    terminal = Terminal(["models", "rm", "org/name"], module="mlxkv")
    terminal.wait_for("[y/N]")
    assert code_after_hang_up(terminal) == GONE


@pytest.mark.parametrize(("before", "handled"), [(signal.SIG_IGN, 0), (signal.default_int_handler, 1)])
def test_ctrl_c_stays_ignored_where_it_was(before: signal.Handlers, handled: int) -> None:
    """A script's `trap '' INT`, and what it runs in the background: Ctrl+C in the terminal is not meant for them."""
    seen: list[int] = []
    usual = signal.signal(signal.SIGINT, before)
    try:
        with handle_interrupts(lambda number, _: seen.append(number)):
            os.kill(os.getpid(), signal.SIGINT)
        restored = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert len(seen) == handled
    assert restored is before
