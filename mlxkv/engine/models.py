"""Handlers for models: load, list. A missing model is downloaded while the chat continues. MLX thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlxkv.device import current_device
from mlxkv.engine import chats
from mlxkv.engine.context import EngineContext
from mlxkv.errors import MlxkvError
from mlxkv.memory.preflight import check_fit
from mlxkv.models.adapter import local_adapter
from mlxkv.protocol.commands import LoadModel
from mlxkv.protocol.events import (
    EngineEvent,
    Failed,
    FailureKind,
    ModelCard,
    ModelList,
    ModelLoading,
    ModelMissing,
    ModelReady,
)

RECENT_CHATS, MOST_FOLDERS = 200, 8  # chats searched for folders of models; folders listed, the latest first


def load_model(context: EngineContext, command: LoadModel) -> Iterator[EngineEvent]:
    """Load a model; the open chat continues with it. If that fails or is stopped, load the old model again.

    `ModelReady` comes last: a chat opened before it belongs to this command.
    """
    name = command.name
    if command.anyway:
        context.oversized.add(name)
    anyway = name in context.oversized
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
    session = context.chat.session_id if context.chat else None
    settings = context.settings
    if command.kv_bits is not None:
        context.settings = replace(settings, kv_bits=command.kv_bits)
    if before is not None:
        context.unload_model()
    try:
        context.model = context.load_model(name, command.adapter)
    except MlxkvError as error:
        was_stopped, context.settings = context.cancel_load.is_set(), settings
        if before is not None:
            context.begin_load()  # the same key must not stop this load too
            context.model = context.load_model(*before)
            yield from _reopen(context, session)
        if not was_stopped:
            raise
        yield Failed(str(error), FailureKind.STOPPED)
        return
    model = context.model
    if before is not None:
        yield from _reopen(context, session)
    loaded = model.loaded
    yield ModelReady(name, loaded.weight_bytes, loaded.load_s, model.has_chat_template, model.adapter or "")


def _must_be_downloaded(name: str) -> bool:
    """Whether `name` is a repository that is missing or incomplete on this disk.

    Raises:
        ModelNotFoundError: there is no such model; raised here, before the old one is unloaded.
    """
    from mlxkv.models import Hub, resolve
    from mlxkv.models.hub import find_local

    source = resolve(name)
    return source.repo is not None and find_local(Hub(), source.repo, source.revision) is None


def _size(name: str) -> int:
    """Bytes to download, 0 if unknown."""
    from mlxkv.models import catalogue

    return next((entry.size_bytes for entry in catalogue() if entry.id == name), 0)


def _reopen(context: EngineContext, session: str | None) -> Iterator[EngineEvent]:
    """Continue the chat that was open, with the model that is loaded now."""
    yield from chats.open_chat(context, session) if session else chats.new_chat(context)


def list_models(context: EngineContext, fitting: bool = False) -> Iterator[EngineEvent]:
    """List models: built in, folders in use, the hub's cache (last used first), then the catalogue (suggestions first).

    `fitting`: only those that fit in memory.
    """
    from mlxkv.models import BUILT_IN, list_local, ranked, resolve
    from mlxkv.models.catalogue import HEADROOM

    limit = current_device().memory_limit
    known = {suggestion.entry.id: suggestion for suggestion in ranked(limit)}
    cards = []
    for name in BUILT_IN:
        try:
            folder = resolve(name).path
        except MlxkvError:
            continue  # not part of this installation
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder else 0
        cards.append(ModelCard(name, size, "MIT", "built in", True, True))
    broken = []
    for local in list_local(with_broken=True):
        entry = known.pop(local.id).entry if local.id in known else None
        fits = local.size_bytes <= limit * HEADROOM if entry is None else entry.fits(limit)
        card = ModelCard(local.id, local.size_bytes, entry.licence if entry else "", local.problem, fits, True)
        (broken if local.problem else cards).append(replace(card, is_local=not local.problem))
    current = context.model.name if context.model is not None else ""
    cards[len(BUILT_IN) : len(BUILT_IN)] = _others(context, {card.id for card in cards}, limit * HEADROOM)
    cards += broken
    for suggestion in known.values():
        e = suggestion.entry
        cards.append(ModelCard(e.id, e.size_bytes, e.licence, e.note, e.fits(limit), reason=suggestion.reason))
    cards = [replace(card, is_current=card.id == current) for card in cards]
    yield ModelList(tuple(card for card in cards if card.fits or not fitting), fitting)


def _others(context: EngineContext, known: set[str], most: float) -> Iterator[ModelCard]:
    """The loaded model and the folders of the latest chats that are not in `known`.

    A folder that no longer exists is listed only if it is the loaded one.
    """
    current = [context.model.name] if context.model is not None else []
    names = list(current)
    with suppress(MlxkvError), context.store() as store:  # unreadable chats do not hide models
        names += [chat.model for chat in store.list()[:RECENT_CHATS]]
    found = 0
    for name in dict.fromkeys(names):
        path = Path(name)
        if name in known or found == MOST_FOLDERS or not (name in current or _is_model(path)):
            continue
        found += 1
        is_folder = path.is_absolute()
        size = sum(p.stat().st_size for p in path.glob("*.safetensors")) if is_folder else _size(name)
        note = "the folder is missing" if is_folder and not _is_model(path) else ""
        yield ModelCard(name, size, "", note, size <= most, True, is_folder)


def _is_model(path: Path) -> bool:
    return path.is_absolute() and os.path.isfile(path / "config.json")
