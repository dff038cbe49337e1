"""A signal tells the process to end while a hybrid model replies: the chat is closed first, its state included."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlxkv
from mlxkv.config import Folders
from mlxkv.store.session_store import SessionStore
from mlxkv.system.terminal import close_before_ending
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_tokenizer
from tests.tui.terminal import Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hybrid_folder(tmp_path_factory.mktemp("models") / "hybrid", "granitemoehybrid", tiny_tokenizer())


@pytest.fixture(autouse=True)
def without_nohup() -> Iterator[None]:
    """Children inherit that a signal is ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "number"),
    [("window", signal.SIGTERM), ("window", signal.SIGHUP), ("plain", signal.SIGTERM), ("print", signal.SIGHUP)],
)
def test_the_chat_is_closed_before_the_process_ends(mode: str, number: signal.Signals, folder: Path) -> None:
    options = {"plain": ["--plain"], "print": ["-p"]}.get(mode, [])
    args = ["-m", str(folder), "--temp", "0", "--max-tokens", "20000", *options, "hi"]
    terminal = Terminal(args, module="mlxkv.cli.app")
    with SessionStore.open(Folders.from_env()) as store:
        while not any(len(store.load(chat.id).turns) == 2 for chat in store.list()):  # part of the reply is saved
            terminal.catch_up()
    os.kill(terminal.pid, number)
    end = time.monotonic() + 60
    while not (ended := os.waitpid(terminal.pid, os.WNOHANG))[0]:
        assert time.monotonic() < end, "it does not end"
        terminal.catch_up()
    assert os.waitstatus_to_exitcode(ended[1]) == -number
    with SessionStore.open(Folders.from_env()) as store:
        (chat,) = store.list()
        log = store.load(chat.id).log
    model = mlxkv.load(str(folder))
    resumed = model.resume(chat.id)
    assert resumed.restored is not None
    assert resumed.restored.notice is None
    assert resumed.restored.tokens >= len(log) - 1
    model.close()


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with close_before_ending(lambda: pytest.fail("it is ignored")):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
