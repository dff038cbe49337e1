"""Handlers for chats: open, rewind, fork, list, search, rename, delete, export. MLX thread.

A chat and its storage belong to `mlxkv.chat.chat` and `mlxkv.store`; handlers turn commands into calls and results
into events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.cache.config import CacheConfig
from mlxkv.chat.resuming.own_bounds import fitting
from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers.status import session_status, update_disk_bytes
from mlxkv.errors import ConfigError, PromptError
from mlxkv.events import Notice
from mlxkv.protocol import events as ev
from mlxkv.protocol.export_format import CHAT_FORMATS, one_of
from mlxkv.protocol.status import SaveState
from mlxkv.settings.schema import CACHE_SETTINGS
from mlxkv.settings.setting_sources import ChatSettings, SettingSources

if TYPE_CHECKING:
    from mlxkv.chat.chat import Chat

# -- open ------------------------------------------------------------------------------------------------------------


def new_chat(context: EngineContext, system: str | None = None, *, keep: bool = False) -> Iterator[ev.EngineEvent]:
    """Start a chat. `keep`: with the settings of the one before, which is replaced."""
    if not keep:
        context.sources = context.sources.for_chat(context.first)
    context.close_chat()
    context.set_saved(SaveState.NOTHING if context.save else SaveState.OFF)
    if context.unloaded is not None:
        context.unloaded = context.unloaded.with_new_chat(system)
    if context.model is not None:
        context.chat = make_chat(context, system or context.settings.system)
    yield ev.Versions(())
    yield ev.ChatOpened(None, "")  # the first message will be its title
    yield ev.SettingsInForce(context.sources)
    yield session_status(context)


def make_chat(context: EngineContext, system: str | None) -> Chat:
    """A new chat with the settings of the context."""
    chat = context.ready_model.chat(system, context.cache_config(), autosave=context.save, think=context.settings.think)
    chat.own_settings = context.sources.chat
    return chat


def open_chat(context: EngineContext, session_id: str, *, keep: bool = False) -> Iterator[ev.EngineEvent]:
    """Resume a chat. One that is open in another process is shown read-only, and can be forked. `keep`: it is open
    already, and its settings are those of the context."""
    model = context.ready_model
    if context.chat is None or context.chat.session_id != session_id:
        model.store.sessions.check(session_id)  # reports damage before the current chat is closed
    context.close_chat()
    unusable = ""
    if not keep:
        own, unusable = ChatSettings.read(*model.store.sessions.settings_of(session_id))
        _, why = fitting(CacheConfig.chosen(own.settings), model.make_cache)
        if why:
            own, unusable = own.without_all(CACHE_SETTINGS), f"{unusable} {why}".lstrip()
        context.sources = context.sources.for_chat(own)
    config = context.cache_config() if context.settings.bounds_cache else None
    chat = context.chat = model.reopen(session_id, cache=config, own=False)
    if context.settings.think is not None:
        chat.thinking = context.settings.think
    yield from show_chat(context, is_restored=True)
    context.sources = with_own_system(context)
    yield ev.SettingsInForce(context.sources)
    if unusable:
        yield Notice(unusable)
    if chat.restored and chat.restored.notice and not (keep and chat.restored.is_other):  # the change itself says so
        yield Notice(chat.restored.notice)
    if not context.save:
        chat.detach()
    saved = SaveState.SAVED if chat.session_id else SaveState.OFF
    context.set_saved(SaveState.NOTHING if chat.read_only else saved)
    update_disk_bytes(context)
    yield session_status(context)


def with_own_system(context: EngineContext) -> SettingSources:
    """The sources, with the system prompt that the open chat has as its own once it has messages."""
    chat, sources = context.chat, context.sources
    if chat is None or not chat.messages or (chat.system or None) == (sources.settings.system or None):
        return sources
    return sources.with_chat({"system": chat.system})


def check_chat(context: EngineContext) -> Iterator[ev.EngineEvent]:
    chat = context.chat
    if chat is None or chat.session_id is None or not chat.read_only:
        return
    if not context.ready_model.store.is_open(chat.session_id):
        yield ev.ChatReleased(chat.session_id)


def pause(context: EngineContext) -> Iterator[ev.EngineEvent]:
    if context.chat is not None:
        context.chat.checkpoint()
    return iter(())


def show_chat(
    context: EngineContext, *, prompt: str = "", num_messages: int | None = None, is_restored: bool = False
) -> Iterator[ev.EngineEvent]:
    """Emit the open chat or its first messages, after their versions. `is_restored`: with the restore's figures."""
    chat = context.current_chat
    yield versions(context)
    restored = chat.restored if is_restored else None
    bytes_now = chat.cache.live_nbytes  # as the footer counts, without the rows evicted last, which are read too
    figures = (restored.tokens - restored.evicted, bytes_now, restored.seconds) if restored else (0, 0, 0.0)
    messages = chat.messages[:num_messages]
    left = len(chat.log) - chat.cache.offset if restored else 0
    left = left if left > 1 else 0  # a stopped reply's last token is in no cache
    yield ev.ChatOpened(
        chat.session_id, chat.title, messages, *figures, prompt, chat.read_only or "", left, chat.cache.num_evicted
    )


