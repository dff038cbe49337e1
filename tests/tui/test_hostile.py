"""Hostile text on every screen of the real window: nothing of it but visible characters reaches the terminal.

Each screen says whose text it shows (a label), so that a screen which shows none of theirs fails. And each is played
once with nothing made harmless: a scan that then finds nothing could not fail.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.tui.hostile import PAYLOADS, VISIBLE, bomb, copied, faults, markdown, piece, shown
from tests.tui.hostile_tour import ESC, PLAYS, RAW, SIZES, Tour, check, check_raw, click, drag, paste, play

pytestmark = pytest.mark.slow


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
    go(ESC, "saved")
    see("model and notice", "/model x\r", "notice PAY", "model", "notice")
    see("chats", "/resume\r", "title PAY", "title")
    see("chats, searched", "PAYC", "Chats · PAYC")
    see("a chat", "\r", "42.1 tok/s", "title", "code")
    read(tour, lead)
    see("streamed", "\x1b[Fhello\r", "the end", "saved")
    see("thinking", "think\r", "thinks PAY", "thinks")
    for name, keys, text, *labels in (
        ("rewind", "/rewind\r", "Rewind to", "question"), ("tree", "/tree\r", "Branches of", "branch"),
        ("delete", "/delete\r", "Delete “", "title"), ("help", "/help\r", "send, or queue"),
        ("keys", "/keys\r", "list all key bindings"),
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
        ("memory", "/memory\r", "weights"), ("no pane", ESC, "the end"),
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
    see("a chat of someone else's", "/resume c1\r", "Read-only until", "theirs")
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


@pytest.mark.parametrize(("size", "lead"), PLAYS)
def test_nothing_of_theirs_reaches_the_terminal(folder: Path, home: Path, size: tuple[int, int], lead: int) -> None:
    screens = play(visit, folder, home, size, lead)
    check(screens, size)
    everything = "".join(shown(seen.output) for seen in screens)
    assert all(PAYLOADS[i] in everything for i in VISIBLE)  # markup is text
    texts = [text for seen in screens for text in copied(seen.output)]
    assert len(texts) == 3
    assert any("PAYA" in text for text in texts)
    assert not [text for text in texts if list(faults(re.sub(r"[\n\t]", "", text).encode(), *size))]


def test_the_scan_finds_it_on_every_screen_where_nothing_is_made_harmless(folder: Path, home: Path) -> None:
    for seen in play(visit, folder, home, SIZES[0], RAW, "--raw"):
        if seen.name not in ("Markdown 11", "Markdown 12", "Markdown 15"):  # long, wide and emoji only
            check_raw(seen, SIZES[0])
