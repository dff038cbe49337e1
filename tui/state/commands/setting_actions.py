"""The commands /set, /think, /system and /preset. UI thread; pure but for `/system @file`.

A change is for the open chat, or with `--default` for all chats; the answer says which.
"""

from __future__ import annotations

import re
from pathlib import Path

from mlxkv.errors import ConfigError, ModelNotFoundError
from mlxkv.models import resolve
from mlxkv.protocol import commands as cmd
from mlxkv.settings.schema import AT_ONCE, NEW_CACHE, Setting, change, find, schema
from mlxkv.settings.setting_sources import Source
from mlxkv.system.regular_file import read_bytes, reason
from mlxkv.text.encoding import decode
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.ui_request import UiRequest
from mlxkv.tui.state.lists import setting_lists
from mlxkv.tui.state.lists.choices import cut
from mlxkv.tui.state.lists.setting_lists import in_force, keeps_cache, on_off, shown, source_text, value_text

_LONGEST = 1 << 20  # bytes of a system prompt file
_FEW_TOKENS, _SMALL_WINDOW, _SMALL_DISK = 16, 256, 0.1  # tokens, tokens, GB
_LONGEST_NAME = 40  # cells of an unknown name
_NAME_END = re.compile(r"\s*[\s=]\s*")
_FOR_ALL = re.compile(r"(?:^|\s+)--default$|^--default\s+")
FOLLOW = "default"  # the value that drops a chat's own


def set_setting(state: ChatState, argument: str) -> UiRequest | None:
    """`/set [name] [value] [--default]`."""
    name, _, value = _NAME_END.sub(" ", argument.strip(), count=1).partition(" ")  # also accept `/set temp=0.7`
    if not name:
        state.listing = setting_lists.settings_list(state)
        return None
    setting = find(name)
    if setting is None:
        known = ", ".join(s.slash or s.name for s in schema())
        state.transcript.add_error(f"There is no setting {cut(name, _LONGEST_NAME)}; there are {known}.")
        return None
    value, num_found = _FOR_ALL.subn("", value.strip())
    if not value and num_found:
        state.transcript.add_error(f"/set {name} --default needs a value, as in /set temp 0.7 --default.")
        return None
    if not value:
        state.transcript.add_line(
            f"{setting.name} is {in_force(state, setting)}. {setting.help} It must be {on_off(setting.rule)}."
        )
        return None
    return change_setting(state, setting, value, for_all=bool(num_found))


def change_setting(state: ChatState, setting: Setting, text: str, *, for_all: bool = False) -> UiRequest | None:
    """Change a setting of this chat, or for all chats; those that no chat has are always for all."""
    is_own = setting.is_for_chat and not for_all
    if is_own and text.lower() == FOLLOW:
        return _follow(state, setting)
    try:
        changed = change(state.settings, {setting.name: text}, lambda key: f"/set {setting.slash or key}")
        if changed.model is not None and setting.name == "model":
            resolve(changed.model)  # otherwise an invalid model would be reported only at the next start
    except (ConfigError, ModelNotFoundError) as error:
        state.transcript.add_error(on_off(str(error)))
        return None
    if setting.name == "theme":
        return UiRequest("theme", text)
    value = getattr(changed, setting.name)
    if is_own and setting.name in ("model", "adapter"):
        return _load(state, setting, value)
    before = state.sources.source(setting.name)
    hidden_by = source_text(state, setting) if before in (Source.OPTION, Source.ENVIRONMENT) else ""
    state.change({setting.name: value}, for_all=not is_own)
    unusual = setting_notice(setting.name, value)
    where = "for this chat" if is_own else "saved for all chats" if setting.is_for_chat else "saved"
    since = setting.holds
    if (is_own and since == NEW_CACHE) or since == AT_ONCE:
        since = "now"
    elif setting.name == "system" and not is_own:
        since = "the next new chat"
    now = "none" if value is None else cut(shown(setting, value), _LONGEST_NAME)
    keeps = is_own and setting.holds == NEW_CACHE and keeps_cache(state, changed)
    now += f" ({'what this chat began with' if keeps else setting.null})" if value is None else ""
    notes = [f"{setting.name} is {now}{' ' if is_own else ', '}{where}, from {since} on.", unusual]
    if is_own and hidden_by:
        notes.append(f"In other chats {hidden_by} stays in force.")
    elif not is_own and state.sources.source(setting.name) is not Source.CONFIG:
        notes.append(f"Here {source_text(state, setting)} stays in force: {value_text(state, setting)}.")
    state.transcript.add_line(" ".join(filter(None, notes)))
    return None if is_own else UiRequest("save", setting.name)