def versions(context: EngineContext, first: int = 0) -> ev.Versions:
    """Versions of each message from `first` on; to be emitted before the messages themselves."""
    chat, model = context.chat, context.model
    session = chat.session_id if chat else None
    return ev.Versions(model.store.siblings(session, first) if model and session else (), first)


# -- rewind and fork -------------------------------------------------------------------------------------------------


def rewind(context: EngineContext, turn: int | None) -> Iterator[ev.EngineEvent]:
    chat = context.current_chat
    text = chat.undo() if turn is None else chat.rewind(turn)
    if context.save and chat.session_id is None:
        context.set_saved(SaveState.NOTHING)
    yield from show_chat(context, prompt=text)
    yield session_status(context)


def fork(context: EngineContext, turn: int | None) -> Iterator[ev.EngineEvent]:
    """Fork before a message of the user, whose text is returned to the prompt, or after a reply."""
    chat, text = context.current_chat, ""
    if not chat.messages:
        raise PromptError("There is nothing to fork yet; write something first.")
    if turn is not None and turn in range(len(chat.messages)) and chat.messages[turn].role == "user":
        text = chat.messages[turn].text
    forked = chat.fork(turn)
    context.close_chat()
    context.chat = forked
    context.set_saved(SaveState.SAVED if context.save else SaveState.OFF)
    yield from show_chat(context, prompt=text)
    yield session_status(context)


def show_tree(context: EngineContext) -> Iterator[ev.EngineEvent]:
    yield ev.ChatTree(context.current_chat.tree())


# -- all chats -------------------------------------------------------------------------------------------------------


def list_chats(context: EngineContext) -> Iterator[ev.EngineEvent]:
    with context.store() as store:
        yield ev.ChatList(store.list())


def search_chats(context: EngineContext, words: str) -> Iterator[ev.EngineEvent]:
    with context.store() as store:
        hits = store.sessions.search(words)
    yield ev.ChatHits(words, hits)


def rename_chat(context: EngineContext, title: str, session_id: str | None) -> Iterator[ev.EngineEvent]:
    title = " ".join(title.split())
    if not title:
        raise ConfigError("The title is empty; give one, as in /rename Trip to Porto.")
    chat = context.chat
    current = chat.session_id if chat else None
    session_id = session_id or current
    if session_id is None:
        raise PromptError("This chat is not saved yet; write something first.")
    if chat is not None and session_id == current:
        chat.save(title)
    else:
        with context.store() as store:
            store.sessions.rename(session_id, title)
    yield ev.ChatRenamed(session_id, title)


def delete_chat(context: EngineContext, session_id: str | None) -> Iterator[ev.EngineEvent]:
    current = context.chat.session_id if context.chat else None
    session_id = session_id or current
    if session_id is None:
        raise PromptError("This chat is not saved, so there is nothing to delete; /new starts another.")
    with context.store() as store:
        title = next((chat.title for chat in store.list() if chat.id == session_id), "")
        is_current = current is not None and current in store.sessions.chat_ids(session_id)
        if is_current:
            context.close_chat()
        store.delete_chat(session_id)
    yield ev.ChatDeleted(current if is_current and current else session_id, title)
    if is_current:
        yield from new_chat(context)


def export_chat(context: EngineContext, kind: str, path: str, session_id: str | None) -> Iterator[ev.EngineEvent]:
    from mlxkv.store.export.document import to_document
    from mlxkv.store.export.markdown import to_markdown

    if kind not in CHAT_FORMATS:
        raise ConfigError(f"A chat is not exported as {kind!r}; the format must be {one_of(CHAT_FORMATS)}.")
    session_id = session_id or (context.chat.session_id if context.chat else None)
    if session_id is None:
        raise PromptError("This chat is not saved, so there is nothing to export; write something first.")
    with context.store() as store:
        record = store.load(session_id)
        target = Path(path).expanduser() if path else Path(f"{_file_name(record.title)}.{kind}")
        try:
            with target.open("x", encoding="utf-8") as file:  # an existing file is never replaced
                if kind != "mlxkv":
                    document = json.dumps(to_document(record), indent=1) + "\n"
                    file.write(document if kind == "json" else to_markdown(record, joined=True))
            if kind == "mlxkv":
                try:  # it replaces the empty file that reserves the name
                    store.export_chat(session_id, target)
                except BaseException:
                    target.unlink(missing_ok=True)
                    raise
        except FileExistsError as error:
            raise ConfigError(
                f"{target} exists already; give another name, as in /export {kind} other.{kind}."
            ) from error
        except OSError as error:
            raise ConfigError(f"{target} cannot be written ({error.strerror}); choose another folder.") from error
    yield ev.ChatExported(str(target.resolve()))


def _file_name(title: str) -> str:
    """A file name of the title's letters and digits, joined by hyphens."""
    words = "".join(c if c.isalnum() else " " for c in title).split()
    return "-".join(words)[:60] or "chat"
