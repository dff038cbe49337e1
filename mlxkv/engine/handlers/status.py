"""Handlers that report: footer, ring, context usage, totals, and the KV rows on disk. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mlxkv.chat.history import spans
from mlxkv.device import current_device
from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers.unattended import num_held, unattended
from mlxkv.errors import DiskError, MlxkvError, PromptError
from mlxkv.protocol.events import CacheCollected, CacheList, ChatPinned, EngineEvent, TokensCounted
from mlxkv.protocol.status import CacheView, ContextPart, ContextUsage, SessionStats, SessionStatus, StateUsage
from mlxkv.store.prompts.folder import PromptFolder
from mlxkv.store.records import TurnRecord

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache

_HEAD = 80  # characters of a message that identify it
_OPENING = 16  # tokens at most that a template writes before a reply and not into history


def session_status(context: EngineContext, num_messages: int | None = None) -> SessionStatus:
    """`num_messages`: the cache's figures for so many of the chat's, whose others are about to be replaced."""
    import mlx.core as mx

    chat, cache = context.chat, context.chat.cache if context.chat else None
    held = num_held(chat, num_messages) if chat else 0
    geometry = cache.plan.geometry if cache else None
    return SessionStatus(
        kv_bytes=cache.live_nbytes_of(held) if cache else 0,
        cache_tokens=geometry.live(held) if geometry else held,
        cache_window=cache.capacity if cache else 0,
        memory_used=mx.get_active_memory(),
        memory_limit=current_device().memory_limit,
        saved=context.saved,
        cache=cache_view(cache, held) if cache else None,
        weight_bytes=context.model.loaded.weight_bytes if context.model else 0,
        disk_bytes=context.disk_bytes,
        disk_limit=context.settings.disk_limit_bytes or 0,
        session_id=context.chat.session_id if context.chat else None,
        fork=_fork_number(context),
        save_problem=context.save_problem,
        unloaded=context.unloaded is not None,
        unattended=unattended(context),
    )


def _fork_number(context: EngineContext) -> int:
    """The number of the open chat among its family's forks; looked up once per chat."""
    chat = context.chat
    session = chat.session_id if chat else None
    if context.fork_number[0] != session and chat is not None:
        context.fork_number = (session, 0)
        with suppress(MlxkvError):  # the footer then shows no number
            family = sorted(chat.tree(), key=lambda branch: branch.made)
            forks = [branch.session_id for branch in family if branch.parent is not None and not branch.is_version]
            at, versions = session, {branch.session_id: branch.parent for branch in family if branch.is_version}
            while at in versions:
                at = versions.pop(at)
            context.fork_number = (session, forks.index(at) + 1 if at in forks else 0)
    return context.fork_number[1] if session is not None else 0


def update_disk_bytes(context: EngineContext) -> None:
    """Count the KV rows of all chats: once per turn, because it lists every folder."""
    if context.model is not None and context.save:
        with suppress(DiskError):
            context.disk_bytes = context.model.store.disk_usage(quick=True)


def cache_view(cache: PromptCache, offset: int) -> CacheView | None:
    """The ring after its first `offset` tokens; None if the model has caches of its own."""
    geometry = cache.plan.geometry
    if geometry is None:
        return None
    live = geometry.live(offset)
    return CacheView(
        pinned=min(geometry.sinks, offset),
        live=live,
        capacity=geometry.capacity,
        head=min(live, geometry.capacity - 1),
        undo=min(geometry.flushes(offset), geometry.undo) * geometry.block,
        evicted=geometry.flushes(offset) * geometry.block,
        allocated_bytes=cache.nbytes,
        live_bytes=cache.live_nbytes_of(offset),
        bits=cache.plan.config.named_bits,
    )


def context_usage(context: EngineContext) -> ContextUsage:
    """Tokens of each message and how many are attended. The sinks, which hold the system prompt, are pinned.

    The token sampled last does not count: it is fed with the next prompt.
    """
    chat = context.current_chat
    geometry = chat.cache.plan.geometry
    pinned = geometry.sinks if geometry else 0
    offset = min(len(chat.log), num_held(chat))
    size = offset if offset + 1 == len(chat.log) else len(chat.log)
    first_kept = geometry.first_kept(offset, 0) if geometry and geometry.flushes(offset) else 0
    turns, places = chat.turns, spans(chat.turns)
    removed, again = _removed(context, turns, places)

    def part(role: str, text: str, start: int, end: int) -> ContextPart:
        end = max(start, min(end, size))
        lost = max(0, min(end, first_kept) - max(start, pinned))
        waiting = max(0, end - max(start, offset))
        return ContextPart(role, text[:_HEAD], end - start, max(0, end - start - lost - waiting), waiting)

    parts: list[ContextPart] = []
    if turns and (chat.system or chat.has_own_system_prompt):
        end = places[0][1]
        start = min(chat.num_system_tokens, end)
        places[0] = (start, end)
        parts.append(part("system", chat.system or "", 0, start))
    parts += [part(turn.role, turn.text, *place) for turn, place in zip(turns, places, strict=True)]
    return ContextUsage(tuple(parts), chat.cache.capacity, pinned, removed, again, _state_usage(context))


