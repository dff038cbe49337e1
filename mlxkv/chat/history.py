"""History: the conversation of a chat and the prompt state that its next prompt continues; adds messages and goes back.

Knows the chat template and no model. The cache is only looked at: the next generation rewinds it. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from mlxkv.cache.plan import CachePlan
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat import clock
from mlxkv.chat.conversation import Conversation, Snapshot, title_of
from mlxkv.chat.prefix import ChatPrefix
from mlxkv.chat.prompt import PromptFormat, PromptState
from mlxkv.chat.replay import Replay
from mlxkv.errors import ConfigError, MessageTooLongError, PromptError
from mlxkv.events import FinishReason, Notice
from mlxkv.inference.generation import check_size
from mlxkv.memory.overflow import overflow_of
from mlxkv.stats import evicted_text
from mlxkv.store import TurnRecord, TurnState
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import common_prefix

_QUIET_GAIN = 64  # tokens that may be prefilled again so that an aside is answered without reasoning


@dataclass(frozen=True)
class HistorySnapshot:
    """A history at one moment."""

    conversation: Snapshot
    prompt_state: PromptState


@dataclass(frozen=True)
class Undo:
    """Where a history returns if nothing comes of a turn. `returned`: see TurnFinished."""

    before: HistorySnapshot
    returned: str


class History:
    """What was said in one chat.

    Args:
        prompts: the chat template, at any time: the history's own prints the time of `prefix`.
    """

    def __init__(self, conversation: Conversation, prefix: ChatPrefix, prompts: PromptFormat) -> None:
        self.conversation, self.prefix, self.prompts = conversation, prefix, prompts.at(prefix.began)
        self.prompt_state = prefix.prompt_state

    def begin_at(self, time: datetime) -> None:
        """Set the time that the template prints."""
        self.prefix, self.prompts = replace(self.prefix, began=time), self.prompts.at(time)

    @property
    def replay(self) -> Replay:
        conversation = self.conversation
        return Replay(self.prompts, self.prefix, conversation.turns, conversation.log, conversation.model)

    def fork(self, num_turns: int) -> History:
        """A second history with the same first turns."""
        conversation = self.conversation
        twin = History(conversation.fork(num_turns), self.prefix, self.prompts)
        is_same = num_turns == len(conversation.turns) and conversation.read_only is None
        twin.prompt_state = self.prompt_state if is_same else twin.replay.prompt_state()
        return twin

    def aside_prompt(self, text: str, think: bool | None, cached: Sequence[int]) -> PromptState:
        """The prompt of a question that is not recorded, for a cache that holds the ids `cached`; without reasoning,
        unless the template would then word earlier messages otherwise."""
        asked = TurnRecord("user", well_formed(text))
        messages = self.replay.messages([*self.conversation.turns, asked])
        usual = self.prompts.prompt(messages, self.prompt_state, think)
        if self.prompts.reasoning is None:
            return usual
        quiet = self.prompts.prompt(messages, self.prompt_state, False)
        is_near = common_prefix(cached, quiet.ids) + _QUIET_GAIN > common_prefix(cached, usual.ids)
        return quiet if is_near else usual

    # -- messages ----------------------------------------------------------------------------------------------------

    def add_message(
        self,
        text: str,
        cache: PromptCache,
        think: bool | None,
        *,
        whole: bool,
        begin_session: Callable[[str], Notice | None],
    ) -> Generator[Notice, None, PromptState]:
        """Add a message of the user, on disk too; the prompt that it ends.

        Args:
            cache: holds the prompt later.
            whole: refuse a message of which the window would evict a part.
            begin_session: called with a title before the message counts; what to tell of it.
        """
        conversation, prompts = self.conversation, self.prompts
        if not conversation.turns:
            if not cache.log and conversation.session_id is None:  # the chat may have been made yesterday
                self.begin_at(clock.now())
                prompts = self.prompts
            yield from (Notice(f"{note[0].upper()}{note[1:]}.") for note in cache.plan.notes)
            yield from map(Notice, filter(None, (cache.plan.beyond_training,)))
        elif conversation.turns[-1].role == "user":  # a crash left it without a reply: keep the roles alternating
            conversation.append(TurnRecord("assistant", "", state=TurnState.STOPPED))
        message = text if conversation.turns else self.prefix.text + text
        messages = self.replay.messages([*conversation.turns, TurnRecord("user", message)])
        prompt = prompts.prompt(messages, self.prompt_state, think)
        check_size(prompt.ids)
        cache.check_length(len(prompt.ids))
        start = common_prefix(conversation.log, prompt.ids)
        if whole:
            self._check_whole(message, cache.plan, len(prompt.ids), start)
        if notice := begin_session(title_of(text)):
            yield notice
        is_new = not conversation.turns or not self.prompt_state.ids
        thought = None if is_new else conversation.turns[-1].params.get("think")
        conversation.append(TurnRecord("user", message, tuple(prompt.ids[start:]), start))
        yield from map(Notice, prompts.notices(messages, is_new))
        if think != thought and (reason := prompts.think_notice(think)):
            yield Notice(reason)
        if notice := conversation.pop_notice():
            yield notice
        return prompt

    def _check_whole(self, message: str, plan: CachePlan, num_tokens: int, num_before: int) -> None:
        """Raises MessageTooLongError: the window would evict a part of `message`, which the prompt ends with."""
        if overflow_of(plan, num_tokens, num_before) is None:
            return
        if self.conversation.turns and not self.prompt_state.ids:  # of another model: this one prefills all turns
            num_before = max(num_before, num_tokens - len(self.prompts.encode_text(message)))
        if overflow := overflow_of(plan, num_tokens, num_before):
            raise MessageTooLongError(evicted_text(overflow, "CacheConfig(window={})".format), overflow)

    def continuable_reply(self, learned: int | None) -> TurnRecord:
        """The last turn, a reply that can be continued. `learned`: the model's learned positions, if it has such.

        Raises:
            PromptError: it is not a reply, or cannot be continued.
        """
        last = self.conversation.turns[-1] if self.conversation.turns else None
        if last is None or last.role != "assistant":
            raise PromptError("There is no reply to continue; write something first.")
        reason, ids = last.stats.get("finish_reason", FinishReason.STOPPED), self.prompt_state.ids
        if reason not in (FinishReason.STOPPED, FinishReason.LENGTH) or not ids:
            why = "is complete" if ids else "was made by another model"
            raise PromptError(f"The last reply {why}, so it cannot be continued; retry it, or write something.")
        if learned is not None and len(self.conversation.log) > learned:
            raise PromptError(
                f"The last reply ends where this model's {learned:,} learned positions are used up, so it cannot be "
                "continued; start a new chat."
            )
        return last

    # -- going back --------------------------------------------------------------------------------------------------

    def snapshot(self) -> HistorySnapshot:
        return HistorySnapshot(self.conversation.snapshot(), self.prompt_state)

    def empty(self) -> HistorySnapshot:
        """The state before the first message."""
        return HistorySnapshot(Snapshot(), self.prefix.prompt_state)

    def return_to(self, before: HistorySnapshot) -> None:
        """Undo every change since `before`. Raises StoreError: it cannot be undone on disk, so nothing is."""
        self.conversation.return_to(before.conversation)
        self.prompt_state = before.prompt_state

    def remove_from(self, turn: int) -> None:
        """Remove message number `turn` and those after it. A saved chat continues in a fork, unless the message is the
        last one and has no reply to keep."""
        conversation = self.conversation
        if turn == len(conversation.turns) - 1 and conversation.read_only is None:
            conversation.return_to(replace(conversation.snapshot(), turns=conversation.turns[:turn]))
        else:
            conversation.branch(turn)
        self.prompt_state = self.replay.prompt_state()

    def is_only_message(self, turn: int) -> bool:
        """Whether message number `turn` is the only one of its session, which has its title from it."""
        conversation = self.conversation
        is_saved_here = conversation.session_id is not None and conversation.read_only is None
        is_only = turn == 0 and len(conversation.turns) == 1
        return is_saved_here and is_only and conversation.title == title_of(self.user_text(0))

    def user_text(self, turn: int) -> str:
        """The text that the user wrote in a message; the first one also has the text of the chat's prompt cache."""
        return self.conversation.turns[turn].text.removeprefix(self.prefix.text if turn == 0 else "")

    def check_user(self, turn: int) -> None:
        """Raises ConfigError: there is no such message, or it is not the user's."""
        mine = [i for i, t in enumerate(self.conversation.turns) if t.role == "user"]
        if turn not in mine:
            raise ConfigError(f"Message {turn!r} is not one of yours; yours are {mine}.")

    def last_user(self) -> int:
        """The number of the user's last message. Raises PromptError: there is none."""
        if (last := self.conversation.last("user")) is None:
            raise PromptError("There is nothing to go back to: this chat has no messages yet.")
        return last

    def question(self, turn: int | None) -> int:
        """The number of the user's message that message number `turn` is, or replies to; None: the last one.

        Raises:
            PromptError: the chat is empty. ConfigError: there is no such message.
        """
        turn = self.last_user() if turn is None else turn
        turns = self.conversation.turns
        if turn - 1 in range(len(turns)) and turns[turn - 1].role == "user":
            turn -= 1  # `turn` is the reply
        self.check_user(turn)
        return turn