def _follow(state: ChatState, setting: Setting) -> None:
    """Drop this chat's own value."""
    if setting.name in ("model", "adapter") or setting.name not in state.sources.chat.values:
        state.transcript.add_line(f"This chat has no {setting.name} of its own.")
        return
    state.change({}, dropped=[setting.name])
    state.transcript.add_line(f"{setting.name} is no longer this chat's own: it is {in_force(state, setting)}.")


def _load(state: ChatState, setting: Setting, value: str | None) -> None:
    """Change the model or the adapter of this chat: load it."""
    if setting.name == "model" and value is not None:
        state.submit(cmd.LoadModel(value))
    elif setting.name == "adapter" and value != "auto" and state.is_ready:
        state.submit(cmd.LoadModel(state.model_name, adapter=None if value == "none" else value))
    else:
        name = setting.slash or setting.name
        state.transcript.add_error(f"A chat needs its own {name}; /set {name} {value or 'none'} --default is for all.")


def think(state: ChatState, argument: str) -> UiRequest | None:
    """`/think [on|off]`."""
    if argument not in ("", "on", "off"):
        state.transcript.add_error(f"There is no /think {argument}: it is on or off.")
        return None
    setting = next(s for s in schema() if s.name == "think")
    return change_setting(state, setting, argument or ("off" if state.settings.think else "on"))


def system(state: ChatState, argument: str) -> UiRequest | None:
    """`/system [text|@file|off]`."""
    if not argument:
        now = state.settings.system
        none = "This chat has no system prompt; /system TEXT sets it."
        state.transcript.add_line(f"System prompt of this chat: {now}" if now else none)
        return None
    text = argument
    if argument.startswith("@"):
        path = Path(argument[1:]).expanduser()
        try:
            text = decode(read_bytes(path, _LONGEST))
        except (OSError, ValueError) as error:
            state.transcript.add_error(f"{path} cannot be read ({reason(error)}); check the name.")
            return None
    what = "removed" if argument == "off" else "set"
    state.transcript.add_line(f"The system prompt of this chat is {what}, from the next reply on.")
    state.change({"system": None if argument == "off" else text})
    return None


def preset(state: ChatState, argument: str) -> UiRequest | None:
    """`/preset [name]`, `/preset save NAME`, `/preset rename OLD NEW`, `/preset delete NAME`."""
    match argument.split():
        case []:
            state.submit(cmd.ListPresets())
        case ["save", name]:
            state.submit(cmd.SavePreset(name))
        case ["rename", old, new]:
            state.submit(cmd.RenamePreset(old, new))
        case ["delete", name]:
            state.listing = setting_lists.delete_preset(name)
        case [name] if name not in ("save", "rename", "delete"):
            state.submit(cmd.TakePreset(name))
        case [word, *_]:
            usage = {"save": "save NAME", "rename": "rename OLD NEW", "delete": "delete NAME"}.get(word, "NAME")
            state.transcript.add_error(f"/preset {cut(argument, _LONGEST_NAME)} is not complete: /preset {usage}.")
    return None


def setting_notice(name: str, value: object) -> str:
    """A sentence about a value that is allowed but rarely meant; "" for any other."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    match name:
        case "temperature" if value > 2:
            return "Above 2 replies are mostly random tokens; 0.6 to 1 is usual."
        case "top_p" if value == 0:
            return "0 disables top-p, as 1 does; a small value such as 0.1 keeps only the likeliest tokens."
        case "top_k" | "min_p" if value == 1:
            return "This always picks the likeliest token, as temp 0 does."
        case "max_tokens" if value < _FEW_TOKENS:
            return "Replies are cut after a few words; /continue extends one."
        case "window" if value < _SMALL_WINDOW:
            last = "token" if value == 1 else f"{value:,} tokens"
            return f"The model attends only to the last {last} and the pinned ones; 2,048 or more is usual."
        case "sinks" if value == 0:
            return "With nothing pinned the system prompt is evicted too, and replies get worse in a full window."
        case "disk_limit" if value < _SMALL_DISK:
            return "Almost no KV fits on disk: a resumed chat is prefilled again."
    return ""
