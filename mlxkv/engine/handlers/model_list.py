"""The handler that lists models: those on this machine by where they are, then those to download. MLX thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from mlxkv.device import current_device
from mlxkv.engine.context import EngineContext
from mlxkv.errors import MlxkvError
from mlxkv.models import BUILT_IN, LocalModel, Suggestion, ranked
from mlxkv.models.catalogue import HEADROOM
from mlxkv.models.groups import INCOMPLETE, ModelGroup, model_groups
from mlxkv.protocol.events import EngineEvent, ModelCard, ModelList

RECENT_CHATS = 200  # searched for the models they were had with


def list_models(context: EngineContext, fitting: bool = False) -> Iterator[EngineEvent]:
    """List models: the groups of `mlxkv.models.groups`, then the catalogue, suggestions first.

    `fitting`: only those that fit in memory.
    """
    limit = current_device().memory_limit
    known = {suggestion.entry.id: suggestion for suggestion in ranked(limit)}
    current = context.model.name if context.model is not None else None
    groups = model_groups(_used(context), context.settings.model_dirs, current=current)
    cards = [_card(model, group, known, limit, current) for group in groups for model in group.models]
    here = {card.id for card in cards}
    for e, reason in ((s.entry, s.reason) for s in known.values() if s.entry.id not in here):
        cards.append(ModelCard(e.id, e.size_bytes, e.licence, e.note, e.fits(limit), reason=reason))
    notes = tuple(_heading(group) for group in groups if not group.models)
    yield ModelList(tuple(card for card in cards if card.fits or not fitting), fitting, notes)


def _used(context: EngineContext) -> list[str]:
    """The models of the latest chats."""
    with suppress(MlxkvError), context.store() as store:  # unreadable chats do not hide models
        return [chat.model for chat in store.list()[:RECENT_CHATS]]
    return []


def _card(
    model: LocalModel, group: ModelGroup, known: dict[str, Suggestion], limit: int, current: str | None
) -> ModelCard:
    entry = known[model.id].entry if model.id in known else None
    return ModelCard(
        model.id,
        model.size_bytes,
        "MIT" if model.id in BUILT_IN else entry.licence if entry else "",
        model.problem,
        model.size_bytes <= limit * HEADROOM if entry is None else entry.fits(limit),
        is_local=group.name != INCOMPLETE,
        is_folder=os.path.isabs(model.id),
        is_current=model.id == current,
        quantization=model.quantization,
        group=_heading(group),
        label="" if group.path is None else str(model.path.relative_to(group.path.parent)).partition("/")[2],
    )


def _heading(group: ModelGroup) -> str:
    return f"{group.name} · {group.note}" if group.note else group.name
