"""ClosedChat: a chat that is closed because its model goes, and what opens it again with the next one. MLX thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlxkv.chat.resuming.carried import CarriedChat
from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers import chats
from mlxkv.engine.handlers.status import session_status
from mlxkv.protocol.events import EngineEvent


@dataclass(frozen=True)
class ClosedChat:
    """A saved chat by its session, one that is not saved by its messages. Neither: an empty chat, with this system
    prompt. `num_messages`: when it was closed."""

    session: str | None = None
    unsaved: CarriedChat | None = None
    system: str | None = None
    num_messages: int = 0

    @classmethod
    def of(cls, context: EngineContext) -> ClosedChat:
        """The chat that is open now."""
        chat = context.chat
        if chat is None:
            return cls()
        unsaved = CarriedChat.of(chat) if chat.session_id is None and chat.num_messages else None
        return cls(chat.session_id, unsaved, chat.system, chat.num_messages)

    def reopen(self, context: EngineContext, *, is_same_model: bool) -> Iterator[EngineEvent]:
        """Open it with the model that is loaded now, and show it."""
        if self.session is not None:
            yield from chats.open_chat(context, self.session, keep=True)
        elif self.unsaved is not None:
            chat = context.chat = chats.make_chat(context, self.system)
            self.unsaved.continue_in(chat, is_same_model=is_same_model)
            yield from chats.show_chat(context)
            yield session_status(context)
        else:
            yield from chats.new_chat(context, self.system, keep=True)
