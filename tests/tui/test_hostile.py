"""Hostile text on every screen of the real window: nothing of it but visible characters reaches the terminal.

Each screen says whose text it shows (a label), so that a screen which shows none of theirs fails. And each is played
once with nothing made harmless: a scan that then finds nothing could not fail.
"""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.tui.hostile import NAMES, PAYLOADS, VISIBLE, bomb, copied, faults, markdown, piece, shown
from tests.tui.terminal import Terminal

ESC = "\x1b[27u"  # as terminals with the newer keyboard protocol say it: a bare one waits for what may follow
ROOT = Path(__file__).resolve().parents[2]
THOROUGH = bool(os.environ.get("MLXKV_THOROUGH"))
SIZES = ((80, 24), (120, 36))
PLAYS = [(size, lead) for size in SIZES for lead in range(len(NAMES))] if THOROUGH else [(SIZES[0], 0), (SIZES[1], 6)]


@dataclass
class Seen:
    """A screen: what was written from when it was asked for until the next was. `labels`: whose text it shows."""

    name: str
    labels: tuple[str, ...]
    output: bytes


@dataclass
class Tour:
    """Types keys, waits for what they bring, and remembers which screen wrote what."""

    terminal: Terminal
    begun: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)

    def see(self, name: str, keys: str, text: str, *labels: str) -> None:
        if keys:
            self.terminal.catch_up()
        self.begun.append((name, labels, len(self.terminal.output)))
        self.terminal.type(keys)
        self.terminal.wait_for(text)

    def go(self, keys: str, text: str) -> None:
        if keys:
            self.terminal.catch_up()
        self.terminal.type(keys)
        self.terminal.wait_for(text)

    def screens(self) -> list[Seen]:
        """Cut where a sequence begins: what came until then may end in the middle of one, or of a character."""
        output = self.terminal.output
        ends = [max(0, output.rfind(b"\x1b", 0, at + 1)) for _, _, at in self.begun] + [output.rindex(b"\x1b")]
        cuts = [end - 2 if output[:end].endswith(b"\r\n") else end for end in ends]
        return [Seen(name, labels, output[cuts[i] : cuts[i + 1]]) for i, (name, labels, _) in enumerate(self.begun)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of an attacker's."""
    base = tmp_path / "work"
    base.mkdir()
    for i, payload in enumerate(PAYLOADS):
        name = f"name{i}{payload}.txt".replace("/", "").replace("\0", "")[:60]
        (base / os.fsdecode(name.encode("utf-8", "surrogatepass"))).write_text(bomb(i), errors="replace")
    (base / "plain.txt").write_text(bomb(), errors="replace")
    (base / "edited.txt").write_text(f"{bomb()} {piece(13, 'edited')}", errors="replace")
    return base


def play(folder: Path, home: Path, size: tuple[int, int], lead: int, *more: str) -> list[Seen]:
    """Open every screen there is."""
    columns, rows = size
    state = home / "state"
    state.mkdir(parents=True, mode=0o700)
    earlier = [*(bomb(i, "earlier") for i in range(len(NAMES))), piece(lead, "earlier")]
    (state / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in earlier))
    editor = f"/bin/cp {folder}/edited.txt"
    env = {"PYTHONPATH": str(ROOT), "MLXKV_HOME": str(home), "PATH": "/nonexistent", "VISUAL": editor}
    terminal = Terminal([str(lead), *more], env, columns, rows, "tests.tui.hostile_engine", folder)
    tour = Tour(terminal)
    try:
        visit(tour, lead, is_wide=columns >= 100)
        return tour.screens()
    finally:
        os.kill(terminal.pid, signal.SIGKILL)  # how it ends is not what this is about
        terminal.end()


