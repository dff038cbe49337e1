"""A tour through the real window with a hostile engine: types keys, and remembers which screen wrote what.

Where it goes is the tests' business, `test_hostile.py` and `test_hostile_dialogs.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.thorough import THOROUGH
from tests.tui.hostile import NAMES, bomb, faults, piece, shown
from tests.tui.terminal import Terminal

ESC = "\x1b[27u"  # as terminals with the newer keyboard protocol say it: a bare one waits for what may follow
ROOT = Path(__file__).resolve().parents[2]
SIZES = ((80, 24), (120, 36))
RAW = 13  # begins with ESC c
PLAYS = [(size, lead) for size in SIZES for lead in range(len(NAMES))] if THOROUGH else [(SIZES[1], 6)]


FOUND = "Markdown"  # begins the name of what was searched for: the screen before may show it already, but for the mark


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
        self.terminal.wait_for(_wrapped(text))

    def go(self, keys: str, text: str) -> None:
        if keys:
            self.terminal.catch_up()
        self.terminal.type(keys)
        self.terminal.wait_for(_wrapped(text))

    def screens(self) -> list[Seen]:
        """Cut where a sequence begins: what came until then may end in the middle of one, or of a character."""
        output = self.terminal.output
        ends = [max(0, output.rfind(b"\x1b", 0, at + 1)) for _, _, at in self.begun] + [output.rindex(b"\x1b")]
        cuts = [end - 2 if output[:end].endswith(b"\r\n") else end for end in ends]
        starts = [cuts[max(0, i - name.startswith(FOUND))] for i, (name, _, _) in enumerate(self.begun)]
        return [Seen(name, labels, output[starts[i] : cuts[i + 1]]) for i, (name, labels, _) in enumerate(self.begun)]


def _wrapped(text: str) -> re.Pattern[str]:
    """`text`, however its words are put into lines."""
    return re.compile(r"\s+".join(map(re.escape, text.split(" "))))


def play(
    visit: Callable[[Tour, int, bool], None], folder: Path, home: Path, size: tuple[int, int], lead: int, *more: str
) -> list[Seen]:
    """Let `visit` go through the window in `folder`; it is told the lead, and whether there is room for a sidebar."""
    columns, rows = size
    state = home / "state"
    state.mkdir(parents=True, mode=0o700)
    earlier = [*(bomb(i, "earlier") for i in range(len(NAMES))), piece(lead, "earlier")[:60]]
    (state / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in earlier))
    editor = f"/bin/cp {folder}/edited.txt"
    env = {"PYTHONPATH": str(ROOT), "MLXKV_HOME": str(home), "PATH": "/nonexistent", "VISUAL": editor}
    terminal = Terminal([str(lead), *more], env, columns, rows, "tests.tui.hostile_engine", folder)
    tour = Tour(terminal)
    try:
        visit(tour, lead, columns >= 100)
        tour.terminal.catch_up()  # the last screen is painted to its end
        return tour.screens()
    finally:
        os.kill(terminal.pid, signal.SIGKILL)  # how it ends is not what this is about
        terminal.end()


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


def check(screens: list[Seen], size: tuple[int, int]) -> None:
    """No screen has a fault, and each shows the text that it is about."""
    found = {seen.name: next(faults(seen.output, *size), "") for seen in screens}
    assert not any(found.values()), {name: fault for name, fault in found.items() if fault}
    texts = [(seen, label, _wrapped(f"{label} PAY")) for seen in screens for label in seen.labels]
    unseen = [(seen.name, label) for seen, label, text in texts if not text.search(shown(seen.output))]
    assert not unseen, f"these screens show none of their text: {unseen}"
    assert not any("Traceback" in shown(seen.output) for seen in screens)


def check_raw(seen: Seen, size: tuple[int, int]) -> None:
    """Played with nothing made harmless and lead `RAW`: the scan finds it, and each text is there as it came."""
    if seen.labels:
        assert list(faults(seen.output, *size)), seen.name
    for label in seen.labels:
        if not label.startswith("md"):  # there the label is a line of its own
            said = re.sub(rb"\x1b\[[0-9;]*m", b"", seen.output)  # colours may stand between
            assert re.search(rf"{label} PAYNc?[\x1b\x7f]".encode(), said), (seen.name, label)
