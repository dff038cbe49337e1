"""Hostile text on every screen of the real window: nothing of it but visible characters reaches the terminal."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from mlxkv.text import clean
from tests.tui.hostile_engine import NAMES, PAYLOADS, bomb
from tests.tui.terminal import Terminal

ESC = "\x1b[27u"  # as terminals with the newer keyboard protocol say it: a bare one waits for what may follow
ROOT = Path(__file__).resolve().parents[2]
# What Textual itself says: styles, the cursor, modes, questions about them, the keyboard, the shape of the pointer.
OURS = re.compile(
    rb"\x1b\[[0-9;:]*[mHABCDJKG]|\x1b\[[?<>=][0-9;]*\$?[hlupcm]|\x1b\[[0-9]*[tnc]|\x1b[78=>]|\x1b\]22;[a-z]*\x07"
)


def left_over(output: bytes) -> str:
    """The output without what Textual says; strictly UTF-8."""
    return OURS.sub(b"", output).decode("utf-8")


def check(output: bytes) -> None:
    assert b"31337" not in b"".join(OURS.findall(output)), "an escape sequence of theirs is intact"
    assert b"\x1b[8m" not in output
    assert b"\x1b[6n" not in output
    text = left_over(output).replace("\r", "")
    assert "\x1b" not in text, f"an escape that is not ours: {text[max(0, text.index(chr(27)) - 40) :][:80]!r}"
    assert clean(text) == text, next(
        f"{char!r} after {text[max(0, i - 60) : i]!r}"
        for i, char in enumerate(text)
        if clean(text[: i + 1][-20:]) != text[: i + 1][-20:]
    )
    assert "\u200d" not in text, "terminals disagree about the width of joined emoji"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files and earlier prompts of an attacker's."""
    base = tmp_path / "work"
    base.mkdir()
    for i, payload in enumerate(PAYLOADS):
        name = f"name{i}{payload}.txt".replace("/", "").replace("\0", "")
        (base / os.fsdecode(name.encode("utf-8", "surrogatepass"))).write_text(bomb(i), errors="replace")
    (base / "plain.txt").write_text(bomb(), errors="replace")
    return base


def test_nothing_of_theirs_reaches_the_terminal(folder: Path, home: Path) -> None:
    state = home / "state"
    state.mkdir(parents=True, mode=0o700)
    (state / "prompts.jsonl").write_text("".join(json.dumps({"text": bomb(i)}) + "\n" for i in range(16)))
    env = {"PYTHONPATH": str(ROOT), "MLXKV_HOME": str(home)}
    terminal = Terminal([], env, 200, 60, "tests.tui.hostile_engine", folder)

    def step(keys: str, text: str) -> None:
        terminal.type(keys)
        terminal.wait_for(text)

    terminal.wait_for("PAYA")  # the first screen's models
    step("/model x\r", "· PAYA")
    step("/resume\r", "resume")
    step("\r", "PAYB")  # a chat of theirs
    step("\x02", "instant resume")  # the sidebar
    terminal.type(ESC)
    step("hello\r", "42.1 tok/s")
    step("\x0f", "unfolded")
    step("\x0b", "PAYD")  # the list of chats
    for command, title in (("tree", "Branches of"), ("rewind", "Go back to"), ("model", "Models")):
        step(ESC, "42.1 tok/s")  # the list is closed, the transcript is back
        step(f"/{command}\r", title)
    step(ESC, "42.1 tok/s")
    step("/stats\r", "tok")
    step("\x12", "earlier prompts")
    terminal.type(ESC)
    step("\x1b[A", "PAYA")  # an earlier prompt, in the prompt
    terminal.type("\x03")
    step("see @name", "see @name")
    terminal.type(f"{ESC}\x03")
    pasted = bomb().replace("\x1b", "").encode("utf-8", "replace").decode()  # terminals keep escapes out of a paste
    step(f"\x1b[200~{pasted}\x1b[201~", "PAYP")
    terminal.type("\x03")
    step("\x06", "Search in this chat")
    step("PAYC", "PAYC")
    os.kill(terminal.pid, signal.SIGKILL)  # how it ends is not what this is about
    terminal.end()
    output = terminal.output[: terminal.output.rindex(b"\x1b")]  # the last sequence may be cut
    check(output)
    shown = left_over(output)
    assert b"Traceback" not in terminal.output
    assert all(name in shown for name in NAMES)
    assert "␛" in shown
