"""What only reads is answered while a reply is written or a model loaded, and does not change the reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.engine import Engine
from mlxkv.engine.dispatcher import Dispatcher
from mlxkv.errors import MlxkvError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from tests.engine.test_engine import SETTINGS, Watched, loaded
from tests.engine.test_engine_chats import Said

READS: tuple[cmd.Command, ...] = (
    cmd.ListModels(), cmd.ListChats(), cmd.SearchChats("one"), cmd.ShowTree(), cmd.ListPresets(), cmd.ShowContext(),
    cmd.ListCache(), cmd.CountTokens("k", "one two"), cmd.ShowStats(),
)  # fmt: skip
ANSWERS = (
    ev.ModelList, ev.ChatList, ev.ChatHits, ev.ChatTree, ev.PresetList, ev.ContextUsage, ev.CacheList, ev.TokensCounted,
    ev.SessionStats,
)  # fmt: skip
OF_DISK = [read for read in READS if isinstance(read, cmd.READS_OF_DISK)]


@pytest.fixture
def said(home: Path, tiny_path: Path) -> Iterator[Said]:
    said = Said()
    said.ask(cmd.LoadModel(str(tiny_path)))
    yield said
    said.context.close()


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    engine = Engine(Folders.from_env(), SETTINGS)
    engine.start()
    yield engine
    engine.close()


def at_token(dispatcher: Dispatcher, number: int, do: Callable[[], object]) -> None:
    """Do something once, when the dispatcher tells this token of a reply."""
    tell, done = dispatcher._emit, []

    def told(event: ev.EngineEvent) -> None:
        tell(event)
        if isinstance(event, ev.TextDelta) and event.num_tokens >= number and not done:
            done.append(do())

    dispatcher._emit = told


def test_what_only_reads_is_answered_during_a_reply(said: Said) -> None:
    plain = said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    said.ask(cmd.NewChat())
    assert {type(command) for command in READS} == {*cmd.READS}
    at_token(said.dispatcher, 3, lambda: said.context.reads.extend(READS))
    events = said.ask(cmd.Send("one", 0.0))
    kinds = [type(event) for event in events]
    assert not any(isinstance(event, ev.Failed) for event in events)
    assert tuple(kind for kind in kinds[: kinds.index(ev.TurnFinished)] if kind in ANSWERS) == ANSWERS
    assert next(event for event in events if isinstance(event, ev.TurnFinished)).text == plain.text
    figures = next(event for event in events if isinstance(event, ev.SessionStats))
    assert 3 <= figures.generated_tokens < plain.stats.generated_tokens
    assert said.one(cmd.ShowStats(), ev.SessionStats).generated_tokens == plain.stats.generated_tokens


def test_what_reads_the_disk_is_answered_during_a_load(home: Path, tiny_path: Path) -> None:
    said = Said()
    tell, asked = said.dispatcher._emit, [*OF_DISK, cmd.ShowStats(), cmd.ListChats()]

    def told(event: ev.EngineEvent) -> None:
        tell(event)
        if isinstance(event, ev.ModelLoading) and event.done and asked:
            said.context.reads.extend(asked)
            asked.clear()

    said.dispatcher._emit = told
    kinds = [type(event) for event in said.ask(cmd.LoadModel(str(tiny_path)))]
    said.context.close()
    answers = [ANSWERS[READS.index(read)] for read in OF_DISK]
    assert [kind for kind in kinds[: kinds.index(ev.ModelReady)] if kind in ANSWERS] == answers
    assert ev.Failed not in kinds
    assert [*said.context.reads] == [cmd.ShowStats(), cmd.ListChats()]  # they wait for the model, in their order


def test_a_read_that_fails_leaves_the_message_to_the_reply(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MlxkvError("It cannot be read.")

    monkeypatch.setattr("mlxkv.engine.handlers.status.context_usage", refuse)
    at_token(said.dispatcher, 3, lambda: said.context.reads.append(cmd.ShowContext()))
    events = said.ask(cmd.Send("one", 0.0))
    assert [event for event in events if isinstance(event, ev.Failed)] == [
        ev.Failed("It cannot be read.", is_read=True)
    ]
    assert any(isinstance(event, ev.TurnFinished) for event in events)


@pytest.mark.slow
def test_a_read_is_answered_once_in_its_turn_or_before(engine: Engine, tiny_path: Path) -> None:
    watched = loaded(Watched(engine), tiny_path)
    at_token(engine._dispatcher, 3, lambda: engine.submit(cmd.ShowStats()))
    engine.submit(cmd.Send("one", time.perf_counter()))
    engine.submit(cmd.RenameChat("Other"))
    before = watched.until(ev.TurnFinished)
    engine.submit(cmd.ListChats())  # after the command before it, since no reply is written
    after = watched.until(ev.ChatList)
    assert [type(event) for event in before].count(ev.SessionStats) == 1
    assert [event.title for event in after if isinstance(event, ev.ChatRenamed)] == ["Other"]
    assert ev.SessionStats not in [type(event) for event in after]
    assert not engine._dispatcher.context.is_awaited
