"""KV on the disk: what lies there, what can go, what is to stay. On the MLX thread, as every use of the store."""

from __future__ import annotations

from collections.abc import Iterator

from mlxkv.engine import status as figures
from mlxkv.engine.context import EngineContext
from mlxkv.errors import PromptError
from mlxkv.protocol.events import CacheCollected, CacheList, ChatPinned, EngineEvent
from mlxkv.store.prompts.folder import PromptFolder


def listed(context: EngineContext) -> Iterator[EngineEvent]:
    named = tuple((cache.name, cache.size) for cache in PromptFolder(context.folders).list())
    with context.store() as store:
        yield CacheList(store.list(), named, store.disk_usage(), context.settings.disk_limit_bytes or 0)


def collected(context: EngineContext) -> Iterator[EngineEvent]:
    freed = PromptFolder(context.folders).collect()
    with context.store() as store:
        freed += store.collect()
        context.disk_bytes = store.disk_usage()
    yield CacheCollected(freed, context.disk_bytes)
    yield figures.status(context)


def pinned(context: EngineContext) -> Iterator[EngineEvent]:
    session = context.current_chat.session_id
    if session is None:
        raise PromptError("This chat is not saved, so there are no rows to keep; write something first.")
    with context.store() as store:
        was = any(chat.id == session and chat.pinned for chat in store.list())
        store.sessions.pin(session, not was)
    yield ChatPinned(session, not was)
