"""Handlers for settings of the open chat, and of all chats. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from mlxkv.engine.closed_chat import ClosedChat
from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers.chats import new_chat, show_chat, with_own_system
from mlxkv.engine.handlers.status import session_status
from mlxkv.errors import MlxkvError
from mlxkv.protocol.commands import ChangeSettings
from mlxkv.protocol.events import EngineEvent, SettingsApplied, SettingsInForce
from mlxkv.settings.setting_sources import SettingSources, Source

if TYPE_CHECKING:
    from mlxkv.chat.chat import Chat

_CACHE_SETTINGS = ("window", "sinks", "kv_bits")


def change_settings(context: EngineContext, command: ChangeSettings) -> Iterator[EngineEvent]:
    """Change settings of the chat: sampling from the next reply on, the cache and the system prompt now."""
    sources = with_own_system(context)
    sources = sources.with_default(command.values) if command.for_all else sources.with_chat(command.values)
    notice = yield from use(context, sources.without_chat(command.dropped))
    yield SettingsApplied(notice)


def use(context: EngineContext, sources: SettingSources) -> Iterator[EngineEvent]:
    """Use other settings for the open chat; returns a sentence on what that costs, or "". After an error the chat is
    as it was."""
    before, old, chat = context.sources, context.settings, context.chat
    context.sources = sources
    new = sources.settings
    if chat is None:
        return ""
    had, system = chat.own_settings, chat.system
    needs_cache = any(getattr(old, name) != getattr(new, name) for name in _CACHE_SETTINGS)
    is_chats = sources.source("system") in (Source.CHAT, Source.PRESET)  # a default is for new chats
    is_read_only, closed = bool(chat.read_only), None
    try:
        if not chat.messages:
            if needs_cache or (new.system or None) != system:
                yield from new_chat(context, keep=True)
                return f"The KV cache has its new size.{_beyond(context)}" if needs_cache else ""
            chat.own_settings = sources.chat
            chat.thinking = new.think
            yield SettingsInForce(sources)
            return chat.think_notice if old.think != new.think else ""
        notices = []
        if old.think != new.think:
            chat.thinking = new.think
            notices.append(chat.think_notice)
        is_other_system = is_chats and (new.system or None) != system
        if is_other_system:
            chat.system = new.system
        if not is_read_only:
            chat.own_settings = sources.chat  # of the fork that another system prompt makes
        if needs_cache and is_read_only:
            notices.append("New chats use the new size; this chat keeps its KV cache.")
            needs_cache = False
        if needs_cache:
            closed = ClosedChat.of(context)
            context.close_chat()
            yield from closed.reopen(context, is_same_model=True)
        elif is_other_system:
            yield from show_chat(context)
            yield session_status(context)
    except MlxkvError:
        context.sources = before
        if context.chat is None:
            yield from (closed or ClosedChat()).reopen(context, is_same_model=True)
        with suppress(MlxkvError):
            context.current_chat.own_settings = had
        context.sources = with_own_system(context)
        yield SettingsInForce(context.sources)
        raise
    yield SettingsInForce(sources)
    if needs_cache:
        chat = context.current_chat
        left = _reread(chat) if is_other_system else len(chat.log) - chat.cache.offset
        began = "The KV cache has the size that this chat began with"
        size = "The KV cache has its new size" if new.bounds_cache else began
        notices.append(f"{size}{_again(left)}{_beyond(context)}")
    elif is_other_system:
        notices.append(f"The system prompt comes first{_again(_reread(chat))}")
    return " ".join(filter(None, notices))


def _reread(chat: Chat) -> int:
    """The tokens of the chat that its cache lacks, the few of a template around the next message included."""
    with suppress(MlxkvError):
        return chat.num_to_read(" ")
    return len(chat.log)


def _again(tokens: int) -> str:
    """How much of the chat the next message prefills again, as the end of a sentence."""
    if tokens <= 1:  # a stopped reply's last token is in no cache
        return "; nothing of this chat is prefilled again."
    return f"; your next message prefills {tokens:,} tokens of this chat again."


def _beyond(context: EngineContext) -> str:
    """A sentence if the window is larger than the model was trained for."""
    warning = context.current_chat.cache.plan.beyond_training if context.settings.window else ""
    return f" {warning}" if warning else ""