def visit(tour: Tour, lead: int, is_wide: bool) -> None:
    see, go = tour.see, tour.go
    see("first screen", "", "card PAY", "card", "terms")
    see("prompt", "\x1b[A", "earlier PAY", "earlier")
    see("earlier prompts", "\x03\x12", "earlier prompts", "earlier")
    go(ESC, "Ask anything")
    see("loading", "/model slow\r", "loading PAY", "loading")
    see("a load that was stopped", ESC, "stopped PAY", "stopped")
    see("a failure", "/model broken\r", "failed PAY", "failed")
    see("a model that is gone", "/model gone\r", "gone PAY", "gone")
    go(ESC, "chat saved")
    see("model and notice", "/model x\r", "notice PAY", "model", "notice")
    see("chats", "/resume\r", "title PAY", "title")
    see("chats, searched", "PAYC", "Chats · PAYC")
    see("a chat", "\r", "42.1 tok/s", "title", "code")
    read(tour, lead)
    see("streamed", "\x1b[Fhello\r", "the end", "saved")
    see("thinking", "think\r", "thinks PAY", "thinks")
    for name, keys, text, *labels in (
        ("rewind", "/rewind\r", "Go back to", "question"), ("tree", "/tree\r", "Branches of", "branch"),
        ("delete", "/delete\r", "Delete “", "title"), ("help", "/help\r", "send, or queue"),
        ("keys", "/keys\r", "Keys"),
        ("models", "/model\r", "Models", "id"),
        ("models, searched", "licence", "Models · licence", "licence"), ("settings", "/set\r", "Settings"),
        ("settings, searched", "system", "Settings · system", "system"), ("hits", "/resume\r", "Chats"),
        ("hits, none", "nowhere", "No title"), ("hits, all chats", "\r", "snippet PAY", "snippet"),
    ):  # fmt: skip
        if text != "No title" and not name.endswith(("searched", "chats")) and tour.begun[-1][0] != "thinking":
            go(ESC, "the end")
        see(name, keys, text, *labels)
    go(ESC, "the end")
    # What is pasted before Enter ends with a full stop: some payloads end with `\`, which makes Enter a new line.
    for name, keys, text, *labels in (
        ("context", "/context\r", "text PAY", "text"), ("stats", "/stats\r", "ever written"),
        ("memory", "/memory\r", "weights"),
        ("system", "/system\r", "system PAY", "system"), ("renamed", "/rename x\r", "renamed PAY", "renamed"),
        ("exported", "/export md x\r", "exported PAY", "exported"),
        ("set", "/set temp 0.3\r", "applied PAY", "applied"),
        ("downloading", "/pull x\r", "downloading pulled PAY", "pulled"), ("paused", ESC, "broke PAY", "broke"),
        ("the cache", "\x1bOQ", "next write"), ("no panel", "\x1bOQwait\r", "waiting"),
        ("pasted", paste(f"{piece(lead + 1)} {piece(lead, 'pasted')}."), "pasted PAY", "pasted"),
        ("queued", "\r", "waiting for the current", "pasted"), ("stopped", ESC, "the end", "stopped"),
        ("files", "see @name11", "name11[bold red]"), ("a file", f"{ESC}\x03@plain.txt", "plain.txt"),
        ("the editor", f"{ESC}\x03\x07", "edited PAY", "edited"), ("cleared", "\x03", "Ask anything"),
        ("palette", "\x10", "Search for"),
        ("palette, pasted", paste(f"{piece(8)} {piece(lead, 'palette')}"), "palette PAY", "palette"),
    ):  # fmt: skip
        see(name, keys, text, *labels)
    go(ESC, "tok/s")
    see("link", "link\r", "link xxx")
    see("link dialog", click(20, 12), "Open this address")
    go(ESC, "link xxx")
    if is_wide:
        see("sidebar", "\x02", "title PAY", "title")
        go("/", "Chats · ▏")
        see("sidebar, searched", "PAYC", "Chats · PAYC")
        go(f"{ESC}\x02", "link xxx")
    see("a chat of someone else's", "/resume c1\r", "locked PAY", "theirs", "locked")
    see("a message", "\x1b[1;3A", "y copy", "thought")
    see("copied", "y", "the terminal's clipboard")
    see("code copied", "c", "the terminal's clipboard")
    go("q", "thought PAY")
    see("selected", f"{drag((5, 6), (60, 9))}\x03", "the terminal's clipboard")
    go("/new\r", "is ready")
    see("the engine has stopped", "die\r", "died PAY", "died")


def read(tour: Tour, lead: int) -> None:
    """What the chat says, found by searching."""
    see = tour.see
    see("search", "\x06", "Search in this chat")
    for number in range(len(markdown(""))):
        see(f"Markdown {number}", f"md{number:02}", f"md{number:02} PAY", f"md{number:02}")
        tour.terminal.type(5 * "\x7f")
    see("search, pasted", paste(f"{piece(8)} {piece(lead, 'sought')}"), "sought PAY", "sought")
    see("files of a question", "\x15question", "question PAY", "question", "path")
    tour.go(ESC, "question PAY")
    see("reasoning", "\x0f", "unfolded")


def paste(text: str) -> str:
    """Terminals keep escapes out of what they paste, as its end is one; nothing else."""
    text = text.replace("\x1b", "").replace("\r", "").encode("utf-8", "replace").decode()
    return f"\x1b[200~{text}\x1b[201~"


def click(column: int, row: int) -> str:
    """The left button, pressed and let go, as terminals say it (SGR)."""
    return f"\x1b[<0;{column};{row}M\x1b[<0;{column};{row}m"


def drag(start: tuple[int, int], end: tuple[int, int]) -> str:
    first, last = (f"{column};{row}" for column, row in (start, end))
    return f"\x1b[<0;{first}M\x1b[<32;{last}M\x1b[<0;{last}m"


@pytest.mark.parametrize(("size", "lead"), PLAYS)
def test_nothing_of_theirs_reaches_the_terminal(folder: Path, home: Path, size: tuple[int, int], lead: int) -> None:
    screens = play(folder, home, size, lead)
    found = {seen.name: next(faults(seen.output, *size), "") for seen in screens}
    assert not any(found.values()), {name: fault for name, fault in found.items() if fault}
    unseen = [(s.name, label) for s in screens for label in s.labels if not re.search(f"{label} PAY", shown(s.output))]
    assert not unseen, "these screens show none of their text"
    everything = "".join(shown(seen.output) for seen in screens)
    assert "Traceback" not in everything
    assert all(PAYLOADS[i] in everything for i in VISIBLE)  # markup is text
    texts = [text for seen in screens for text in copied(seen.output)]
    assert len(texts) == 3
    assert any("PAYA" in text for text in texts)
    assert not [text for text in texts if list(faults(re.sub(r"[\n\t]", "", text).encode(), *size))]


def test_the_scan_finds_it_on_every_screen_where_nothing_is_made_harmless(folder: Path, home: Path) -> None:
    lead = 13  # begins with ESC c
    for seen in play(folder, home, SIZES[0], lead, "--raw"):
        if seen.labels and seen.name not in ("Markdown 11", "Markdown 12", "Markdown 15"):  # long, wide and emoji only
            assert list(faults(seen.output, *SIZES[0])), seen.name
        for label in seen.labels:
            if not label.startswith("md"):  # there the label is a line of its own
                said = re.sub(rb"\x1b\[[0-9;]*m", b"", seen.output)  # colours may stand between
                assert re.search(rf"{label} PAYNc?[\x1b\x7f]".encode(), said), (seen.name, label)
