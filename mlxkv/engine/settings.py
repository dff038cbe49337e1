"""Handlers for settings and the system prompt of the session. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator

from mlxkv.config import Settings
from mlxkv.engine.chats import new_chat, open_chat
from mlxkv.engine.context import EngineContext
from mlxkv.errors import MlxkvError
from mlxkv.protocol.events import EngineEvent, SettingsApplied

_CACHE_SETTINGS = ("window", "sinks", "kv_bits")


def change_settings(context: EngineContext, settings: Settings) -> Iterator[EngineEvent]:
    """Apply sampling from the next reply on; settings of the cache need a new one, and the chat is prefilled again."""
    before, context.settings = context.settings, settings
    if before.system != settings.system:
        context.system = settings.system
    chat, notice = context.chat, ""
    if before.think != settings.think and chat is not None:
        chat.thinking = settings.think
        notice = chat.think_notice
    if context.model is None or all(getattr(before, name) == getattr(settings, name) for name in _CACHE_SETTINGS):
        yield SettingsApplied(notice)
        return
    if chat is None or not chat.messages:
        yield from new_chat(context)
        notice = "The KV cache has its new size."
    elif chat.session_id is not None and not chat.read_only:
        try:
            yield from open_chat(context, chat.session_id)
        except MlxkvError:
            context.settings = before
            yield from open_chat(context, chat.session_id)
            raise
        notice = "The KV cache has its new size; your next message prefills this chat again."
    else:
        yield SettingsApplied("New chats use the new size; this chat keeps its KV cache.")
        return
    chat = context.chat
    if chat is not None and settings.window != before.window and (warning := chat.cache.plan.beyond_training):
        notice += f" {warning}"
    yield SettingsApplied(notice)


def set_system(context: EngineContext, text: str | None) -> Iterator[EngineEvent]:
    context.system = text
    change = "The system prompt is removed" if text is None else "The system prompt is set"
    if context.chat is None or not context.chat.messages:
        yield from new_chat(context)
        yield SettingsApplied(f"{change}.")
    else:
        yield SettingsApplied(f"{change} for new chats: /new starts one. This chat keeps its own.")
