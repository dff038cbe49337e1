"""An engine that says the worst in every string it says: `python -m tests.tui.hostile_engine`."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, is_dataclass, replace
from itertools import count
from typing import Any

from mlxkv.commands import Command, ListChats, LoadModel, OpenChat, Send
from mlxkv.config import Folders, Settings
from mlxkv.events import (
    ChatList,
    ChatSummary,
    EngineEvent,
    FirstScreen,
    Message,
    ModelCard,
    ModelReady,
    Notice,
    TextDelta,
    TurnFinished,
    TurnStarted,
)
from mlxkv.tui import run
from tests.tui.fake_engine import STATS, STATUS, FakeEngine

PAYLOADS = (
    "\x1b]52;c;UFdORUQ=\x07",  # write the clipboard
    "\x1b]8;;http://evil.example/\x1b\\",  # a link that lies
    "\x1b]0;PWNED\x07",  # the window's title
    "\x1b[31337;31337H",  # CSI
    "\x1bP1$r31337m\x1b\\\x1b_Ga=T\x1b\\",  # DCS, APC
    "\u202e\u202d\u200f",  # bidi overrides
    "\u2066\u2068\u2069\u061c",  # bidi isolates
    "\u200b\ufeff\u2060\u00ad",  # zero width
    "\U000e0041\U000e0042\U000e007f",  # tag characters
    "\x9b31337m\x90q\x9c\x85",  # C1
    "\ud83d\udc00",  # lone surrogates
    "e" + "\u0301" * 40 + "\u20dd" * 40,  # a flood of combining marks
    "\x00\x08\r\x0b\x0c",  # over the line
    "\x1bc\x7f",  # a reset of the terminal
    "\x1b[8m\x1b[31337m",  # hidden text
    "\x1b[6n\x05\x1b[31337t",  # questions that the terminal answers as if they were typed
)
NAMES = tuple(f"PAY{letter}" for letter in "ABCDEFGHIJKLMNOP")
SAID = {"title", "text", "name", "id", "licence", "note", "snippet", "path", "words", "thinking", "label",
        "model"}  # fmt: skip


def bomb(turn: int = 0) -> str:
    """All of them, each after a name that must arrive on the screen, beginning with another one each time."""
    parts = [name + payload for name, payload in zip(NAMES, PAYLOADS, strict=True)]
    at = turn % len(parts)
    return " ".join(parts[at:] + parts[:at])


def markdown() -> str:
    """The same where Markdown may decode, highlight or link it."""
    one = bomb().replace("\r", "")
    entities = "&#27;[31337m &#x202e; &#x9b; &#155; &ZeroWidthSpace; <http://x/%1b[31337m%e2%80%ae>"
    pieces = (
        f"# {one}", one, f"- {one}\n  - {one}", f"> {one}", f"```py\nx = '{one}'  # {one}\n```", f"~~~{one}\nx\n~~~",
        f"`{one}` **{one}** *{one}* ~~{one}~~", f"[{one}](http://a.example/{one.replace(' ', '')} \"{one}\")",
        f"[x](<http://b.example/{one}>) http://c.example/{one}", f"| {one} | b |\n|---|---|\n| {one} | {one} |",
        entities, "long" + "x" * 5000, "wide" + "世" * 2000, f"    {one}", f"1. {one}", "👨\u200d👩\u200d👧" * 30,
    )  # fmt: skip
    return "\n\n".join(pieces)


class HostileEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self._turns = count()
        texts = (bomb(), markdown(), bomb(3) + "\n" + markdown(), markdown())
        self.history = tuple(
            Message(("user", "assistant")[i % 2], text, STATS if i % 2 else None, bomb() if i % 2 else "")
            for i, text in enumerate(texts)
        )

    def answer(self, command: Command) -> list[EngineEvent]:
        match command:
            case LoadModel():
                return [Notice(bomb()), ModelReady(bomb(), 10, 0.1, True)]
            case ListChats():
                return [ChatList(tuple(ChatSummary(f"c{i}", bomb(i), 1.7e9, 2, 0, bomb(i)) for i in range(len(NAMES))))]
            case Send(text):
                said = f"{text}\n\n{markdown()}"
                cut = [TextDelta(char, i) for i, char in enumerate(said)]
                return [TurnStarted(text), TextDelta(bomb(), 1, thinking=True), *cut, TurnFinished("stop", said, STATS),
                        STATUS]  # fmt: skip
            case OpenChat():
                return [self._poisoned(event) for event in super().answer(command)]
        return [self._poisoned(event) for event in super().answer(command)]

    def _poisoned(self, value: Any, name: str = "") -> Any:
        """`value` with every string in it that people read replaced."""
        if isinstance(value, str):
            return f"{bomb(next(self._turns))} {value}" if name in SAID else value
        if isinstance(value, tuple):
            return tuple(self._poisoned(item, name) for item in value)
        if is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Message):
            changed = {f.name: self._poisoned(getattr(value, f.name), f.name) for f in fields(value)}
            return replace(value, **changed)
        return value


def main() -> int:
    first = FirstScreen(tuple(ModelCard(bomb(i), 1_000_000, bomb(i), bomb(i)) for i in range(3)))
    return run(HostileEngine(), first, Settings(), Folders.from_env(os.environ))


if __name__ == "__main__":
    sys.exit(main())
