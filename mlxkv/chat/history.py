"""History: the conversation of a chat and the prompt state that its next prompt continues, and how to go back in both.

Knows the chat template and no model; the cache is rewound later, when the next prompt says how far. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from mlxkv.chat.conversation import Conversation, Snapshot, title_of
from mlxkv.chat.prefix import ChatPrefix
from mlxkv.chat.prompt import PromptFormat, PromptState
from mlxkv.chat.replay import Replay
from mlxkv.errors import ConfigError, PromptError
from mlxkv.store import TurnRecord
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
        said = self.conversation
        return Replay(self.prompts, self.prefix, said.turns, said.log, said.model)

    def fork(self, num_turns: int) -> History:
        """A second history with the same first turns."""
        said = self.conversation
        twin = History(said.fork(num_turns), self.prefix, self.prompts)
        is_same = num_turns == len(said.turns) and said.read_only is None
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
        said = self.conversation
        if turn == len(said.turns) - 1 and said.read_only is None:
            said.return_to(replace(said.snapshot(), turns=said.turns[:turn]))
        else:
            said.branch(turn)
        self.prompt_state = self.replay.prompt_state()

    def is_only_message(self, turn: int) -> bool:
        """Whether message number `turn` is all that its session has, which is also titled by it."""
        said = self.conversation
        is_open = said.session_id is not None and said.read_only is None
        return is_open and turn == 0 and len(said.turns) == 1 and said.title == title_of(self.user_text(0))

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
