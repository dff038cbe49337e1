"""Run slash commands: change the state, send a command to the engine, or return a request for the user interface.

Shared by the window and line mode. `slash.py` has the table of commands. UI thread; pure but for `/system @file`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxkv.errors import ConfigError, ModelNotFoundError
from mlxkv.models import resolve
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.export_format import CHAT_FORMATS, CHAT_SUFFIXES, export_format, one_of
from mlxkv.settings import Setting, change, find, schema
from mlxkv.system.regular_file import read_bytes, reason
from mlxkv.text.clean import clean
from mlxkv.text.encoding import decode
from mlxkv.tui.state import choice_lists, reports
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.choices import Listing, PutPrompt, Row, cut
from mlxkv.tui.state.labels import number_range
from mlxkv.tui.state.report import Report
from mlxkv.tui.state.retry import model_argument, parse_retry

_LONGEST = 1 << 20  # bytes of a system prompt file
_FEW_TOKENS, _SMALL_WINDOW, _SMALL_DISK = 16, 256, 0.1  # tokens, tokens, GB
_LONGEST_NAME = 40  # cells of an unknown name
_NAME_END = re.compile(r"\s*[\s=]\s*")


@dataclass(frozen=True)
class UiRequest:
    """An action of the window or line mode: "help", "quit", "theme", "copy", "find", "paste", "keys" or "save"."""

    name: str
    argument: str = ""


def run(state: ChatState, name: str, argument: str) -> UiRequest | None:
    """Run a command; returns the part that only the user interface can do."""
    action = _ACTIONS.get(name)
    return action(state, argument) if action else UiRequest(name, argument)


# -- chats -----------------------------------------------------------------------------------------------------------


def _rename(state: ChatState, argument: str) -> None:
    if argument:
        state.submit(cmd.RenameChat(argument, state.renaming))
        state.renaming = None
    else:
        state.put = f"/rename {state.transcript.title}"


def _delete(state: ChatState, argument: str) -> None:
    if state.session_id is None:
        state.transcript.add_line("This chat is not saved, so there is nothing to delete.")
    else:
        state.listing = choice_lists.delete_list(state.session_id, state.transcript.title)


def _export(state: ChatState, argument: str) -> None:
    kind, _, path = argument.partition(" ")
    if kind in CHAT_FORMATS:
        state.submit(cmd.ExportChat(kind, path.strip()))
    elif argument and not set(argument) & set(" ./\\"):  # a path has a suffix or a folder
        state.transcript.add_error(
            f"{argument} is not an export format; it must be {one_of(CHAT_FORMATS)}, as in /export md chat.md."
        )
    else:
        try:
            state.submit(cmd.ExportChat(export_format(None, Path(argument), CHAT_SUFFIXES), argument))
        except ConfigError as error:
            state.transcript.add_error(str(error))


# -- turns -----------------------------------------------------------------------------------------------------------


def _question(state: ChatState, argument: str) -> int | None:
    """The message number of question `argument` (from 1), or -1 if there is none."""
    mine = [i for i, message in enumerate(state.transcript.messages) if message.role == "user"]
    if not argument:
        return None
    if not argument.isdecimal() or not 1 <= int(argument) <= len(mine):
        state.transcript.add_line(
            f"There is no question {argument}: {number_range(len(mine))}." if mine else "This chat has no messages yet."
        )
        return -1
    return mine[int(argument) - 1]


def _fork(state: ChatState, argument: str) -> None:
    if (turn := _question(state, argument)) != -1:
        state.submit(cmd.Fork(turn))


def _rewind(state: ChatState, argument: str) -> None:
    if not any(m.role == "user" for m in state.transcript.messages):
        state.transcript.add_line("This chat has no messages yet.")
    elif not argument:
        state.listing = choice_lists.rewind_list(state.transcript.messages)
    elif (turn := _question(state, argument)) != -1:
        state.submit(cmd.Rewind(turn))


def _retry(state: ChatState, argument: str) -> None:
    if not argument:
        state.submit(cmd.Retry())
    elif refusal := state.refusal():
        state.transcript.add_error(refusal)
    elif not any(m.role == "user" for m in state.transcript.messages):  # said before a model is loaded for it
        state.transcript.add_line("This chat has no messages yet.")
    else:
        try:
            state.retry_with(parse_retry(argument))
        except (ConfigError, ModelNotFoundError) as error:
            state.transcript.add_error(_on_off(str(error)))


def _edit(state: ChatState, argument: str) -> None:
    if (turn := _question(state, argument)) != -1 and not state.edit(turn):
        state.transcript.add_line("This chat has no messages yet.")


def _compact(state: ChatState, argument: str) -> None:
    match argument:
        case "summary" | "last":
            state.submit(cmd.Compact(argument == "summary"))
        case "":
            state.submit(cmd.PlanCompact())
        case _:
            state.transcript.add_line("/compact asks first; /compact summary and /compact last start at once.")


# -- the model and its settings ---------------------------------------------------------------------------------------


def _model(state: ChatState, argument: str) -> None:
    state.submit(cmd.LoadModel(model_argument(argument)) if argument else cmd.ListModels())


def _adapter(state: ChatState, argument: str) -> None:
    if not state.is_ready:
        state.transcript.add_error("No model is loaded; /model lists them.")
    elif not argument or (argument == "none" and not state.adapter):
        now = f"The adapter is {clean(state.adapter)}; /adapter none removes it."
        none = "The model has no adapter; /adapter and a folder or org/name loads it with one."
        state.transcript.add_line(now if state.adapter else none)
    else:
        state.submit(cmd.LoadModel(state.model_name, adapter=None if argument == "none" else argument))


def _pull(state: ChatState, argument: str) -> None:
    if argument:
        state.submit(cmd.Pull(argument))
    else:
        state.put = "/pull "


def _system(state: ChatState, argument: str) -> None:
    if not argument:
        none = "New chats have no system prompt; /system TEXT sets it."
        state.transcript.add_line(f"System prompt of new chats: {state.system}" if state.system else none)
        return
    text = None if argument == "off" else argument
    if argument.startswith("@"):
        path = Path(argument[1:]).expanduser()
        try:
            text = decode(read_bytes(path, _LONGEST))
        except (OSError, ValueError) as error:
            state.transcript.add_error(f"{path} cannot be read ({reason(error)}); check the name.")
            return
    state.system = text
    state.submit(cmd.SetSystem(text))


def _set(state: ChatState, argument: str) -> UiRequest | None:
    name, _, value = _NAME_END.sub(" ", argument.strip(), count=1).partition(" ")  # also accept `/set temp=0.7`
    if not name:
        state.listing = settings_list(state)
        return None
    setting = find(name)
    if setting is None:
        known = ", ".join(s.slash or s.name for s in schema())
        state.transcript.add_error(f"There is no setting {cut(name, _LONGEST_NAME)}; there are {known}.")
        return None
    if not value.strip():
        state.transcript.add_line(
            f"{setting.name} is {_now(state, setting)}. {setting.help} It must be {_on_off(setting.rule)}."
        )
        return None
    return _change(state, setting, value.strip())


def _change(state: ChatState, setting: Setting, value: str) -> UiRequest | None:
    try:
        settings = change(state.settings, {setting.name: value}, lambda key: f"/set {setting.slash or key}")
        if settings.model is not None and setting.name == "model":
            resolve(settings.model)  # otherwise an invalid model would be reported only at the next start
    except (ConfigError, ModelNotFoundError) as error:
        state.transcript.add_error(_on_off(str(error)))
        return None
    if setting.name == "theme":
        return UiRequest("theme", value)
    state.settings = settings
    if setting.name == "system":
        state.system = settings.system
    state.submit(cmd.ChangeSettings(state.settings))
    unusual = setting_notice(setting.name, getattr(settings, setting.name))
    since = "now on" if setting.holds == "at once" else f"{setting.holds} on"
    state.transcript.add_line(f"{setting.name} is {_now(state, setting)} from {since}. {unusual}".rstrip())
    return UiRequest("save", setting.name)


def _now(state: ChatState, setting: Setting) -> str:
    """The value of a setting as text; for one that is not set, the effect of that."""
    now = getattr(state.settings, setting.name)
    return f"none ({setting.null})" if now is None else _shown(setting, now)


def _shown(setting: Setting, value: object) -> str:
    return ("on" if value else "off") if setting.kind == "bool" else setting.shown(value)


def _on_off(rule: str) -> str:
    return rule.replace("true or false", "on or off")  # config.toml has true and false, the chat on and off


def _think(state: ChatState, argument: str) -> UiRequest | None:
    if argument not in ("", "on", "off"):
        state.transcript.add_error(f"There is no /think {argument}: it is on or off.")
        return None
    setting = next(s for s in schema() if s.name == "think")
    return _change(state, setting, argument or ("off" if state.settings.think else "on"))


def settings_list(state: ChatState) -> Listing:
    """Every setting with its value; choosing one puts `/set` into the prompt."""
    rows = []
    for s in schema():
        name = s.slash or s.name
        text = f"{name:<12} {_now(state, s)}"
        flip = _shown(s, not getattr(state.settings, s.name)) if s.kind == "bool" else ""
        rows.append(Row(text, PutPrompt(f"/set {name} {flip}"), (s.help,), s.name))
    return Listing("Settings", tuple(rows), "⏎ change · esc close", "No setting is called that.")


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


# -- figures ---------------------------------------------------------------------------------------------------------


def _memory(state: ChatState, _: str) -> None:
    state.report = Report("memory", tuple(reports.memory_lines(state.status)))


def _cache(state: ChatState, argument: str) -> None:
    wanted = {"": cmd.ListCache(), "ls": cmd.ListCache(), "gc": cmd.CollectCache(), "pin": cmd.PinChat()}
    if argument in wanted:
        state.submit(wanted[argument])
    else:
        state.transcript.add_line(f"There is no /cache {argument}: it is ls, gc or pin.")


_ACTIONS: dict[str, Callable[[ChatState, str], UiRequest | None]] = {
    "new": lambda state, _: state.submit(cmd.NewChat()),
    "resume": lambda state, argument: state.resume(argument),
    "rename": _rename,
    "delete": _delete,
    "export": _export,
    "fork": _fork,
    "tree": lambda state, _: state.submit(cmd.ShowTree()),
    "rewind": _rewind,
    "undo": lambda state, _: state.submit(cmd.Rewind()),
    "retry": _retry,
    "edit": _edit,
    "continue": lambda state, _: state.submit(cmd.Continue()),
    "compact": _compact,
    "model": _model,
    "adapter": _adapter,
    "pull": _pull,
    "system": _system,
    "set": _set,
    "think": _think,
    "context": lambda state, _: state.submit(cmd.ShowContext()),
    "stats": lambda state, _: state.submit(cmd.ShowStats()),
    "memory": _memory,
    "cache": _cache,
}
