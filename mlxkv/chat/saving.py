"""ChatSaving: whether a chat is saved, when its session begins, and what the session records of it.

The chat hands over what it holds at that moment; its Conversation writes the messages and the rows. On the MLX thread.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mlxkv.cache.mlx_lm import ImportedCache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.conversation import Conversation
from mlxkv.chat.history import History
from mlxkv.errors import CacheError, DiskError, ReadOnlyError
from mlxkv.events import Notice
from mlxkv.inference.sampling import SamplingParams
from mlxkv.settings.setting_sources import ChatSettings
from mlxkv.store.kv.state_saves import Occasion


@dataclass(frozen=True)
class Saved:
    """What a session records of a chat, as the chat holds it now."""

    history: History
    cache: PromptCache
    params: SamplingParams
    thinking: bool | None


@dataclass
class ChatSaving:
    """The saving of one chat.

    Attributes:
        autosave: a new chat is saved with its first message.
        own: the settings of this chat alone; see `Chat.own_settings`.
    """

    autosave: bool
    own: ChatSettings = field(default_factory=ChatSettings)
    _system_fork: tuple[str, int, str | None] | None = None  # the last one made: its id, its turns, its parent

    def save(self, chat: Saved, title: str | None) -> str:
        """Begin the session, if there is none, and save the rows; the session's id."""
        if isinstance(chat.cache, ImportedCache):
            raise CacheError("A chat from an imported cache cannot be saved: the ids of its first tokens are unknown.")
        conversation = chat.history.conversation
        if conversation.session_id is None:
            self.begin(chat, title)
        if chat.cache.log:
            conversation.save_rows(chat.cache, wait=True)
        return str(conversation.session_id)

    def save_new(self, chat: Saved, title: str) -> Notice | None:
        """Save a new chat if `autosave` is on; a notice if it cannot be saved at all."""
        conversation = chat.history.conversation
        if not self.autosave or conversation.session_id is not None:
            return None
        try:
            self.save(chat, title)
        except ReadOnlyError as error:
            self.autosave = False
            return Notice(str(error))
        except DiskError as error:
            conversation.unsaved.postpone(error)
        return None

    def begin(
        self, chat: Saved, title: str | None, parent: str | None = None, pinned: int = 0, *, is_version: bool = False
    ) -> None:
        """Begin a session of the chat's messages; see `Conversation.begin`."""
        history, cache, sampling = chat.history, asdict(chat.cache.plan.resolved), asdict(chat.params)
        params: dict[str, Any] = {"cache": cache, "sampling": sampling, "think": chat.thinking}
        params |= {"pinned": pinned} if pinned else {}
        params |= {"tools": [dict(tool.schema) for tool in history.prompts.tools]} if history.prompts.tools else {}
        system, began = history.prefix.system, history.prefix.began
        history.conversation.begin(title, system, params, parent, began, self.own, is_version)

    def fork_from(self, old: Conversation, chat: Saved) -> None:
        """Save the chat, whose system prompt has changed, as a fork of its session; one that got no turn since the last
        change is dropped, and so is an empty session."""
        left, num_turns, last = str(old.session_id), len(old.turns), self._system_fork
        is_unused = not num_turns or (last is not None and last[:2] == (left, num_turns))
        parent = (last[2] if last else None) if is_unused else left
        conversation = chat.history.conversation
        self.begin(chat, old.title or None, parent, is_version=True)
        old.close()
        if is_unused:
            conversation.unsaved.delete(left)
        self._system_fork = str(conversation.session_id), num_turns, parent

    def save_states(self, chat: Saved, occasion: Occasion) -> str | None:
        """Save recurrent states; a notice if that failed. Rows are saved after every turn."""
        cache, conversation = chat.cache, chat.history.conversation
        if not cache.checkpoints.is_needed or not conversation.is_open_here:
            return None
        return conversation.save_rows(cache, occasion=occasion, resume_at=chat.history.resume_at)[1]
