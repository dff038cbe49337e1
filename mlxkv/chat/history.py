"""History: the conversation of a chat and the prompt state that its next prompt continues; adds messages and goes back.

After going back or resuming, the prompt state is rebuilt from the turns. Knows the chat template and no model, and only
reads the cache: the next generation rewinds it. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.recurrent.checkpoints import MIN_CHECKPOINTS
from mlxkv.cache.recurrent.spacing import needed
from mlxkv.chat.conversation import Conversation, Snapshot, replayed, title_of
from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.messages import pending_calls, template_messages, without_tools
from mlxkv.chat.prompts.prefix import ChatPrefix
from mlxkv.chat.prompts.prompt import Message, PromptFormat, PromptState
from mlxkv.errors import ConfigError, MessageTooLongError, ModelError, PromptError
from mlxkv.events import FinishReason, Notice
from mlxkv.inference.generation import check_size
from mlxkv.memory.overflow import overflow_of
from mlxkv.stats import evicted_text
from mlxkv.store.records import SessionRecord, TurnRecord, TurnState
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import TokenIds, common_prefix

_QUIET_GAIN = 64  # tokens that may be prefilled again so that an aside is answered without reasoning
_MIN_PREFIX = 64  # tokens; a shorter prefix is prefilled again in no time
_MAX_TRIED = 3  # replies that a cut may follow, the newest first


@dataclass(frozen=True)
class HistorySnapshot:
    """A history to return to, for example if a turn is stopped before its reply. `returned`: see TurnFinished."""

    conversation: Snapshot
    prompt_state: PromptState
    returned: str = ""


class History:
    """The conversation of one chat, and its prompt state.

    Args:
        prompts: the chat template; the history's copy prints the time at which `prefix` began.
    """

    def __init__(self, conversation: Conversation, prefix: ChatPrefix, prompts: PromptFormat) -> None:
        self.conversation, self.prefix, self.prompts = conversation, prefix, prompts.at(prefix.began)
        self.prompt_state = prefix.prompt_state
        self._num_system: int | None = None

    def begin_at(self, time: datetime) -> None:
        """Set the time that the template prints."""
        self._num_system = None
        self.prefix, self.prompts = replace(self.prefix, began=time), self.prompts.at(time)

    def load(self, record: SessionRecord) -> None:
        """Load a stored session. If its ids are another model's, the next prompt is tokenized from the text."""
        was_this_models = self.conversation.resume(record)
        self.prompt_state = self._replayed_state() if was_this_models else PromptState()

    def fork(self, num_turns: int) -> History:
        """A new history with the same first turns."""
        conversation = self.conversation
        twin = History(conversation.fork(num_turns), self.prefix, self.prompts)
        is_same = num_turns == len(conversation.turns) and conversation.read_only is None
        twin.prompt_state = self.prompt_state if is_same else twin._replayed_state()
        return twin

    def aside_prompt(self, text: str, think: bool | None, cached: Sequence[int]) -> PromptState:
        """The prompt of a question that is not recorded, for a cache that holds the ids `cached`; without reasoning,
        unless the template would then render earlier messages differently."""
        asked = TurnRecord("user", well_formed(text))
        messages = self.messages([*self.conversation.turns, asked])
        usual = self.prompts.prompt(messages, self.prompt_state, think)
        if self.prompts.reasoning is None:
            return usual
        quiet = self.prompts.prompt(messages, self.prompt_state, False)
        is_near = common_prefix(cached, quiet.ids) + _QUIET_GAIN > common_prefix(cached, usual.ids)
        return quiet if is_near else usual

    # -- messages ----------------------------------------------------------------------------------------------------

    def add_message(
        self,
        turn: TurnRecord,
        cache: PromptCache,
        think: bool | None,
        *,
        whole: bool = False,
        begin_session: Callable[[str], Notice | None],
    ) -> Generator[Notice, None, PromptState]:
        """Add and save a message, yielding notices; returns the prompt state that ends with it.

        Args:
            turn: the message, without ids.
            cache: the one that the prompt will be prefilled into.
            whole: refuse a message if the window would evict a part of it.
            begin_session: called with a title before the message is added; may return a notice.
        """
        conversation, prompts = self.conversation, self.prompts
        if not conversation.turns:
            if not cache.log and conversation.session_id is None:  # the chat may have been made yesterday
                self.begin_at(clock.now())
                prompts = self.prompts
            yield from (Notice(f"{note[0].upper()}{note[1:]}.") for note in cache.plan.notes)
            yield from map(Notice, filter(None, (cache.plan.beyond_training,)))
        elif conversation.turns[-1].role == turn.role == "user":  # no reply came: keep the roles alternating
            conversation.append(TurnRecord("assistant", "", state=TurnState.STOPPED))
        text = turn.text
        if not conversation.turns and turn.role == "user":
            turn = replace(turn, text=self.prefix.text + text)
        elif not conversation.turns and self.prefix.prompt_state.ids:
            raise PromptError("The first message of a chat from a prompt cache must be one of the user's.")
        messages = self.messages([*conversation.turns, turn])
        if turn.role == "assistant" and prompts.has_template:
            prompts.render(messages)  # may refuse it
            prompt, turn = self._with_added_reply(turn, conversation.turns, self.prompt_state, conversation.log)
        else:
            prompt = prompts.prompt(messages, self.prompt_state, think)
            check_size(prompt.ids)
            cache.check_length(len(prompt.ids))
            start = common_prefix(conversation.log, prompt.ids)
            if whole:
                self._check_whole(turn.text, cache.plan, len(prompt.ids), start)
            turn = replace(turn, ids=tuple(prompt.ids[start:]), start=start)
        if notice := begin_session(title_of(text)):
            yield notice
        is_new = not conversation.turns or not self.prompt_state.ids
        thought = None if is_new else conversation.turns[-1].params.get("think")
        conversation.append(turn)
        yield from map(Notice, prompts.notices(messages, is_new))
        if think != thought and (reason := prompts.think_notice(think)):
            yield Notice(reason)
        if notice := conversation.pop_notice():
            yield notice
        return prompt

    def add(
        self,
        turn: TurnRecord,
        cache: PromptCache,
        think: bool | None,
        begin_session: Callable[[str], Notice | None],
    ) -> list[Notice]:
        """`add_message` that no reply follows; the notices."""
        notices: list[Notice] = []
        adding = self.add_message(turn, cache, think, begin_session=begin_session)
        while True:
            try:
                notices.append(next(adding))
            except StopIteration as end:
                self.prompt_state = end.value
                return notices

    def _with_added_reply(
        self, turn: TurnRecord, before: Sequence[TurnRecord], state: PromptState, log: Sequence[int]
    ) -> tuple[PromptState, TurnRecord]:
        """The state after a reply that no model has generated, and the reply with its ids.

        One that the template may write differently (with tool calls or reasoning, or after no message) has none: the
        next prompt has the ids of both.
        """
        if turn.tool_calls or turn.thinking or not before or before[-1].role == "assistant" or not state.ids:
            return state, replace(turn, start=len(log))
        ids = tuple(self.prompts.encode_text(turn.text, log))
        return self.prompts.with_reply(state, self.prompts.raw(turn.text, ids), ids), replace(turn, ids=ids)

    def prompt_without_reply(self, cache: PromptCache, think: bool | None) -> PromptState:
        """The prompt that ends with the last message, which is to be replied to; its ids are recorded.

        Raises:
            PromptError: there is none, or it is a reply, or a tool call has no result.
        """
        conversation, prompts = self.conversation, self.prompts
        if not conversation.turns or conversation.turns[-1].role == "assistant":
            why = "ends with a reply" if conversation.turns else "has no messages"
            raise PromptError(f"There is nothing to reply to: this chat {why}; send or add a message.")
        last = conversation.turns[-1]
        if last.role == "tool" and (pending := pending_calls(conversation.turns)):
            raise PromptError(
                f"The tool call {pending[0].id} of {pending[0].name} has no result; give it by "
                '`chat.add("tool", ...)` first.'
            )
        prompt = self.prompt_state
        if prompts.has_template or not prompt.ids:
            prompt = prompts.prompt(self.messages(conversation.turns), prompt, think)
        check_size(prompt.ids)
        cache.check_length(len(prompt.ids))
        if prompt.ids != conversation.log:
            start = common_prefix(replayed(conversation.turns[:-1]), prompt.ids)
            conversation.replace_last(replace(last, ids=tuple(prompt.ids[start:]), start=start))
        return prompt

    def _check_whole(self, message: str, plan: CachePlan, num_tokens: int, num_before: int) -> None:
        """Raises MessageTooLongError: the window would evict a part of `message`, which ends the prompt."""
        if overflow_of(plan, num_tokens, num_before) is None:
            return
        if self.conversation.turns and not self.prompt_state.ids:  # of another model: this one prefills all turns
            num_before = max(num_before, num_tokens - len(self.prompts.encode_text(message)))
        if overflow := overflow_of(plan, num_tokens, num_before):
            raise MessageTooLongError(evicted_text(overflow, "CacheConfig(window={})".format), overflow)

    def continuable_reply(self, learned: int | None) -> TurnRecord:
        """The last turn, a reply that can be continued. `learned`: the number of the model's learned positions, if any.

        Raises:
            PromptError: it is not a reply, or cannot be continued.
        """
        last = self.conversation.turns[-1] if self.conversation.turns else None
        if last is None or last.role != "assistant":
            raise PromptError("There is no reply to continue; write something first.")
        reason, ids = last.stats.get("finish_reason", FinishReason.STOPPED), self.prompt_state.ids
        if _has_no_ids(last):
            raise PromptError("The last message was added, not generated; `chat.reply(begin=...)` continues a text.")
        if reason not in (FinishReason.STOPPED, FinishReason.LENGTH) or not ids:
            why = "is complete" if ids else "was made by another model"
            raise PromptError(f"The last reply {why}, so it cannot be continued; retry it, or write something.")
        if learned is not None and len(self.conversation.log) > learned:
            raise PromptError(
                f"The last reply ends where this model's {learned:,} learned positions are used up, so it cannot be "
                "continued; start a new chat."
            )
        return last

    def with_system(self, system: str | None) -> History:
        """A new history of the same messages after another system prompt, not saved yet."""
        twin = History(self.conversation, replace(self.prefix, system=system), self.prompts)
        turns, state = twin.retokenize(self.conversation.turns)
        twin.conversation, twin.prompt_state = self.conversation.with_turns(turns), state
        return twin

    # -- the prompt state, from the turns ------------------------------------------------------------------------------

    def messages(self, turns: Sequence[TurnRecord]) -> list[Message]:
        """The system prompt and `turns`, as the template of this model takes them."""
        turns = turns if self.prompts.shows_calls else without_tools(turns)
        return template_messages(self.prefix.system, turns, joined=self.prompts.has_template)

    def _replayed_state(self) -> PromptState:
        """The state after all turns; empty if their ids are another model's, which this tokenizer cannot decode."""
        prompts, turns, model = self.prompts, self.conversation.turns, self.conversation.model
        while turns and _has_no_ids(turns[-1]):  # not a part of any prompt yet
            turns = turns[:-1]
        if not turns:
            return self.prefix.prompt_state
        newest = next((t for t in reversed(turns) if t.role == "assistant"), None)
        if model is not None and newest is not None and newest.params.get("model", model) != model:
            return PromptState()
        reply = turns[-1]
        if reply.role != "assistant":
            return self._prompt(turns, self.conversation.log)
        prompt, is_cut_off = self._prompt_before(turns), reply.stats.get("finish_reason") == FinishReason.STOP_STRING
        if prompts.has_template:
            return prompt if is_cut_off else prompts.with_reply(prompt, prompts.raw(reply.text, reply.ids), reply.ids)
        return PromptState(
            "", prompt.ids + (prompts.displayed_ids(reply.text, reply.ids, prompt.ids) if is_cut_off else reply.ids)
        )

    def prompt_before_reply(self) -> PromptState:
        """The prompt that the last turn replies to."""
        return self._prompt_before(self.conversation.turns)

    def _prompt_before(self, turns: Sequence[TurnRecord]) -> PromptState:
        (*turns, reply), log = turns, self.conversation.log
        return self._prompt(turns, log[: len(log) - len(reply.ids)], reply.params.get("think"))

    def _prompt(self, turns: Sequence[TurnRecord], ids: TokenIds, think: bool | None = None) -> PromptState:
        """The state of the prompt `ids` of `turns`, with a cut after the last reply whose sampled ids it contains."""
        prompts = self.prompts
        if not prompts.has_template:
            return PromptState("", ids)
        text = prompts.render(self.messages(turns), think=think)
        places, least = spans(turns), len(ids)
        replies = []
        for i in reversed(range(1, len(turns))):
            is_whole = turns[i].role == "assistant" and turns[i].ids and (turns[i].text or turns[i].tool_calls)
            if is_whole and places[i][0] + len(turns[i].ids) <= least:
                replies.append(i)
            least = min(least, places[i][0])
        for i in replies[:_MAX_TRIED]:
            reply = turns[i]
            before = PromptState(prompts.render(self.messages(turns[:i]), think=reply.params.get("think")))
            before = prompts.with_reply(before, prompts.raw(reply.text, reply.ids), reply.ids)
            if text.startswith(before.text):
                return PromptState(text, ids, ((len(before.text), places[i][0] + len(reply.ids)),))
        return PromptState(text, ids)

    def retokenize(self, turns: Sequence[TurnRecord]) -> tuple[tuple[TurnRecord, ...], PromptState]:
        """`turns` with new ids and positions, as if they alone followed the prefix, and the state after them. Replies
        of this model keep their sampled ids."""
        prompts, state, model = self.prompts, self.prefix.prompt_state, self.conversation.model
        log: list[int] = []
        out: list[TurnRecord] = []
        for i, turn in enumerate(turns):
            start, ids = len(log), turn.ids
            if prompts.has_template and _has_no_ids(turn):
                state, turn = self._with_added_reply(turn, out, state, log)
                turn = replace(turn, start=start)
            elif turn.role != "assistant":
                think = turns[i + 1].params.get("think") if i + 1 < len(turns) else None
                state = prompts.prompt(self.messages(turns[: i + 1]), state, think)
                start = common_prefix(log, state.ids)
                turn = replace(turn, ids=tuple(state.ids[start:]), start=start)
            else:
                if not ids or turn.params.get("model", model) != model:
                    ids = tuple(prompts.encode_text(turn.text, log))
                params = turn.params if model is None else {**turn.params, "model": model}
                turn = replace(turn, ids=ids, start=start, params=params)
                if turn.stats.get("finish_reason") != FinishReason.STOP_STRING:
                    state = prompts.with_reply(state, prompts.raw(turn.text, ids), ids)
                elif not prompts.has_template:
                    state = PromptState("", TokenIds([*log, *prompts.displayed_ids(turn.text, ids, log)]))
            log[start:] = turn.ids
            out.append(turn)
        return tuple(out), state

    # -- checkpoints of recurrent layers -------------------------------------------------------------------------------

    def checkpoints(self, prompt: PromptState, think: bool | None, cache: PromptCache) -> tuple[int, ...]:
        """Positions in `prompt` to rewind `cache` to: where the next prompt may differ, and turns to go back to."""
        turns = self.conversation.turns
        turns = turns[:-1] if turns[-1].role == "assistant" else turns
        cached = common_prefix(cache.log, prompt.ids)
        return *self.turn_starts(cached), self.prompts.num_unchanged(self.messages(turns), prompt, think)

    def resume_at(self) -> int:
        """The number of tokens of this chat that the next prompt continues; a template may rewrite the last reply."""
        turns, log = self.conversation.turns, self.conversation.log
        next_turns = [*turns, TurnRecord("user", "x")]
        try:
            return common_prefix(log, self.prompts.prompt(self.messages(next_turns), self.prompt_state).ids)
        except ModelError:
            return len(log)  # the next message reports it

    def turn_starts(self, cached: int) -> list[int]:
        """The starts of turns beyond the first `cached` tokens that going back by some turns needs."""
        turns = self.conversation.turns
        starts = [start for (start, _), turn in zip(spans(turns), turns, strict=True) if turn.role == "user"]
        new = [start for start in starts if start > cached]
        return sorted(needed(new, len(self.conversation.log), MIN_CHECKPOINTS, (), starts)) if len(new) > 1 else []

    @property
    def prefix_ends(self) -> list[int]:
        """The ends of the system prompt, and of the prompt cache that the chat began with."""
        ends = {self.num_system_tokens, len(self.prefix.prompt_state.ids)}
        return sorted(end for end in ends if end >= _MIN_PREFIX)

    @property
    def num_system_tokens(self) -> int:
        """The number of tokens before the first message."""
        if self._num_system is None:
            self._num_system = self.prompts.num_system_tokens(self.prefix.system)
        return self._num_system

    @property
    def num_calls(self) -> int:
        """The number of tool calls before the reply that is generated or continued next."""
        turns = self.conversation.turns
        return sum(len(t.tool_calls) for t in (turns[:-1] if turns and turns[-1].role == "assistant" else turns))

    @property
    def has_own_system_prompt(self) -> bool:
        """Whether the template begins with text of its own: more than marks, such as the BOS token."""
        return not self.prefix.system and self.prompts.has_text(self.conversation.log[: self.num_system_tokens])

    # -- going back --------------------------------------------------------------------------------------------------

    def snapshot(self, returned: str = "") -> HistorySnapshot:
        return HistorySnapshot(self.conversation.snapshot(), self.prompt_state, returned)

    def empty(self, returned: str = "") -> HistorySnapshot:
        """The state before the first message."""
        return HistorySnapshot(Snapshot(), self.prefix.prompt_state, returned)

    def return_to(self, before: HistorySnapshot) -> None:
        """Undo every change since `before`. Raises StoreError: the disk refuses, so nothing is undone."""
        self.conversation.return_to(before.conversation)
        self.prompt_state = before.prompt_state

    def remove_from(self, turn: int) -> None:
        """Remove message number `turn` and those after it. A saved chat continues in a fork, unless the message is the
        last one and has no reply to keep."""
        conversation = self.conversation
        is_reply = conversation.turns[turn].role == "assistant"
        if turn == len(conversation.turns) - 1 and not is_reply and conversation.read_only is None:
            conversation.return_to(replace(conversation.snapshot(), turns=conversation.turns[:turn]))
        else:
            conversation.branch(turn)
        self.prompt_state = self._replayed_state()

    def is_only_message(self, turn: int) -> bool:
        """Whether message number `turn` is the only one of its session, whose title comes from it."""
        conversation = self.conversation
        is_saved_here = conversation.session_id is not None and conversation.read_only is None
        is_only = turn == 0 and len(conversation.turns) == 1
        return is_saved_here and is_only and conversation.title == title_of(self.user_text(0))

    def follows_results(self, turn: int) -> bool:
        """Whether message number `turn` is the reply to results of tools, or is where that would be."""
        turns = self.conversation.turns
        if turn == len(turns) - 1 and turns[turn].role == "tool":
            return True
        is_reply = turn in range(1, len(turns)) and turns[turn].role == "assistant"
        return is_reply and turns[turn - 1].role == "tool"

    def user_text(self, turn: int) -> str:
        """The user's own text of a message, which in the first one follows the text of the chat's prompt cache."""
        return self.conversation.turns[turn].text.removeprefix(self.prefix.text if turn == 0 else "")

    def check_user(self, turn: int) -> None:
        """Raises ConfigError: there is no such message, or it is not the user's."""
        mine = [i for i, t in enumerate(self.conversation.turns) if t.role == "user"]
        if turn not in mine:
            raise ConfigError(f"Message {turn!r} is not one of yours; yours are {mine}.")

    def last_user(self) -> int:
        """The number of the user's last message. Raises PromptError: there is none."""
        for turn in reversed(range(len(self.conversation.turns))):
            if self.conversation.turns[turn].role == "user":
                return turn
        raise PromptError("There is nothing to go back to: this chat has no messages yet.")

    def question(self, turn: int | None) -> int:
        """See Chat.question. Raises PromptError: the chat is empty. ConfigError: there is no such message."""
        turn = self.last_user() if turn is None else turn
        turns = self.conversation.turns
        is_mine = turn in range(len(turns)) and turns[turn].role == "user"
        if not is_mine and turn - 1 in range(len(turns)) and turns[turn - 1].role == "user":
            turn -= 1  # `turn` is the reply
        self.check_user(turn)
        return turn


def _has_no_ids(turn: TurnRecord) -> bool:
    """Whether it is an added reply whose ids the next message has."""
    return turn.role == "assistant" and not turn.ids and bool(turn.text or turn.tool_calls)


def spans(turns: Sequence[TurnRecord]) -> list[tuple[int, int]]:
    """The first and last position of each turn's ids in the log. If a template rewrote a turn later, the next one
    starts before its end."""
    starts: list[int] = []
    length = 0
    for turn in turns:
        starts.append(length if turn.start is None else turn.start)
        length = starts[-1] + len(turn.ids)
    ends = [start + len(turn.ids) for start, turn in zip(starts, turns, strict=True)]
    for i in reversed(range(len(turns) - 1)):  # the smallest of its own end and all later starts
        length = min(length, starts[i + 1])
        ends[i] = min(ends[i], length)
    return list(zip(starts, ends, strict=True))