def _state_usage(context: EngineContext) -> StateUsage | None:
    """The recurrent states of the open chat in memory and on disk; None if there are none."""
    cache, session = context.current_chat.cache, context.current_chat.session_id
    checkpoints, rows, states = cache.checkpoints, None, None
    if not (checkpoints.is_needed and cache.log):
        return None
    if session is not None:
        with suppress(DiskError), context.store() as store:
            states = store.state_bytes(session)
            rows = max(store.disk_bytes(session) - states, 0)
    return StateUsage(
        state=checkpoints.state_nbytes,
        checkpoints=checkpoints.nbytes(cache.offset),
        limit=checkpoints.max_nbytes,
        positions=tuple(c.position for c in checkpoints if c.position != cache.offset),  # that one is the state itself
        disk_rows=rows,
        disk_states=states,
    )


def _removed(context: EngineContext, turns: Sequence[TurnRecord], places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """`ContextUsage.removed` and `again`: (0, 0) if the last question follows the reply before it as it was."""
    asked = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), 0)
    if asked == 0 or turns[asked - 1].role != "assistant":
        return 0, 0
    reply, begin, start = turns[asked - 1], places[asked - 1][0], places[asked][0]
    lost = begin + len(reply.ids) - start
    if lost <= 0 or start < begin - _OPENING:  # it begins differently: reasoning was turned on in the system prompt
        return 0, 0
    kept = min(lost, context.ready_model.num_tokens(reply.text) + 1)  # and its end-of-turn token
    stats = turns[asked + 1].stats if asked + 1 < len(turns) else {}
    rewound = stats.get("reuse_stopped_at")  # to an earlier checkpoint, if the model has recurrent layers
    return lost - kept, kept + (0 if rewound is None else max(0, start - rewound))


def count_tokens(context: EngineContext, key: str, text: str) -> Iterator[TokensCounted]:
    """Count tokens; no event after an error, since the count is only a hint."""
    num_tokens = None
    with suppress(Exception):
        num_tokens = context.ready_model.num_tokens(text)
    if num_tokens is not None:
        yield TokensCounted(key, num_tokens)


def session_stats(context: EngineContext) -> SessionStats:
    chat = context.chat
    messages = chat.messages if chat else ()
    stats = chat.stats_of_turns if chat else []
    session = chat.session_id if chat else None
    with context.store() as store:
        chats = sum(chat.kind == "chat" for chat in store.list())
        context.disk_bytes, all_written = store.disk_usage(), store.num_bytes_written()
        mine = store.disk_bytes(session) if session else 0
        written = store.num_bytes_written(session) if session else 0
        named = store.space.named()
    drafted = [s for s in stats if s.decode_steps]  # older turns did not count them
    steps = sum(s.decode_steps for s in drafted) if any(s.drafted_tokens for s in drafted) else 0
    generated, prefill = sum(s.generated_tokens for s in stats), sum(s.prefill_tokens for s in stats)
    return SessionStats(
        num_turns=sum(m.role == "user" for m in messages),
        num_messages=len(messages),
        tokens_per_step=_ratio(sum(s.generated_tokens for s in drafted), steps),
        generated_tokens=generated,
        prefill_tokens=prefill,
        cached_tokens=sum(s.cached_tokens for s in stats),
        cached_evicted_tokens=sum(s.cached_evicted_tokens for s in stats),
        evicted_tokens=stats[-1].evicted_tokens if stats else 0,
        decode_tps=_ratio(generated, sum(_ratio(s.generated_tokens, s.decode_tps) for s in stats)),
        prefill_tps=_ratio(prefill, sum(_ratio(s.prefill_tokens, s.prefill_tps) for s in stats)),
        kv_bytes=chat.cache.live_nbytes_of(num_held(chat)) if chat else 0,
        disk_bytes=mine,
        disk_written_bytes=written,
        num_chats=chats,
        all_disk_bytes=context.disk_bytes,
        named_disk_bytes=named,
        all_written_bytes=all_written,
        disk_limit=context.settings.disk_limit_bytes or 0,
    )


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


# -- KV rows on disk -------------------------------------------------------------------------------------------------


def list_cache(context: EngineContext) -> Iterator[EngineEvent]:
    named = tuple((cache.name, cache.size) for cache in PromptFolder(context.folders).list())
    with context.store() as store:
        used, limit = store.disk_usage(), context.settings.disk_limit_bytes or 0
        yield CacheList(store.list(), named, used, limit, store.state_bytes())


def collect_cache(context: EngineContext) -> Iterator[EngineEvent]:
    freed = PromptFolder(context.folders).collect()
    with context.store() as store:
        freed += store.collect()
        context.disk_bytes = store.disk_usage()
    yield CacheCollected(freed, context.disk_bytes)
    yield session_status(context)


def pin_chat(context: EngineContext) -> Iterator[EngineEvent]:
    session = context.current_chat.session_id
    if session is None:
        raise PromptError("This chat is not saved, so it has no rows to pin; write something first.")
    with context.store() as store:
        was_pinned = any(chat.id == session and chat.pinned for chat in store.list())
        store.sessions.pin(session, not was_pinned)
    yield ChatPinned(session, not was_pinned)
