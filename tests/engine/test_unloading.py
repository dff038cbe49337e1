"""An idle model gives its memory back; the next message loads it, and the chat continues as if it had stayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.config import Settings
from mlxkv.engine.unloading import TITLE_SECONDS, idle_commands
from mlxkv.errors import MlxkvError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from tests.engine.test_engine_chats import Said
from tests.tokenizers import tiny_folder


@pytest.mark.parametrize(
    ("minutes", "has_model", "has_chat", "has_title", "waits"),
    [
        (None, True, True, True, [(60, cmd.Pause())]),
        (None, False, False, True, []),
        (None, True, True, False, [(TITLE_SECONDS, cmd.SuggestTitle()), (60 - TITLE_SECONDS, cmd.Pause())]),
        (30, True, True, True, [(60, cmd.Pause()), (1740, cmd.Unload(True)), (60, cmd.Unload(True))]),
        (0.5, True, True, True, [(30, cmd.Unload(True)), (60, cmd.Unload(True)), (60, cmd.Unload(True))]),
        (30, True, False, True, [(1800, cmd.Unload(True)), (60, cmd.Unload(True)), (60, cmd.Unload(True))]),
        (30, False, False, True, []),
    ],
)
def test_what_is_done_while_no_command_arrives(
    minutes: float | None, has_model: bool, has_chat: bool, has_title: bool, waits: list[tuple[float, cmd.Command]]
) -> None:
    chat = SimpleNamespace(read_only=None) if has_chat else None
    settings, model = Settings(unload_after=minutes), has_model or None
    context: Any = SimpleNamespace(settings=settings, model=model, chat=chat, wants_title=not has_title)
    assert list(islice(idle_commands(context), 3)) == waits


def test_the_waiting_ends_with_the_model() -> None:
    context: Any = SimpleNamespace(settings=Settings(unload_after=30), model=1, chat=None)
    waits = idle_commands(context)
    assert next(waits) == (1800, cmd.Unload(True))
    context.model = None
    assert list(waits) == []


@pytest.fixture(params=[True, False], ids=["saved", "not saved"])
def said(request: pytest.FixtureRequest, home: Path, tiny_path: Path) -> Iterator[Said]:
    said = Said(save=request.param)
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    yield said
    said.context.close()


@pytest.fixture
def unsaved(home: Path, tiny_path: Path) -> Iterator[Said]:
    """A chat without messages."""
    said = Said()
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    yield said
    said.context.close()


@pytest.mark.slow
def test_the_chat_continues_as_if_the_model_had_stayed(said: Said) -> None:
    log, is_saved = said.context.current_chat.log, said.context.current_chat.session_id is not None
    weights, before = said.context.ready_model.loaded.weight_bytes, mx.get_active_memory()
    unloaded = said.one(cmd.Unload(), ev.ModelUnloaded)
    assert unloaded.freed >= weights
    assert before - mx.get_active_memory() == unloaded.freed
    assert unloaded.again == (0 if is_saved else len(log))
    default = cmd.ChangeSettings({"unload_after": 5.0}, for_all=True)
    for light in (cmd.ListModels(), cmd.ListChats(), cmd.CountTokens("a", "b"), default):
        assert not any(isinstance(event, ev.ModelLoading | ev.Failed) for event in said.ask(light))
        assert said.context.model is None
    assert "unloaded already" in said.one(cmd.Unload(), ev.Failed).text
    assert said.ask(cmd.Unload(is_idle=True)) == []

    events = said.ask(cmd.Send("two", 0.0))
    kinds = [type(event) for event in events]
    assert kinds.index(ev.ModelLoading) < kinds.index(ev.ModelReady) < kinds.index(ev.TurnStarted)
    assert ev.ChatOpened not in kinds  # the window still shows the chat
    (finished,) = [event for event in events if isinstance(event, ev.TurnFinished)]
    assert finished.stats.cached_tokens >= (len(log) - 1 if is_saved else 0)
    assert not said.one(cmd.Unload(), ev.SessionStatus).session_id
    said.ask(cmd.ChangeSettings({"top_k": 3}))  # whatever needs the chat loads the model
    assert said.context.current_chat.own_settings.values == {"top_k": 3}
    said.ask(cmd.Unload())
    said.ask(cmd.Rewind(2))
    assert said.context.settings.top_k == 3
    again = said.one(cmd.Send("two", 0.0), ev.TurnFinished)
    stayed = said.context.ready_model.chat(temperature=0.0, max_tokens=12)
    stayed.ask("one")
    assert finished.text == again.text == stayed.ask("two").text


@pytest.mark.slow
def test_a_load_that_is_stopped_returns_the_message_and_can_be_tried_again(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    said.ask(cmd.Unload())

    def stopped(*_: object) -> Callable[..., None]:
        said.context.cancel_load.set()
        raise MlxkvError("Loading was stopped.")

    with monkeypatch.context() as patched:
        patched.setattr(said.context, "load_model", stopped)
        failed = said.one(cmd.Send("two", 0.0), ev.Failed)
    assert (failed.kind, failed.returned) == (ev.FailureKind.STOPPED, "two")
    assert said.one(cmd.Send("two", 0.0), ev.TurnFinished).text


@pytest.mark.slow
def test_other_chats_and_models_while_it_is_unloaded(unsaved: Said, tmp_path: Path) -> None:
    said = unsaved
    said.ask(cmd.Unload())
    assert said.one(cmd.NewChat("Be terse."), ev.ChatOpened).messages == ()
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    chat = said.context.current_chat
    assert chat.system == "Be terse."
    session = str(chat.session_id)
    said.ask(cmd.Unload())
    other = str(tiny_folder(tmp_path / "other", seed=1))
    opened = said.one(cmd.LoadModel(other), ev.ChatOpened)  # the chat stays, with another model
    assert (opened.session_id, [m.text for m in opened.messages][:1]) == (session, ["one"])
    said.ask(cmd.Unload())
    said.context.downloads._thread = SimpleNamespace(is_alive=lambda: True, join=lambda: None)  # type: ignore[assignment]
    said.ask(cmd.OpenChat(session))
    assert said.ask(cmd.Unload(is_idle=True)) == []
    said.context.downloads._thread = None
    said.one(cmd.Unload(), ev.ModelUnloaded)
    said.one(cmd.DeleteChat(), ev.ChatDeleted)


@pytest.mark.slow
def test_a_chat_that_another_mlxkv_has_or_has_changed_is_shown_first(unsaved: Said, tiny_path: Path) -> None:
    said = unsaved
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    session = str(said.context.current_chat.session_id)
    said.ask(cmd.Unload())
    other = Said()
    other.ask(cmd.LoadModel(str(tiny_path)))
    other.ask(cmd.OpenChat(session))
    failed = said.one(cmd.Send("mine", 0.0), ev.Failed)
    assert (failed.kind, failed.returned) == (ev.FailureKind.LOCKED, "mine")
    assert "/new" in said.one(cmd.Unload(), ev.Failed).text  # or nobody would notice that it is free again
    other.one(cmd.Send("theirs", 0.0), ev.TurnFinished)
    other.context.close()
    said.ask(cmd.OpenChat(session))
    said.ask(cmd.Unload())
    unloaded = said.context.unloaded
    assert unloaded is not None
    said.context.unloaded = replace(unloaded, chat=replace(unloaded.chat, num_messages=6))  # the other removed a turn
    events = said.ask(cmd.Send("mine", 0.0))
    assert [len(event.messages) for event in events if isinstance(event, ev.ChatOpened)] == [4]
    assert [event.returned for event in events if isinstance(event, ev.Failed)] == ["mine"]
