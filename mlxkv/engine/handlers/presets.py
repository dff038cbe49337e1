"""Handlers for presets: list, take, save, rename, delete. MLX thread.

`mlxkv.settings.presets` owns the files; taking one is a change of the open chat's settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers import settings
from mlxkv.engine.handlers.chats import with_own_system
from mlxkv.errors import ConfigError, MlxkvError
from mlxkv.protocol.events import (
    EngineEvent,
    PresetCard,
    PresetExists,
    PresetList,
    PresetTaken,
    SettingsApplied,
    SettingsInForce,
)
from mlxkv.settings.presets import Preset, PresetFolder
from mlxkv.settings.schema import CHAT_SETTINGS, OF_SESSION, Settings


def list_presets(context: EngineContext) -> Iterator[EngineEvent]:
    folder = PresetFolder(context.folders)
    cards = []
    for name in folder.names():
        try:
            cards.append(PresetCard(name, folder.load(name).summary))
        except ConfigError as error:
            cards.append(PresetCard(name, "", str(error)))
    yield PresetList(tuple(cards), context.sources.chat.preset)


def take_preset(context: EngineContext, name: str) -> Iterator[EngineEvent]:
    """Use a preset in the open chat from the next turn on. Its model is loaded by the front end, as `/model` does."""
    preset = PresetFolder(context.folders).load(name)
    sources = with_own_system(context).with_preset(preset.name, preset.values)
    cost = yield from settings.use(context, sources)
    model, adapter = preset.values.get("model"), preset.values.get("adapter")
    adapter = None if adapter in ("auto", "none") else adapter
    loaded = context.model and (context.model.name, context.model.adapter)
    is_other = model is not None and (model, adapter) != loaded
    text = f"This chat has the preset {preset.name} from the next turn on: {preset.summary}. {cost}"
    yield PresetTaken(preset.name, text.rstrip(), str(model) if is_other else "", adapter)


def save_preset(context: EngineContext, name: str, is_replacing: bool) -> Iterator[EngineEvent]:
    folder = PresetFolder(context.folders)
    if not is_replacing and folder.file(name).exists():
        yield PresetExists(name)
        return
    values = _in_force(context)
    path = folder.save(name, values, replace=is_replacing)
    yield SettingsApplied(f"Preset {name} is saved: {Preset(name, values).summary}. Its file is {path}.")


def _in_force(context: EngineContext) -> dict[str, Any]:
    """The settings of the open chat that are not mlxkv's defaults, with its model and system prompt."""
    found, chat, none = context.settings, context.chat, Settings()
    names = [n for n in CHAT_SETTINGS if n in Settings.__dataclass_fields__ and n not in OF_SESSION]
    values = {n: getattr(found, n) for n in names if getattr(found, n) != getattr(none, n)}
    first: dict[str, Any] = {}
    if context.model is not None:
        first |= {"model": context.model.name}
        first |= {"adapter": context.model.adapter} if context.model.adapter else {}
    if system := chat.system if chat is not None and chat.messages else found.system:
        first["system"] = system
    return first | values


def rename_preset(context: EngineContext, name: str, new: str) -> Iterator[EngineEvent]:
    PresetFolder(context.folders).rename(name, new)
    with suppress(MlxkvError), context.store() as store:  # chats that cannot be written keep the old name
        store.sessions.rename_preset(name, new)
    own = context.sources.chat
    if own.preset == name and context.chat is not None:
        context.sources = context.sources.for_chat(own.renamed(new), context.sources.lifted)
        context.chat.own_settings = context.sources.chat
        yield SettingsInForce(context.sources)
    yield SettingsApplied(f"Preset {name} is called {new} now.")


def delete_preset(context: EngineContext, name: str) -> Iterator[EngineEvent]:
    PresetFolder(context.folders).delete(name)
    yield SettingsApplied(f"Preset {name} is deleted; chats that took it keep its settings.")
