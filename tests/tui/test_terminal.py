"""End to end: the real program, a real model, a pseudo-terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import termios
from pathlib import Path

import pytest

import mlxkv
from mlxkv.config import Folders
from mlxkv.store.session_store import SessionStore
from tests.thorough import part
from tests.tui.terminal import Terminal

pytestmark = pytest.mark.slow

LONG = ["--temp", "0", "--max-tokens", "2000"]


@pytest.fixture
def model(stories_path: Path) -> list[str]:
    return ["-m", str(stories_path), *LONG]


def saved() -> list[str]:
    """What was said in the one chat there is, which no process has open any more."""
    with SessionStore.open(Folders.from_env()) as store:
        (chat,) = store.list()
        with store.lock(chat.id):
            return [turn.text for turn in store.load(chat.id).turns]


def test_type_stop_type_again_quit_and_go_on(model: list[str]) -> None:
    """Type, stream, Esc, type again, quit; `mlxkv -c` shows the chat and goes on without reading it again."""
    first = Terminal(model)
    first.wait_for("is ready")
    first.type("Once upon a time\r")
    first.wait_for("Lily")
    first.type("\x1b")
    first.wait_for("■ stopped")
    first.wait_for("saved ✓")
    first.type("One day\r")
    first.wait_for("esc to stop")
    first.type("\x1b")
    first.wait_for("■ stopped")
    first.type("/quit\r")
    assert first.end() == 0
    assert b"Traceback" not in first.output
    assert b"\x1b[?1049l" in first.output  # the terminal is given back as it was
    assert first.output.rstrip().endswith("“Once upon a time” is saved; mlxkv -c continues it.".encode())

    second = Terminal(["-c"], rows=50, columns=120)
    second.wait_for("Once upon a time")
    second.wait_for("nothing to prefill")
    second.type("And\r")
    second.wait_for("esc to stop")
    second.type("\x1b")
    second.wait_for("prompt 2 + ")  # "And" is two tokens: all the rest came from disk
    second.type("\x04")
    assert second.end() == 0


def test_quitting_in_mid_reply_keeps_it(model: list[str]) -> None:
    terminal = Terminal(model)
    terminal.wait_for("is ready")
    terminal.type("Once upon a time\r")
    terminal.wait_for("Lily")
    terminal.type("\x03")
    terminal.wait_for("■ stopped")
    terminal.type("\x03\x03")
    assert terminal.end() == 0
    user, reply = saved()
    assert user == "Once upon a time"
    assert "Lily" in reply


def test_quitting_while_the_model_loads(model: list[str]) -> None:
    terminal = Terminal(model)
    terminal.wait_for("mlxkv")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert b"Traceback" not in terminal.output


def test_typing_ahead_is_sent_once_the_model_is_there_and_fg_paints_the_window_again(model: list[str]) -> None:
    terminal = Terminal(model)
    terminal.wait_for("mlxkv")
    terminal.type("Once upon a time\r")
    terminal.wait_for("Lily")
    terminal.type("\x1b")
    terminal.wait_for("■ stopped")
    terminal.wait_for("saved ✓")
    terminal.type("\x1a")
    _, status = os.waitpid(terminal.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.wait_for("Once upon a time")
    terminal.wait_for("■ stopped")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.parametrize("typed", ["Once upon a time\r", "\rOnce upon a time\r"], ids=["", "Enter first"])
@pytest.mark.parametrize("when", part(["while it starts", "at once"], 2))
def test_what_is_typed_before_the_window_opens_is_sent(when: str, typed: str, model: list[str]) -> None:
    """Also by an Enter that the terminal, which is as the shell left it for a moment, takes for a newline."""
    terminal = Terminal(model, module="mlxkv")
    while when != "at once" and termios.tcgetattr(terminal.fd)[3] & termios.ECHO:
        select.select([], [], [], 0.01)
    terminal.type(typed)
    terminal.wait_for("Lily")
    terminal.type("\x1b")
    terminal.wait_for("■ stopped")
    terminal.wait_for("saved ✓")
    if when != "at once":
        assert b"Once" not in terminal.output.split(b"\x1b[?1049h")[0]
    terminal.type("\x04")
    assert terminal.end() == 0
    assert saved()[0] == "Once upon a time"


def test_without_any_model_the_first_screen_says_how_to_get_one(home: Path) -> None:
    terminal = Terminal([])
    terminal.wait_for("/model")
    terminal.type("/model ./nowhere\r")
    terminal.wait_for("nowhere")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_kill_leaves_every_finished_turn(model: list[str]) -> None:
    terminal = Terminal(model)
    terminal.wait_for("is ready")
    terminal.type("Once upon a time\r")
    terminal.wait_for("Lily")
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    assert saved()[0] == "Once upon a time"


def test_the_command_survives_an_abort_of_its_window(model: list[str]) -> None:
    """What Metal does when memory runs out: the process is gone in mid-reply, the terminal and the chat are not."""
    terminal = Terminal(model, module="mlxkv")
    terminal.wait_for("is ready")
    terminal.type("Once upon a time\r")
    terminal.wait_for("Lily")
    (window,) = subprocess.run(["pgrep", "-P", str(terminal.pid)], capture_output=True, check=True).stdout.split()
    os.kill(int(window), signal.SIGABRT)
    terminal.wait_for("mlxkv stopped: it crashed (SIGABRT). Chat saved - mlxkv -c")
    assert terminal.end() == 128 + signal.SIGABRT
    assert b"\x1b[?1049l" in terminal.output
    assert saved()[0] == "Once upon a time"


def test_a_chat_open_elsewhere_is_shown_and_forked(stories_path: Path) -> None:
    loaded = mlxkv.load(stories_path)
    chat = loaded.chat(autosave=True, temperature=0.0, max_tokens=20)
    assert any(isinstance(event, mlxkv.TurnFinished) for event in chat.send("Once upon a time"))
    second = Terminal(["-c"], rows=50)
    second.wait_for("Lily")
    second.wait_for("Read-only until")
    second.type("more\r")
    second.wait_for("open in another mlxkv")
    second.type("\x03")  # clears the prompt
    second.wait_for("Ask anything")
    second.type("/fork\r")
    second.wait_for("Once upon a time (2)")
    second.type("\x04")
    assert second.end() == 0
    chat.close()
    loaded.close()


def test_lines_instead_of_a_window(model: list[str]) -> None:
    terminal = Terminal(["--plain", *model[:2], "--temp", "0", "--max-tokens", "20"])
    terminal.wait_for("User: ")
    terminal.type("Once upon a time\r")
    terminal.wait_for("Assistant: ")
    terminal.wait_for("tok/s")
    terminal.type("/context\r")
    terminal.wait_for("Context: ")
    terminal.type("/quit\r")
    assert terminal.end() == 0
    assert b"\x1b[?1049h" not in terminal.output


def test_quitting_while_a_template_holds_the_interpreter_loses_nothing(tiny_path: Path) -> None:
    """The window cannot even read the key. Where it can, see `test_supervisor`."""
    terminal = Terminal(["-m", str(tiny_path), *LONG[:2], "--max-tokens", "4"], module="tests.tui.hanging")
    terminal.wait_for("is ready")
    terminal.type("good\r")
    terminal.wait_for("saved ✓")
    terminal.type("then hold\r")
    terminal.wait_for("it hangs")
    terminal.type("\x04")
    terminal.wait_for("mlxkv stopped: it hung, perhaps in the model's tokenizer or template. Chat saved - mlxkv -c")
    assert terminal.end() == 1
    assert b"\x1b[?1049l" in terminal.output
    user, reply, *_ = saved()
    assert user == "good"
    assert reply
