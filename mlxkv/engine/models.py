"""Loading and listing models. A model that has to be downloaded first is, beside the chat that goes on. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlxkv.commands import LoadModel
from mlxkv.engine import chats
from mlxkv.engine.front import Front
from mlxkv.errors import MlxkvError
from mlxkv.events import EngineEvent, Failed, ModelCard, ModelList, ModelLoading, ModelMissing, ModelReady
from mlxkv.preflight import tight


def load(front: Front, wanted: LoadModel) -> Iterator[EngineEvent]:
    """Load a model; the chat that was in front goes on with it. What fails or is stopped leaves the old model.

    `ModelReady` comes last: what is open before it belongs to this command.
    """
    name = wanted.name
    if wanted.anyway:
        front.forced.add(name)
    anyway = name in front.forced
    if front.loads_itself:
        missing = _must_be_downloaded(name)
        if missing and wanted.ask:
            yield ModelMissing(name, _size(name))
            return
        bounds = front.bounds() if wanted.kv_bits is None else replace(front.bounds(), bits=wanted.kv_bits)
        if not anyway and (found := tight(name, bounds, size=_size(name) if missing else 0)):
            yield found
            return
        if missing:
            from mlxkv.device import current_device

            device = current_device()
            front.downloads.start(name, replace(device, memory_limit=1 << 62) if anyway else device, then_load=True)
            return
    front.begin_load()
    yield ModelLoading(name, "loading")
    before, session = front.model.name if front.model else None, front.chat.session_id if front.chat else None
    settings = front.settings
    if wanted.kv_bits is not None:
        front.settings = replace(settings, kv_bits=wanted.kv_bits)
    if before is not None:
        front.drop_model()
    try:
        front.model = front.make_model(name)
    except MlxkvError as error:
        was_stopped, front.settings = front.load_was_stopped, settings
        if before is not None:
            front.begin_load()  # the way back must not be stopped by the same key
            front.model = front.make_model(before)
            yield from _again(front, session)
        if not was_stopped:
            raise
        yield Failed(str(error), "stopped")
        return
    model = front.model
    if before is not None:
        yield from _again(front, session)
    yield ModelReady(name, model.loaded.weight_bytes, model.loaded.load_s, model.has_chat_template)


def _must_be_downloaded(name: str) -> bool:
    """Whether `name` is a repository that is not whole on this disk.

    Raises:
        ModelNotFoundError: it can be nothing at all; that must not cost the model that is there.
    """
    from mlxkv.models import Hub, resolve
    from mlxkv.models.hub import find_local

    source = resolve(name)
    return source.repo is not None and find_local(Hub(), source.repo, source.revision) is None


def _size(name: str) -> int:
    """Bytes to download, 0 where nobody can say."""
    from mlxkv.models import catalogue

    return next((entry.size_bytes for entry in catalogue() if entry.id == name), 0)


def _again(front: Front, session: str | None) -> Iterator[EngineEvent]:
    """The chat that was in front goes on with the new model."""
    yield from chats.opened(front, session) if session else chats.new(front, None)


def listed(fitting: bool = False) -> Iterator[EngineEvent]:
    """What is here, last used first, then the rest of the catalogue, smallest first; or the `fitting` ones alone."""
    from mlxkv.device import current_device
    from mlxkv.models import BUILT_IN, catalogue, list_local, resolve
    from mlxkv.models.catalogue import HEADROOM

    limit = current_device().memory_limit
    known = {entry.id: entry for entry in catalogue()}
    cards = []
    for name in BUILT_IN:
        try:
            folder = resolve(name).path
        except MlxkvError:
            continue  # not part of this installation
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder else 0
        cards.append(ModelCard(name, size, "MIT", "built in", True, True))
    for local in list_local():
        entry = known.pop(local.id, None)
        fits = local.size_bytes <= limit * HEADROOM
        cards.append(ModelCard(local.id, local.size_bytes, entry.licence if entry else "", "", fits, True))
    cards += [ModelCard(e.id, e.size_bytes, e.licence, e.note, e.fits(limit)) for e in known.values()]
    yield ModelList(tuple(card for card in cards if card.fits or not fitting), fitting)
