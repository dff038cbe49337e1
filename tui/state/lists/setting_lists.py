"""Lists of settings and presets, and the words for a setting's value and its source. Pure; UI thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.settings.schema import AT_ONCE, OF_SESSION, Setting, Settings, schema
from mlxkv.settings.setting_sources import Source
from mlxkv.text.clean import clean
from mlxkv.tui.state.lists.choice_lists import confirm
from mlxkv.tui.state.lists.choices import Listing, PutPrompt, Row, RunSlash

if TYPE_CHECKING:
    from mlxkv.tui.state.chat_state import ChatState


# -- words -----------------------------------------------------------------------------------------------------------


def value_text(state: ChatState, setting: Setting) -> str:
    """The value in force as text; for one that is not set, the effect of that."""
    now = getattr(state.settings, setting.name)
    if state.is_ready and setting.name == "model":
        now = state.model_name
    if state.is_ready and setting.name == "adapter":
        now = state.adapter or "none"
    if setting.name == "window" and keeps_cache(state, state.settings) and state.status.cache_window:
        return f"none (this chat began with {state.status.cache_window:,} tok)"
    if now is None:
        return f"none ({setting.null})"
    return f"“{now}”" if setting.name == "system" else shown(setting, now)


def keeps_cache(state: ChatState, settings: Settings) -> bool:
    """Whether the open chat keeps the window and precision that it began with, as the settings bound neither."""
    return not settings.bounds_cache and not state.transcript.is_empty


def shown(setting: Setting, value: object) -> str:
    return ("on" if value else "off") if setting.kind == "bool" else setting.shown(value)


def source_of(state: ChatState, setting: Setting) -> Source:
    """Where the value in force comes from; the loaded model is this chat's."""
    is_loaded = state.is_ready and setting.name in OF_SESSION and setting.name != "system"
    return Source.CHAT if is_loaded else state.sources.source(setting.name)


def source_text(state: ChatState, setting: Setting) -> str:
    """The source of the value in force, as a user knows it; "" for a default of mlxkv or the model."""
    match source_of(state, setting):
        case Source.OPTION:
            return f"the option {setting.option.split(', ')[-1] or setting.name} of this run"
        case Source.IMPLIED:
            return "the option --model of this run"
        case Source.ENVIRONMENT:
            return f"MLXKV_{setting.name.upper()}"
        case Source.CHAT:
            return "this chat"
        case Source.PRESET:
            return f"the preset {state.sources.chat.preset}"
        case Source.CONFIG:
            return "all chats" if setting.is_for_chat else "config.toml"
    return ""


def in_force(state: ChatState, setting: Setting) -> str:
    """`0.3 (this chat; all chats: 0.5)`"""
    source = source_text(state, setting)
    config = state.sources.config
    if source and setting.is_for_chat and setting.name in config and source != "all chats":
        source += f"; all chats: {shown(setting, config[setting.name])}"
    return value_text(state, setting) + (f" ({source})" if source else "")


def on_off(rule: str) -> str:
    return rule.replace("true or false", "on or off")  # config.toml has true and false, the chat on and off


def _when(setting: Setting) -> str:
    """When a change takes effect, in this chat if it can have a value of its own."""
    if setting.name in ("model", "adapter"):
        return "at once: the model is loaded, and this chat prefilled again"
    return setting.holds if setting.holds == AT_ONCE else f"with {setting.holds}"


# -- lists -----------------------------------------------------------------------------------------------------------


def settings_list(state: ChatState) -> Listing:
    """Every setting with its value and source; choosing one puts `/set` into the prompt, D saves it for all chats."""
    width = max(len(s.slash or s.name) for s in schema())
    rows = []
    for s in schema():
        name = s.slash or s.name
        flip = shown(s, not getattr(state.settings, s.name)) if s.kind == "bool" else ""
        detail = f"{s.help} Values: {on_off(s.rule)}. In force: {in_force(state, s)}."
        detail += f" A change takes effect {_when(s)}."
        saved = None
        if s.is_for_chat and source_of(state, s) is not Source.CONFIG:
            now = value_text(state, s) if s.name in OF_SESSION else s.shown(getattr(state.settings, s.name))
            value = "none" if getattr(state.settings, s.name) is None and s.name not in ("model", "adapter") else now
            saved = RunSlash("set", f"{name} {value} --default")
        text = f"{name:<{width}} {value_text(state, s)}"
        facts = (source_text(state, s),)
        rows.append(
            Row(text, PutPrompt(f"/set {name} {flip}"), facts, f"{s.name} {s.help}", detail=detail, other=saved)
        )
    hint = "⏎ change this chat · D save for all chats · esc close"
    return Listing("Settings", tuple(rows), hint, "No setting is called that.")


def presets_list(presets: Sequence[ev.PresetCard], current: str) -> Listing:
    """Every preset with what it sets; the open chat's is marked."""
    rows = []
    for preset in presets:
        mark = "▌" if preset.name == current else " "
        what = clean(preset.problem or preset.summary)
        choice = None if preset.problem else cmd.TakePreset(preset.name)
        rows.append(Row(f"{mark}{preset.name}", choice or PutPrompt(""), (what,), detail=what))
    at = next((i for i, preset in enumerate(presets) if preset.name == current), 0)
    hint = "⏎ take it for this chat · /preset save NAME · esc close"
    return Listing("Presets", tuple(rows), hint, "No preset is called that.", at)


def replace_preset(name: str) -> Listing:
    rows = (Row("Keep it"), Row("Replace it by what is in force in this chat", cmd.SavePreset(name, replace=True)))
    return confirm(f"There is a preset {name} already", rows)


def delete_preset(name: str) -> Listing:
    rows = (Row("Keep it"), Row("Delete it; chats that took it keep its settings", cmd.DeletePreset(name)))
    return confirm(f"Delete the preset {name}?", rows)
