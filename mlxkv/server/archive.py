"""Archive: the endpoint's last conversations on disk: messages, ids and KV rows, found again after a restart or a kill.

Each is a session of kind `endpoint`, which no list of chats shows. Its rows count towards the disk limit like those of
any chat that is not open. Nothing here fails a request: what cannot be saved is prefilled again. On the MLX thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.errors import MlxkvError, StoreError
from mlxkv.events import ToolCall
from mlxkv.server.conversations import Conversation, after_reply
from mlxkv.server.errors import ApiError
from mlxkv.server.jobs import Call, ChatMessage, Job
from mlxkv.server.rendering import prompts_for, rendered_text
from mlxkv.store.kv.state_saves import Occasion
from mlxkv.store.records import Kind, SessionRecord, TurnRecord
from mlxkv.token_ids import TokenIds, common_prefix

_log = logging.getLogger("mlxkv.server")
_MOST_CUTS = 32  # of a prompt, the last ones, that are saved
_LEAST_RESTORED = 16  # tokens; a prefill of fewer takes no time
_LEAST_BORROWED = 64  # tokens beyond those held, for which other conversations are looked through
_DELETED_TOGETHER = 16  # conversations, since each deletion waits for the writer
_ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True)
class Reply:
    """What is saved of a reply beside its messages.

    Attributes:
        prompt: its prompt.
        text, ids: as displayed, and as sampled.
        is_cut: as of `after_reply`.
    """

    prompt: PromptState
    text: str
    ids: tuple[int, ...]
    is_cut: bool


class Archive:
    """Saves and restores the conversations of one model.

    Args:
        is_on: False saves nothing and restores nothing.
    """

    def __init__(self, runtime: ModelRuntime, is_on: bool) -> None:
        self._runtime = runtime
        self._unused: list[str] = []  # sessions to delete
        self.is_on = is_on
        if is_on:
            try:
                runtime.store.check_writable()
            except MlxkvError as error:
                self._stop(error)

    def _stop(self, error: BaseException) -> None:
        _log.warning("conversations are not saved: %s", error)
        self.is_on = False

    # -- loading -------------------------------------------------------------------------------------------------------

    def load(self, prompts: PromptFormat, most: int) -> list[Conversation]:
        """The saved conversations of this model, the last used one last. Those beyond `most` are deleted."""
        if not self.is_on:
            return []
        sessions, found = self._runtime.store.sessions, list[Conversation]()
        for session_id in sessions.endpoint_ids():
            with suppress(MlxkvError, ApiError, LookupError, TypeError, ValueError):
                if sessions.model_of(session_id).model_id != self._runtime.model_id:
                    continue
                if len(found) == most:
                    self._unused.append(session_id)
                    continue
                if conversation := _loaded(self._runtime.store.load(session_id), prompts):
                    found.append(conversation)
                else:
                    self._unused.append(session_id)  # the process ended before its first reply was saved
        self._delete_unused(1)
        return found[::-1]

    def forget_all(self) -> int:
        """Delete what all runs of the endpoint have saved, with every model; returns the number of conversations."""
        if not self.is_on:
            return 0
        self._unused = list(self._runtime.store.sessions.endpoint_ids())
        count = len(self._unused)
        self._delete_unused(1)
        return count

    def restore(self, cache: PromptCache, ids: Sequence[int], held: int, conversation: Conversation | None) -> None:
        """Load saved rows of the prompt that go beyond the `held` tokens of the cache."""
        if not self.is_on or not cache.can_save:
            return
        store, model = self._runtime.store, self._runtime.row_identity
        with suppress(MlxkvError):
            session_id = conversation.session_id if conversation else None
            if session_id and conversation and common_prefix(conversation.ids, ids) >= held + _LEAST_RESTORED:
                store.restore_kv(session_id, cache, model, ids, held)
            elif len(ids) >= held + _LEAST_BORROWED:
                store.borrow_kv(cache, model, ids, held)

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(
        self, conversation: Conversation, job: Job, reply: Reply, cache: PromptCache, before: Conversation | None
    ) -> None:
        """Save a conversation and its rows. `before`: the one that it continues."""
        if not self.is_on:
            return
        try:
            if (
                before is not None
                and before.session_id is not None
                and len(conversation.messages) > len(before.messages) + 1
            ):
                session_id, first, log = before.session_id, len(before.messages), before.ids
            else:
                session_id, first, log = self._create(conversation), _num_system(conversation.messages), TokenIds()
            self._add_turns(session_id, conversation.messages[first:], job, reply, log)
            conversation.session_id = session_id
            self._save_rows(conversation, cache)
        except (OSError, StoreError) as error:
            conversation.session_id = None
            if before is not None:
                before.session_id = None
            _log.warning("a conversation was not saved: %s", error)
        except MlxkvError as error:
            self._stop(error)

    def _create(self, conversation: Conversation) -> str:
        messages, num_system = conversation.messages, _num_system(conversation.messages)
        system = messages[0].text if num_system else None
        sessions = self._runtime.store.sessions
        return sessions.create(
            "endpoint", self._runtime.identity, system=system, kind=Kind.ENDPOINT, clock=conversation.began.isoformat()
        )

    def _add_turns(
        self, session_id: str, messages: Sequence[ChatMessage], job: Job, reply: Reply, log: TokenIds
    ) -> None:
        """Add messages that end with the reply; the last one before it has the new ids of the prompt."""
        start = common_prefix(log, reply.prompt.ids)
        params = {
            "think": job.think,
            "tools": list(job.tools),
            "cuts": [list(cut) for cut in reply.prompt.cuts[-_MOST_CUTS:]],
            "is_cut": reply.is_cut,
        }
        for i, m in enumerate(messages):
            role = m.role if m.role in _ROLES else "user"
            calls = tuple(ToolCall(c.name, c.arguments, c.id) for c in m.calls)
            more: dict[str, Any] = {"params": {"role": m.role}} if role != m.role else {}
            if i == len(messages) - 2:
                more |= {"ids": tuple(reply.prompt.ids[start:]), "start": start}
            elif i == len(messages) - 1:
                more |= {"ids": reply.ids, "params": params}
            turn = TurnRecord(role, m.text, thinking=m.thinking, tool_calls=calls, tool_call_id=m.call_id, **more)
            self._runtime.store.add_turn(session_id, turn)

    def _save_rows(self, conversation: Conversation, cache: PromptCache, occasion: Occasion = Occasion.TURN) -> None:
        if cache.can_save and conversation.session_id is not None:
            self._runtime.store.save_kv(conversation.session_id, cache, self._runtime.row_identity, None, occasion)

    def save_states(self, conversation: Conversation, cache: PromptCache) -> None:
        """Save the recurrent states of a cache that will hold something else; rows are saved after each reply."""
        if self.is_on and cache.checkpoints.is_needed:
            with suppress(MlxkvError):
                self._save_rows(conversation, cache, Occasion.CLOSING)

    def forget(self, conversations: Iterable[Conversation]) -> None:
        """Delete conversations that nobody continues any more."""
        self._unused += [c.session_id for c in conversations if c.session_id is not None]
        self._delete_unused(_DELETED_TOGETHER)

    def _delete_unused(self, least: int) -> None:
        if not self.is_on or len(self._unused) < least:
            return
        unused, self._unused = self._unused, []
        for session_id in unused:
            with suppress(MlxkvError):
                self._runtime.store.delete(session_id)

    def close(self) -> None:
        """Delete what is left to delete; the model's end waits for what is being written."""
        self._delete_unused(1)


