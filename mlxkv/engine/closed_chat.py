"""ClosedChat: a chat that is closed because its model goes, and what opens it again with the next one. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlxkv.chat.carried import CarriedChat
from mlxkv.engine import chats
from mlxkv.engine.context import EngineContext
from mlxkv.engine.status import session_status
from mlxkv.protocol.events import EngineEvent


@dataclass(frozen=True)
class ClosedChat:
    """A saved chat by its session, one that is not saved by its messages. Neither: an empty chat."""

    session: str | None = None
    unsaved: CarriedChat | None = None

    @classmethod
    def of(cls, context: EngineContext) -> ClosedChat:
        """The chat that is open now."""
        chat = context.chat
        if chat is None or chat.session_id is not None:
            return cls(chat.session_id if chat is not None else None)
        return cls(None, CarriedChat.of(chat) if chat.messages else None)

    def reopen(self, context: EngineContext, *, is_same_model: bool) -> Iterator[EngineEvent]:
        """Open it with the model that is loaded now, and show it."""
        if self.session is not None:
            yield from chats.open_chat(context, self.session, keep=True)
        elif self.unsaved is not None:
            self.continue_unsaved(context, self.unsaved, is_same_model)
            yield from chats.show_chat(context)
            yield session_status(context)
        else:
            yield from chats.new_chat(context, keep=True)

    def continue_unsaved(self, context: EngineContext, unsaved: CarriedChat, is_same_model: bool) -> None:
        """Make the chat `unsaved` the open one; its next prompt prefills it."""
        chat = context.chat = chats.make_chat(context, unsaved.system)
        unsaved.continue_in(chat, is_same_model=is_same_model)
