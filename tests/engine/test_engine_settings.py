"""Settings and presets of the open chat, with a real model: stored, resumed, taken, undone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mlxkv
from mlxkv.config import Folders
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.settings.presets import PresetFolder
from mlxkv.settings.setting_sources import SettingSources, Source
from tests.engine.test_engine_chats import SETTINGS, Said


@pytest.fixture
def said(home: Path, tiny_path: Path) -> Iterator[Said]:
    """A question and its reply."""
    said = Said()
    assert said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    yield said
    said.context.close()  # not the dispatcher: this thread still uses MLX


def in_force(said: Said, command: cmd.Command) -> SettingSources:
    return [event for event in said.ask(command) if isinstance(event, ev.SettingsInForce)][-1].sources


def stored(said: Said) -> tuple[dict[str, object], str | None]:
    return said.context.ready_model.store.sessions.settings_of(str(said.context.current_chat.session_id))


def test_a_chats_settings_are_stored_and_hold_when_it_is_resumed(said: Said, tiny_path: Path) -> None:
    said.ask(cmd.ChangeSettings({"max_tokens": 3, "top_k": None}))
    assert stored(said) == ({"max_tokens": 3, "top_k": None}, None)
    said.one(cmd.Send("two", 0.0), ev.TurnFinished)
    session = str(said.context.current_chat.session_id)
    assert in_force(said, cmd.NewChat()).settings.max_tokens == SETTINGS.max_tokens
    again = in_force(said, cmd.OpenChat(session))
    assert (again.source("max_tokens"), again.settings.max_tokens) == (Source.CHAT, 3)
    assert said.one(cmd.Send("three", 0.0), ev.TurnFinished).stats.generated_tokens == 3
    all_chats = in_force(said, cmd.ChangeSettings({"max_tokens": 5}, for_all=True))
    assert (all_chats.source("max_tokens"), stored(said)) == (Source.CONFIG, ({"top_k": None}, None))
    said.ask(cmd.ChangeSettings({"max_tokens": 4}))
    said.ask(cmd.ChangeSettings({}, dropped=("max_tokens",)))
    assert said.context.settings.max_tokens == 5
    events = said.ask(cmd.ChangeSettings({"max_tokens": 2, "window": 512}))
    assert not [event for event in events if isinstance(event, ev.Notice)]  # `SettingsApplied` says what it costs
    said.context.close()
    with mlxkv.load(tiny_path) as model, model.resume(session) as chat:  # from Python, too
        assert chat.ask("four").stats.generated_tokens == 2
        assert chat.cache.plan.resolved.window == 512


def test_a_preset_holds_from_the_next_turn_and_says_what_is_prefilled(said: Said) -> None:
    folder = PresetFolder(Folders.from_env())
    folder.save("terse", {"system": "Be terse.", "max_tokens": 2, "window": 128, "model": "tutor"})
    said.ask(cmd.ChangeSettings({"max_tokens": 9}))
    taken = said.one(cmd.TakePreset("terse"), ev.PresetTaken)
    chat = said.context.current_chat
    again = len(chat.log)
    assert (taken.model, taken.adapter) == ("tutor", None)
    assert "This chat has the preset terse from the next turn on: model tutor · system prompt “Be terse.”" in taken.text
    assert "The KV cache has its new size; your next message prefills " in taken.text
    assert (chat.system, chat.cache.plan.resolved.window, len(chat.messages)) == ("Be terse.", 128, 2)
    stats = said.one(cmd.Send("two", 0.0), ev.TurnFinished).stats
    assert stats.generated_tokens == 2
    assert stats.prefill_tokens > again, "the whole chat, since it begins with the system prompt"
    assert stored(said) == ({"preset_max_tokens": 2, "preset_window": 128}, "terse")
    assert said.context.sources.source("max_tokens") is Source.PRESET
    said.ask(cmd.RenamePreset("terse", "short"))
    assert (stored(said)[1], said.context.sources.chat.preset, folder.names()) == ("short", "short", ["short"])
    assert said.ask(cmd.SavePreset("short")) == [ev.PresetExists("short")]
    said.one(cmd.SavePreset("mine"), ev.SettingsApplied)
    saved = folder.load("mine").values
    assert (saved["system"], saved["window"], saved["temperature"]) == ("Be terse.", 128, 0.0)
    listed = said.one(cmd.ListPresets(), ev.PresetList)
    assert [card.name for card in listed.presets] == ["mine", "short"]
    assert "is deleted" in said.one(cmd.DeletePreset("short"), ev.SettingsApplied).text
    assert "There is no preset 'short'" in said.one(cmd.TakePreset("short"), ev.Failed).text


def test_values_that_cannot_be_used_cost_a_notice_and_no_chat(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    session = str(said.context.current_chat.session_id)
    said.ask(cmd.NewChat())
    table = {"temperature": "hot", "window": 1 << 24, "max_tokens": 2}
    said.context.ready_model.store.sessions.set_settings(session, table, "gone")
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "512MB")
    (notice,) = [event.text for event in said.ask(cmd.OpenChat(session)) if isinstance(event, ev.Notice)]
    assert "cannot use temperature = 'hot'" in notice
    assert "So this chat's own size of the KV cache is left out." in notice
    assert said.one(cmd.Send("two", 0.0), ev.TurnFinished).stats.generated_tokens == 2


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_cache_that_cannot_be_made_leaves_the_chat_as_it_was(
    said: Said, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    if is_empty:
        said.ask(cmd.NewChat())
    num_messages = len(said.context.current_chat.messages)
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "512MB")
    assert said.one(cmd.ChangeSettings({"window": 1 << 24}), ev.Failed)
    assert len(said.context.current_chat.messages) == num_messages
    assert said.context.current_chat.own_settings.values == {}
    assert said.one(cmd.Send("two", 0.0), ev.TurnFinished).stats.cache_window < 1000