def _num_system(messages: Sequence[ChatMessage]) -> int:
    return int(bool(messages) and messages[0].role == "system")


def _loaded(record: SessionRecord, prompts: PromptFormat) -> Conversation | None:
    """A conversation from its session; None if it has no reply."""
    turns = record.turns
    if not turns or turns[-1].role != "assistant" or not turns[-1].ids:
        return None
    messages = [ChatMessage("system", record.system)] if record.system else []
    messages += [_message(turn) for turn in turns]
    reply, began = turns[-1], clock.from_text(record.clock) or clock.from_seconds(record.created)
    log = TokenIds(record.log)
    ids = log[: len(log) - len(reply.ids)]
    params: Mapping[str, Any] = reply.params
    cuts = tuple((int(chars), int(at)) for chars, at in params.get("cuts", ()))
    job = Job(tuple(messages[:-1]), think=params.get("think"), tools=tuple(params.get("tools", ())))
    at = prompts_for(prompts.at(began), job)

    def state() -> PromptState:
        prompt = PromptState(rendered_text(at, job), ids, cuts)
        return after_reply(at, prompt, reply.text, reply.ids, bool(params.get("is_cut")))

    return Conversation(tuple(messages), log, began, state, record.id)


def _message(turn: TurnRecord) -> ChatMessage:
    calls = tuple(Call(c.name, c.arguments, c.id) for c in turn.tool_calls)
    return ChatMessage(turn.params.get("role", turn.role), turn.text, turn.thinking, calls, turn.tool_call_id)
