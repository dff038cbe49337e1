"""A chat that is not saved, without its model: what another model continues it from, or the same one loaded again.

Plain values, so that the model and its memory can go meanwhile. MLX thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from mlxkv.store.records import TurnRecord

if TYPE_CHECKING:
    from mlxkv.chat.chat import Chat


@dataclass(frozen=True)
class CarriedChat:
    """The messages of a chat. `title`: the one it is listed under once it is saved."""

    title: str
    turns: tuple[TurnRecord, ...]
    think: bool | None
    began: datetime

    @classmethod
    def of(cls, chat: Chat) -> CarriedChat:
        prefix = chat._history.prefix
        return cls(chat.title, chat.turns, chat.thinking, prefix.began)

    def continue_in(self, chat: Chat, *, is_same_model: bool) -> None:
        """Put the messages into `chat`, which is new and has its system prompt; its next prompt prefills them.

        `is_same_model`: replies keep their sampled ids; another model tokenizes their text.
        """
        history = chat._history
        history.begin_at(self.began)
        turns = self.turns if is_same_model else tuple(replace(t, ids=(), start=None) for t in self.turns)
        turns, state = history.retokenize(turns)
        history.conversation = history.conversation.with_turns(turns)
        history.conversation.title = self.title
        history.prompt_state = state
        chat.thinking = self.think
