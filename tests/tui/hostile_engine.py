"""An engine that says the worst in every string it says: `python -m tests.tui.hostile_engine [lead]`.

Each string begins with a label, so that a test knows what it sees: `title PAYA...`. With `lead` they begin with another
payload, for where only the beginning of a string is shown. `--raw` leaves out what makes strings harmless: then a scan
that can fail does.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from dataclasses import fields, is_dataclass, replace
from typing import Any

from mlxkv.config import Folders, Settings
from mlxkv.events import Branch, Message, Notice, Sibling, TextDelta, TurnFinished
from mlxkv.protocol.commands import (
    ChangeSettings,
    Command,
    Compact,
    DeleteChat,
    ExportChat,
    ListChats,
    ListModels,
    LoadModel,
    OpenChat,
    PausePull,
    PlanCompact,
    Pull,
    RenameChat,
    Send,
    ShowTree,
)
from mlxkv.protocol.events import (
    ChatDeleted,
    ChatExported,
    ChatList,
    ChatOpened,
    ChatRenamed,
    ChatTree,
    Compacted,
    EngineEvent,
    EngineStopped,
    Failed,
    FailureKind,
    LoadPhase,
    ModelCard,
    ModelList,
    ModelLoading,
    ModelMissing,
    ModelReady,
    PullProgress,
    PullState,
    SettingsApplied,
    TurnStarted,
    Versions,
)
from mlxkv.protocol.status import ChatSummary, CompactPlan, ModelTooLarge, SaveState
from tests.tui.fake_engine import STATS, STATUS, FakeEngine
from tests.tui.hostile import NAMES, bomb, markdown, piece

FIXED = {"session_id", "parent", "state", "phase", "reason", "kind", "role"}  # words of ours, or keys
CODE = "```py\n{}\n```"


class Trickle(deque[EngineEvent]):
    """As if the model took its time: a look at it finds a few events, so that half-written Markdown is painted."""

    def __len__(self) -> int:
        return min(super().__len__(), 300)


class HostileEngine(FakeEngine):
    """`lead` is the payload that strings begin with."""

    def __init__(self, lead: int = 0) -> None:
        super().__init__()
        self.events: deque[EngineEvent] = Trickle()
        self.lead = lead
        self.num_plans = 0
        file = f"\n\nFile `{bomb(lead, 'path').replace('`', '')}`:\n```\n{bomb(lead)}\n```"
        question, code = f"{piece(lead, 'question')}{file}", CODE.format(bomb(lead, "code"))
        said = ["short", "\n\n".join(markdown("md")), question, code]
        self.history = tuple(
            Message(
                ("user", "assistant")[i % 2], text, STATS if i % 2 else None, bomb(lead, "thought") if i % 2 else ""
            )
            for i, text in enumerate(said)
        )

    def stop(self, *, closing: bool = False) -> None:
        super().stop()
        self.say([Failed(bomb(self.lead, "stopped"), FailureKind.STOPPED)])

    def answer(self, command: Command) -> list[EngineEvent]:
        lead = self.lead
        match command:
            case LoadModel("gone"):
                return [ModelMissing(piece(lead, "gone"), 5)]
            case LoadModel("slow"):  # until it is stopped
                return [ModelLoading(piece(lead, "loading").replace("/", "|"), LoadPhase.LOADING, 1, 2)]
            case LoadModel("broken"):
                return [Failed(bomb(lead, "failed"), FailureKind.MEMORY)]
            case LoadModel("large"):
                return [ModelTooLarge(piece(lead, "needs").replace("/", "|"), 19 << 30, 17 << 30, 24 << 30, True)]
            case LoadModel():
                return [Notice(bomb(lead, "notice")), ModelReady(piece(lead, "model").replace("/", "|"), 10, 0.1, True)]
            case ListChats():
                rows = [
                    ChatSummary(f"c{i}", bomb(lead + i, "title"), 1.7e9 - i, 2, 0, bomb(i, "of"))
                    for i in range(len(NAMES))
                ]
                return [ChatList((*rows, ChatSummary("c99", "long" * 5000, 1.6e9, 2, 0, "")))]
            case ListModels():
                cards = [ModelCard(bomb(lead + i, "id"), 1000, is_local=True) for i in range(6)]
                notes = [ModelCard(f"n{i}", 10, piece(lead + i, "licence")[:28], piece(lead, "note")) for i in range(3)]
                return [ModelList((*cards, *notes, ModelCard("long" * 5000, 10)))]
            case ShowTree():
                rows = (
                    Branch(f"c{i}", bomb(lead + i, "branch"), f"c{i - 1}" if i == 1 else None, 2, 1.7e9, 3)
                    for i in range(9)
                )
                return [ChatTree(tuple(rows))]
            case RenameChat(session_id=session_id):
                return [ChatRenamed(session_id or "c0", bomb(lead, "renamed"))]
            case DeleteChat(session_id):
                return [ChatDeleted(session_id or "c9", bomb(lead, "deleted")), ChatOpened(None, "")]
            case ExportChat():
                return [ChatExported(bomb(lead, "exported"))]
            case ChangeSettings():
                return [SettingsApplied(bomb(lead, "applied"))]
            case Pull():
                name = piece(lead, "pulled").replace("/", "|")
                return [PullProgress(name, PullState.ASKING), PullProgress(name, PullState.DOWNLOADING, 1, 2, 0.5)]
            case PausePull():
                return [
                    PullProgress(bomb(lead, "paused"), PullState.PAUSED, 1, 2),
                    PullProgress("p", PullState.FAILED, text=bomb(lead, "broke")),
                ]
            case PlanCompact():  # the second time by a model that cannot summarise
                self.num_plans += 1
                weak, summary = piece(lead, "weak")[:28], 64 * (self.num_plans % 2)
                return [CompactPlan(weak, 4096, 4, 1900, 18, 29_300, 0, 71, summary)]
            case Compact(True):  # until it is stopped
                whole = ChatOpened("c1", piece(lead, "whole"))
                return [whole, TurnStarted(piece(lead, "asked")), TextDelta(bomb(lead, "sums"), 1)]
            case Compact():
                kept = (Message("user", piece(lead, "asked")), Message("assistant", piece(lead, "kept"), STATS))
                return [ChatOpened("c4", piece(lead, "short"), kept), Compacted(True, 2, 120, 256)]
            case Send(text) if text.startswith("see "):
                return [TurnStarted(text), TextDelta("seen", 1), TurnFinished("stop", "seen", STATS), Notice("the end")]
            case Send("link"):
                said = "\n".join(f"- [link {'x' * 60}](http://пример.example/{i}[@click=app.bell])" for i in range(80))
                return [TurnStarted("link"), TextDelta(said, 1), TurnFinished("stop", said, STATS)]
            case Send("die"):
                return [TurnStarted("die"), EngineStopped(bomb(lead, "died"))]
            case Send("think"):
                end = [TurnFinished("stopped", "", replace(STATS, finish_reason="stopped")), Notice("the end")]
                return [TurnStarted("think"), TextDelta(bomb(lead, "thinks"), 1, thinking=True), *end]
            case Send("wait"):  # a reply that does not end by itself
                return [TurnStarted("wait"), TextDelta("waiting ", 1)]
            case Send(text):
                said = "\n\n".join([text, *markdown("stream")[:6]])
                cut = [TextDelta(said[i : i + 3], i) for i in range(0, len(said), 3)]
                return [TurnStarted(text), TextDelta(bomb(lead, "thinks"), 1, thinking=True), *cut,
                        TurnFinished("stop", said, STATS),
                        replace(STATUS, saved=SaveState.NOT_SAVED, save_problem=piece(lead, "saved")),
                        Notice("the end")]  # fmt: skip
            case OpenChat("c1"):
                return [ChatOpened("c1", bomb(lead, "theirs"), self.history, read_only=bomb(lead, "locked"))]
            case OpenChat(session_id):
                siblings = (Sibling("c1", bomb(lead), 1.7e9, False), Sibling(session_id, bomb(lead), 1.7e9, True))
                return [ChatOpened(session_id, bomb(lead, "title"), self.history), Versions(((), siblings)), STATUS]
        return [self._poisoned(event) for event in super().answer(command)]

    def _poisoned(self, value: Any, name: str = "") -> Any:
        """`value` with every string in it replaced that comes from elsewhere."""
        match value:
            case str():
                return bomb(self.lead, name) if value and name not in FIXED else value
            case tuple():
                return tuple(self._poisoned(item, name) for item in value)
            case TextDelta() | Message():
                return value
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: self._poisoned(getattr(value, f.name), f.name) for f in fields(value)})
        return value


def main(lead: int = 0) -> int:
    from mlxkv.tui import run

    cards = (  # two columns of them in 80 cells, the third where there are more
        ModelCard(piece(lead, "card")[:28], 1_000_000),
        ModelCard("b", 1, piece(lead, "terms")[:28], piece(lead + 1, "about")[:28]),
    )
    settings = Settings(model=bomb(lead), system=bomb(lead, "system"))
    return run(HostileEngine(lead), cards, settings, Folders.from_env(os.environ))


if __name__ == "__main__":
    if "--raw" in sys.argv:
        import mlxkv.text.clean

        # Before the window's modules are imported. Half a character would not even be written.
        mlxkv.text.clean.clean = lambda text, before="", *, joined=False: text.encode("utf-8", "replace").decode()
    sys.exit(main(int(sys.argv[1])))
