"""Hostile text where the window asks before it does something, in lists of files, and in files sent along."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.hostile import bomb, piece
from tests.tui.hostile_tour import ESC, PLAYS, RAW, SIZES, Tour, check, check_raw, paste, play


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of an attacker's that is text; what NUL is in would be refused."""
    base = tmp_path / "work"
    base.mkdir()
    text = f"{bomb()}\n{piece(RAW, 'inside')}"  # unfolded, its end is seen
    (base / "sent.txt").write_text(text.replace("\0", ""), errors="replace")
    return base


def visit(tour: Tour, lead: int, is_wide: bool) -> None:
    see, go = tour.see, tour.go
    go("", "No model is loaded")
    see("a model that does not fit", "/model large\r", "Pick a smaller", "needs")
    see("loaded with four bits", "\x1b[B\r", "notice PAY", "notice", "model")
    see("themes", "/theme\r", "Search for themes")
    see("themes, pasted", paste(f"{piece(8)} {piece(lead, 'looks')}"), "looks PAY", "looks")
    go(ESC, "notice")
    see("a theme", "/theme " + paste(f"{piece(8)} {piece(lead, 'ugly')}."), "ugly PAY", "ugly")
    see("no such theme", "\r", "There is no theme")  # in quotes, as Python writes it: harmless even when raw
    see("the cache on disk", "\x03/cache\r", "KV on disk", "title", "named")
    go(ESC, "Ask anything")
    see("a file sent along", "see @sent.txt \r", "the end")
    go("\x1b[1;3A", "y copy")
    see("unfolded", "\x1b[1;3A ", "inside PAY", "inside")
    see("folded", " ", "▸ @sent.txt")
    go(ESC, "Ask anything")
    see("compacting", "/compact\r", "A summary of 18")
    see("a summary", "\r", "sums PAY", "whole", "asked", "sums")
    see("a summary, stopped", ESC, "stopped PAY", "stopped")
    see("compacting without a summary", "/compact\r", "cannot summarise", "weak")
    see("compacted", "\r", "compacted: a pinned", "asked", "kept", "short")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "lead"), PLAYS)
def test_nothing_of_theirs_reaches_the_terminal(folder: Path, home: Path, size: tuple[int, int], lead: int) -> None:
    check(play(visit, folder, home, size, lead), size)


def test_the_scan_finds_it_where_nothing_is_made_harmless(folder: Path, home: Path) -> None:
    for seen in play(visit, folder, home, SIZES[0], RAW, "--raw"):
        check_raw(seen, SIZES[0])
