"""Run slash commands: change the state, send a command to the engine, or return a request for the user interface.

Shared by the window and line mode. `slash.py` has the table of commands, `setting_actions.py` runs those for settings.
UI thread; pure but for `/system @file`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlxkv.errors import ConfigError, ModelNotFoundError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.export_format import CHAT_FORMATS, CHAT_SUFFIXES, export_format, one_of
from mlxkv.text.clean import clean
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands import setting_actions
from mlxkv.tui.state.commands.retry import model_argument, parse_retry
from mlxkv.tui.state.commands.ui_request import UiRequest
from mlxkv.tui.state.labels import number_range
from mlxkv.tui.state.lists import choice_lists
from mlxkv.tui.state.lists.setting_lists import on_off
from mlxkv.tui.state.reports import reports
from mlxkv.tui.state.reports.report import Report


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
            state.transcript.add_error(on_off(str(error)))


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
    "save": lambda state, _: state.submit(cmd.ShowSaved()),
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
    "unload": lambda state, _: state.submit(cmd.Unload()),
    "adapter": _adapter,
    "pull": _pull,
    "system": setting_actions.system,
    "set": setting_actions.set_setting,
    "preset": setting_actions.preset,
    "think": setting_actions.think,
    "context": lambda state, _: state.submit(cmd.ShowContext()),
    "stats": lambda state, _: state.submit(cmd.ShowStats()),
    "memory": _memory,
    "cache": _cache,
}
