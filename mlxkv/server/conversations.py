"""Conversations: those that clients may continue, found by the role and text of their messages.

Clients return text, and a reply's text may tokenize otherwise than it was sampled. So each conversation remembers its
prompt state: a prompt that continues it takes its ids, as far as the rendered text is the same. Knows no cache and no
disk. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from mlxkv.chat.prompts.prompt import PromptFormat, PromptState
from mlxkv.inference.reply_parser import ReplyText, raw_text
from mlxkv.server.jobs import ChatMessage, Job
from mlxkv.server.rendering import prompts_for, render
from mlxkv.token_ids import TokenIds, common_prefix

_MOST_TRIED = 4  # conversations whose prompts are rendered for one request


@dataclass(eq=False)
class Conversation:
    """A prompt and its reply.

    Attributes:
        messages: the prompt's, then the reply.
        ids: of both.
        began: the time that the template prints.
        state: makes the prompt state; called when it is first needed.
        session_id: of the store; None while it is not saved.
    """

    messages: tuple[ChatMessage, ...]
    ids: TokenIds
    began: datetime
    state: Callable[[], PromptState]
    session_id: str | None = None

    def num_common(self, messages: Sequence[ChatMessage]) -> int:
        """The number of leading messages that are also these."""
        pairs = zip(self.messages, messages, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if not a.is_same(b)), min(len(self.messages), len(messages)))


@dataclass(frozen=True)
class Match:
    """A prompt in ids, and the conversation that it continues, if any.

    Attributes:
        num_common: leading messages that are that conversation's.
        continues: it continues all of that conversation.
    """

    messages: tuple[ChatMessage, ...]
    state: PromptState
    prompts: PromptFormat
    began: datetime
    conversation: Conversation | None = None
    num_common: int = 0

    @property
    def continues(self) -> bool:
        return self.conversation is not None and self.num_common == len(self.conversation.messages)


class Conversations:
    """The last `most` conversations, by use.

    Args:
        prompts: the model's.
        now: the time that templates print in a new conversation.
    """

    def __init__(self, prompts: PromptFormat, now: Callable[[], datetime], most: int) -> None:
        self._prompts, self._now, self._most = prompts, now, most
        self._known: list[Conversation] = []  # least recently used first

    def __iter__(self) -> Iterator[Conversation]:
        return iter(tuple(self._known))

    def match(self, job: Job) -> Match:
        """The prompt of a job with messages, by the conversation that it shares the most ids with.

        Raises:
            ModelError: the template refuses it.
        """
        found = [(c.num_common(job.messages), i, c) for i, c in enumerate(self._known)]
        best, most = self._new(job), 0
        for num_common, _, conversation in sorted(found, key=lambda item: item[:2], reverse=True)[:_MOST_TRIED]:
            if num_common and self._can_continue(job, conversation, num_common):
                match = self._continued(job, conversation, num_common)
                if (shared := common_prefix(match.state.ids, conversation.ids)) > most:
                    best, most = match, shared
        return best

    def _can_continue(self, job: Job, conversation: Conversation, num_common: int) -> bool:
        """Without a template, only one more message can follow the ids of a conversation."""
        is_next = num_common == len(conversation.messages) == len(job.messages) - 1
        return self._prompts.has_template or is_next

    def _new(self, job: Job) -> Match:
        began = self._now()
        prompts = prompts_for(self._prompts.at(began), job)
        return Match(job.messages, render(prompts, job, PromptState()), prompts, began)

    def _continued(self, job: Job, conversation: Conversation, num_common: int) -> Match:
        """The prompt with the conversation's own messages for those that are the same."""
        messages = (*conversation.messages[:num_common], *job.messages[num_common:])
        prompts = prompts_for(self._prompts.at(conversation.began), job)
        state = render(prompts, replace(job, messages=messages), conversation.state())
        return Match(messages, state, prompts, conversation.began, conversation, num_common)

    def add(self, conversation: Conversation, before: Conversation | None = None) -> list[Conversation]:
        """Remember a conversation, in place of the one it continues; returns those that are forgotten for it."""
        if before is not None:
            self._known = [c for c in self._known if c is not before]
        self._known.append(conversation)
        forgotten = self._known[: -self._most]
        del self._known[: -self._most]
        return forgotten


def after_reply(prompts: PromptFormat, prompt: PromptState, text: str, ids: Sequence[int], is_cut: bool) -> PromptState:
    """The state after a reply.

    Args:
        text: as displayed.
        ids: as sampled.
        is_cut: a stop string ended it, so that the ids go beyond the text.
    """
    if not is_cut:
        return prompts.with_reply(prompt, raw_text(prompts.tokenizer, ids), ids)
    if prompts.reasoning is not None or not prompts.has_template:
        return prompt  # its text is tokenized with the next prompt
    reply = ReplyText(prompts.tokenizer)
    for token in ids:
        reply.add(token)
    count = reply.num_tokens_of(text)
    return PromptState(prompt.text + text[: reply.ends[count]], prompt.ids + ids[:count], prompt.all_cuts)
