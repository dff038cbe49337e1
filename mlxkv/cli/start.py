"""Starts a chat in the window or in line mode: chooses the model and the chat.

Imports mlx, mlx_lm and textual only when it starts one.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.cli.chats import open_store
from mlxkv.cli.input_files import as_file, piped_lines
from mlxkv.cli.tables import cut
from mlxkv.config import Folders, Settings, private_folder
from mlxkv.distributed.group import check_wish, rank_given, set_wish
from mlxkv.errors import ConfigError, DiskError, MlxkvError, ModelError, ModelNotFoundError, SessionNotFoundError
from mlxkv.settings.setting_sources import ChatSettings, SettingSources
from mlxkv.system.regular_file import check_regular
from mlxkv.system.supervisor import show_typing
from mlxkv.system.terminal import redirect_stderr
from mlxkv.text.clean import clean

if TYPE_CHECKING:
    from mlxkv.protocol.commands import Command
    from mlxkv.protocol.events import ModelCard
    from mlxkv.settings.presets import Preset


def begin_group(hosts: Path | None, wish: str | None) -> None:
    """Become one of several processes that share a model: start the others of a hostfile; or, started by `mlx.launch`
    with another rank than 0, follow rank 0 and end.

    Raises:
        ConfigError: the hostfile is invalid, or a split is asked for by a process that is alone.
    """
    if wish is not None:
        set_wish(check_wish("--distributed", wish))
        if hosts is None and rank_given() is None:
            raise ConfigError("--distributed splits a model between machines; name them with --hosts FILE.")
    if hosts is None and not rank_given():
        return
    from mlxkv.distributed.start import follow_if_launched, start_hosts

    if hosts is None:
        follow_if_launched()
    elif rank_given() is not None:
        raise ConfigError("--hosts starts the other machines, and `mlx.launch` has done that; leave out one of them.")
    else:
        with as_file(hosts) as file:
            start_hosts(file)


def first_commands(
    folders: Folders,
    settings: Settings,
    session_id: str | None,
    fork: bool,
    picks: bool,
    anyway: bool = False,
    preset: str | None = None,
) -> list[Command]:
    """First commands for the engine: load the model, open the chat, which takes `preset` if it is resumed."""
    from mlxkv.models import BUILT_IN, resolve
    from mlxkv.protocol.commands import ListChats, LoadModel, NewChat, OpenChat, TakePreset

    name, adapter = chosen_model(folders, settings, session_id)
    if session_id is not None and fork:
        with open_store(folders, enforce=False) as store:
            session_id = session_id if store.read_only else store.fork(session_id)
    if name is None:
        with suppress(ModelNotFoundError):
            name = resolve(BUILT_IN[0]).name
    # A model that only a chat or the last run names may be gone: it is not downloaded unasked.
    load: list[Command] = [LoadModel(name, settings.model is None, anyway, adapter=adapter)] if name else []
    take = [TakePreset(preset)] if session_id and preset else []
    return [*load, OpenChat(session_id) if session_id else NewChat(), *take, *([ListChats()] if picks else [])]


def sources_of(
    folders: Folders, sources: SettingSources, session_id: str | None, preset: Preset | None
) -> tuple[SettingSources, str]:
    """The sources of settings for a chat that is resumed (None: a new one) and may take a preset; and a notice.

    A resumed chat has its own model, whatever config.toml says.
    """
    own, notice = ChatSettings(), ""
    if session_id is not None:
        with open_store(folders, enforce=False) as store:
            own, notice = ChatSettings.read(*store.sessions.settings_of(session_id))
            if not store.sessions.model_of(session_id).is_foreign:
                sources = sources.without_config(("model", "adapter"))
    if preset is not None:
        own = own.with_preset(preset.name, preset.values)
    return sources.for_chat(own), notice


def open_window(
    folders: Folders, settings: SettingSources, start: list[Command], question: str | None, save: bool
) -> int:
    from mlxkv.engine import Engine
    from mlxkv.system.supervisor_link import watch_parent
    from mlxkv.tui import run

    supervisor = watch_parent()
    log = _log_to_file(folders)
    sys.__stderr__ = sys.__stdout__  # type: ignore[misc]  # textual draws on stderr, even if that is redirected
    engine = Engine(folders, settings, save=save)
    with redirect_stderr(log):
        code = run(
            engine, _suggestions(), settings, folders, start, question, supervisor,
            lambda session_id: _print_how_to_continue(folders, session_id),
        )  # fmt: skip
    if supervisor is not None:
        supervisor.report_done()
    return code


def _print_how_to_continue(folders: Folders, session_id: str) -> None:
    """One line on the normal screen, after the window has closed."""
    from mlxkv.store.continuing import continue_command

    with suppress(MlxkvError), open_store(folders, enforce=False) as store:
        title = " ".join(clean(store.sessions.title_of(session_id)).split())
        print(f"“{cut(title, 60)}” is saved; {continue_command(store.sessions, session_id)} continues it.")


def talk_in_lines(
    folders: Folders, settings: SettingSources, start: list[Command], question: str | None, save: bool
) -> int:
    from mlxkv.engine import Dispatcher
    from mlxkv.tui.line_mode import PlainChat

    show_typing()
    read = input if sys.stdin.isatty() else piped_lines(sys.stdin, sys.stdout)
    with suppress(ImportError):
        import readline  # noqa: F401  # `input` then edits lines
    _log_to_file(folders)
    chat = PlainChat(folders, settings, lambda emit: Dispatcher(folders, settings, emit, save=save), sys.stdout, read)
    return chat.run(start, question)


def _log_to_file(folders: Folders) -> Path:
    """Log to a file, since stderr would overwrite the window; to /dev/null if no file can be created."""
    try:
        path = private_folder(folders.state) / "mlxkv.log"
        check_regular(path)
        logging.basicConfig(filename=path, level=logging.WARNING)
    except (ConfigError, OSError):
        logging.basicConfig(handlers=[logging.NullHandler()])
        return Path(os.devnull)
    return path


def _suggestions() -> tuple[ModelCard, ...]:
    """The models suggested for this machine."""
    from mlxkv.device import current_device
    from mlxkv.models import suggestions
    from mlxkv.protocol.events import ModelCard

    found = suggestions(current_device().memory_limit)
    return tuple(
        ModelCard(s.entry.id, s.entry.size_bytes, s.entry.licence, s.entry.note, reason=s.reason) for s in found
    )


def chosen_model(folders: Folders, settings: Settings, session_id: str | None) -> tuple[str | None, str | None]:
    """The model and its LoRA adapter: of the options and settings, else the chat's, else the last ones used; None if
    there are none.

    Raises:
        ModelNotFoundError: the chat's adapter is not on this machine.
    """
    given = settings.adapter_name
    if settings.model is not None or not os.path.exists(folders.data / "store.json"):
        return settings.model, given
    try:
        with open_store(folders, enforce=False) as store:
            model = store.sessions.model_of(session_id) if session_id else None
            found = model if model and not model.is_foreign else store.sessions.last_model()
            if found is None:
                return None, given
    except DiskError:
        if session_id is not None:
            raise
        return None, given  # a chat needs no disk
    if settings.adapter != "auto" or found.adapter is None:
        return found.name, given
    return found.name, _remembered(found.adapter, is_chosen=session_id is not None)


def _remembered(adapter: str, *, is_chosen: bool) -> str | None:
    """The adapter of a chat, which is not downloaded unasked; None if it is gone and the chat was only the last one."""
    from mlxkv.models.loading.adapter import local_adapter

    try:
        if local_adapter(adapter) is not None:
            return adapter
        why = f"The adapter {adapter} of this chat is not on this machine; --adapter {adapter} downloads it"
    except ModelError as error:
        why = str(error).removesuffix(".")
    if is_chosen:
        raise ModelNotFoundError(f"{why}; --adapter none continues without it.")
    return None


def model_name(folders: Folders, settings: Settings, session_id: str | None) -> str | None:
    """The model of `chosen_model`."""
    return chosen_model(folders, settings, session_id)[0]


def session_id_of(folders: Folders, session: str | None, latest: bool, runs: bool = True) -> str | None:
    """Session id for -r SESSION or -c (`latest`); None without them. Errors come before a model is loaded.

    `runs`: -c may take a run of print mode.

    Raises:
        SessionNotFoundError: there is no such chat, or none at all. ConfigError: both options are given.
    """
    if latest and session is not None:
        raise ConfigError("-c continues the last chat and -r another one; leave out one of them.")
    if not latest and session is None:
        if (folders.data / "store.json").exists():
            with suppress(MlxkvError), open_store(folders):
                pass  # every start applies the disk limit, which may be lower now
        return None
    with open_store(folders, enforce=False) as store:
        found = store.sessions.latest(runs) if session is None else store.sessions.find(session)
        store.enforce_limit(spare=[found] if found else ())  # never evicts the chosen chat
    if found is None:
        raise SessionNotFoundError("There is no chat to continue yet; leave out -c and start one.")
    return found


def named_cache(folders: Folders, name: str | None, system: str | None, continues: bool) -> Path | None:
    """File of the prompt cache that --cache names.

    Raises:
        ConfigError: an option conflicts with a prompt cache. StoreError: there is none of this name.
    """
    if name is None:
        return None
    if system is not None or continues:
        other = "-s" if system is not None else "-c or -r"
        raise ConfigError(f"--cache {name} already contains the beginning of the chat; leave out {other}.")
    from mlxkv.store.prompts.folder import PromptFolder

    return PromptFolder(folders).find(name)
