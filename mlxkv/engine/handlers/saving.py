"""Handler that says where the open chat is saved. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator

from mlxkv.engine.context import EngineContext
from mlxkv.protocol.events import ChatSaved, EngineEvent
from mlxkv.store.continuing import continue_command


def show_saved(context: EngineContext) -> Iterator[EngineEvent]:
    """Write the rows and states that are waiting, and say where the chat is, or what of it is not saved and why."""
    chat, session = context.chat, context.chat.session_id if context.chat else None
    if context.unloaded is not None:
        session = context.unloaded.chat.session
    if session is None:
        yield ChatSaved(problem=_why_nothing(context))
        return
    problem = ""
    with context.store() as store:
        if chat is not None and chat.read_only:
            problem = "This chat is open in another mlxkv, which saves it."
        elif chat is not None and chat.is_behind:
            problem = "The last messages are in memory only, because the disk is full: free some space."
        elif chat is not None:
            chat.checkpoint()
            problem = store.flush(session) or ""
        yield ChatSaved(store.sessions.title_of(session), continue_command(store.sessions, session), problem)


def _why_nothing(context: EngineContext) -> str:
    if not context.save:
        return "This chat is not saved: mlxkv was started with --no-save. /export md chat.md writes it to a file."
    if context.chat is None or not context.chat.num_messages:
        return "There is nothing to save yet; a chat is saved with its first message, and from then on by itself."
    with context.store() as store:
        return f"This chat is not saved: {store.read_only or 'the disk refused it; free some space.'}"
