"""Handlers for models: load. A missing model is downloaded while the chat continues. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlxkv.device import current_device
from mlxkv.distributed.group import wish_given
from mlxkv.engine.closed_chat import ClosedChat
from mlxkv.engine.context import EngineContext
from mlxkv.errors import MlxkvError
from mlxkv.memory.preflight import check_fit
from mlxkv.models.groups import full_name
from mlxkv.models.loading.adapter import local_adapter
from mlxkv.protocol.commands import LoadModel
from mlxkv.protocol.events import (
    EngineEvent,
    Failed,
    FailureKind,
    ModelLoading,
    ModelMissing,
    Notice,
)


def load_model(context: EngineContext, command: LoadModel) -> Iterator[EngineEvent]:
    """Load a model; the open chat continues with it. If that fails or is stopped, load the old model again.

    `ModelReady` comes last: a chat opened before it belongs to this command.
    """
    name = command.name if context.load is not None else full_name(command.name, context.settings.model_dirs)
    if command.anyway:
        context.oversized.add(name)
    anyway = name in context.oversized or wish_given() is not None  # each machine checks its own part
    if context.load is None:
        if command.adapter is not None:
            local_adapter(command.adapter)  # its errors come before the old model is unloaded
        missing = _must_be_downloaded(name)
        if missing and command.ask:
            yield ModelMissing(name, _size(name))
            return
        config = context.cache_config()
        if command.kv_bits is not None:
            config = replace(config, bits=command.kv_bits)
        draft = context.settings.draft_model if context.settings.draft else None
        size = _size(name) if missing else 0
        if not anyway and (too_large := check_fit(name, config, size=size, adapter=command.adapter, draft=draft)):
            yield too_large
            return
        if missing:
            device = current_device()
            context.downloads.start(name, replace(device, memory_limit=1 << 62) if anyway else device, then_load=True)
            return
    context.begin_load()
    yield ModelLoading(name)
    before = (context.model.name, context.model.adapter) if context.model else None
    closed = ClosedChat.of(context) if context.unloaded is None else context.unloaded.chat
    sources = context.sources
    if command.kv_bits is not None:
        context.sources = sources.with_option({"kv_bits": command.kv_bits})
    if before is not None:
        context.unload_model()
    try:
        context.model = context.load_model(name, command.adapter)
    except MlxkvError as error:
        was_stopped, context.sources = context.cancel_load.is_set(), sources
        if before is not None:
            context.begin_load()  # the same key must not stop this load too
            context.model = context.load_model(*before)
            yield from closed.reopen(context, is_same_model=True)
        if not was_stopped:
            raise
        yield Failed(str(error), FailureKind.STOPPED)
        return
    model, had_model = context.model, before is not None or context.unloaded is not None
    context.unloaded = None
    if had_model:
        yield from closed.reopen(context, is_same_model=before == (model.name, model.adapter))
        if (before is None or before[0] != model.name) and command.then is None:
            yield from _prefills_again(context, name)
    yield context.model_ready(name)


def _prefills_again(context: EngineContext, name: str) -> Iterator[EngineEvent]:
    chat = context.chat
    if chat is not None and chat.messages and (left := len(chat.log) - chat.cache.offset) > 1:
        name = name.rstrip("/").rsplit("/", 1)[-1]
        yield Notice(f"{name} is loaded; your next message prefills {left:,} tokens of this chat with it.")


def _must_be_downloaded(name: str) -> bool:
    """Whether `name` is a repository that is missing or incomplete on this disk.

    Raises:
        ModelNotFoundError: there is no such model; raised here, before the old one is unloaded.
    """
    from mlxkv.models import Hub, resolve
    from mlxkv.models.hub.hub import find_local

    source = resolve(name)
    return source.repo is not None and find_local(Hub(), source.repo, source.revision) is None


def _size(name: str) -> int:
    """Bytes to download, 0 if unknown."""
    from mlxkv.models import catalogue

    return next((entry.size_bytes for entry in catalogue() if entry.id == name), 0)
