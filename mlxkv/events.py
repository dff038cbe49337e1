"""The events of a turn and the values in them: frozen dataclasses, which may be handed to other threads."""

# From a turn to its caller: a script, print mode, the engine. Imports neither MLX nor Textual.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mlxkv.stats import Overflow, TurnStats


class FinishReason(StrEnum):
    """Why a generation ended. Each equals its string.

    Attributes:
        STOP: "stop": the model ended it.
        STOP_STRING: "stop_string": it wrote a stop string.
        LENGTH: "length": `max_tokens` or the model's learned positions are used up.
        STOPPED: "stopped": it was cancelled, or the caller closed the iterator.
        DEADLINE: "deadline": the time for it was over.
        TOOL_CALLS: "tool_calls": the model ended it, and calls tools.
    """

    STOP = "stop"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    STOPPED = "stopped"
    DEADLINE = "deadline"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class ToolCall:
    """A tool call in a reply.

    Attributes:
        name: the tool's.
        arguments: JSON text, an object unless the model wrote something else.
        id: tells the calls of a chat apart.
    """

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True)
class PrefillProgress:
    """How far the prefill of the prompt is.

    Attributes:
        done: tokens prefilled so far.
        total: tokens to prefill.
        cached: tokens of the prompt that were in the KV cache, and are not prefilled.
        tps: tokens prefilled per second.
    """

    done: int
    total: int
    cached: int
    tps: float


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token of a reply was, by the model's own distribution; see `SamplingParams.logprobs`.

    Attributes:
        token: its id.
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens in its place, the likeliest first: ids and natural logarithms.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply.

    Attributes:
        text: the piece.
        num_tokens: tokens generated so far, this piece included.
        thinking: it is a piece of the model's reasoning, which comes before the text.
        restarts: all text so far was reasoning, since its end marker came without a start marker; `text` is the whole
            of it.
        logprobs: of the tokens since the last piece, if they were asked for.
    """

    text: str
    num_tokens: int
    thinking: bool = False
    restarts: bool = False
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not an error.

    Attributes:
        text: one sentence for the user.
    """

    text: str


@dataclass(frozen=True)
class KVNotSaved(Notice):
    """The turn's messages are saved, but not all of their KV rows: when the chat is resumed, they are prefilled."""


MEANWHILE = " New messages stay in memory, and are saved once there is space."  # ends the text of a NotSaved


@dataclass(frozen=True)
class NotSaved(KVNotSaved):
    """Neither messages nor KV rows are saved: the disk is full or fails. Messages stay in memory until it has space."""


@dataclass(frozen=True)
class NoAnswer(Notice):
    """The reply has no text: only reasoning, or nothing.

    Attributes:
        num_tokens: tokens generated.
        reason: why the reply ended, as in TurnFinished.
        thinking: there was reasoning.
        can_be_quiet: as in TurnFinished.
    """

    num_tokens: int = 0
    reason: str = ""
    thinking: bool = False
    can_be_quiet: bool = True


@dataclass(frozen=True)
class PromptEvicted(Notice):
    """The prompt does not fit in the window, so that its oldest tokens are evicted before the reply.

    Attributes:
        overflow: how many, and the window that would hold all.
    """

    overflow: Overflow = field(default_factory=lambda: Overflow(0, 0, 0))


@dataclass(frozen=True)
class TurnFinished:
    """The end of a turn.

    Attributes:
        reason: why it ended, a FinishReason.
        text: the whole reply, without its reasoning.
        stats: the figures.
        thinking: the reasoning before the text.
        can_be_quiet: `think=False` would ask for a reply without reasoning: the model's chat template has a switch for
            it, and it was not off.
        unanswered: the turn was stopped before anything was generated, and the chat is as it was before.
        returned: if it is unanswered, the message that was removed from the chat; "" if it did not come with this turn
            (a retry).
        tool_calls: the tools that the reply calls, in its order; they are not part of `text`.
        logprobs: of all tokens of the reply, an end-of-text id included, if they were asked for.
    """

    reason: str
    text: str
    stats: TurnStats
    thinking: str = ""
    can_be_quiet: bool = True
    unanswered: bool = False
    returned: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class ReplyFinished(TurnFinished):
    """The end of a reply of a batch.

    Attributes:
        tokens: the token ids of the reply, an end-of-text id included.
    """

    tokens: tuple[int, ...] = ()


TurnEvent = PrefillProgress | TextDelta | Notice | TurnFinished


@dataclass(frozen=True)
class RequestFailed:
    """The end of a prompt of a batch that could not be answered.

    Attributes:
        error: says why: an MlxkvError, in one sentence, or what a function of the caller's raised.
    """

    error: Exception


@dataclass(frozen=True)
class BatchEvent:
    """An event of one prompt of a batch.

    Attributes:
        index: which prompt, from 0 on.
        event: what happened; the last one of each prompt is a ReplyFinished or a RequestFailed.
    """

    index: int
    event: TurnEvent | RequestFailed


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: "user", "assistant", or "tool" with the result of a call.
        text: the message, without reasoning.
        stats: the figures of a reply, None if it has none.
        thinking: the reasoning before a reply.
        can_be_quiet: of a reply, as in TurnFinished.
        tool_calls: of a reply, as in TurnFinished.
        tool_call_id: of a result, the call's.
    """

    role: str
    text: str
    stats: TurnStats | None = None
    thinking: str = ""
    can_be_quiet: bool = True
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class Branch:
    """One chat of a tree of forks.

    Attributes:
        session_id: its id, for `Model.resume`.
        title: its title.
        parent: the id of the chat that it was forked from, None for the first one.
        forked_at: the number of messages that it shares with its parent.
        updated: when it was last used, in UNIX seconds.
        num_turns: the number of its messages.
        made: sorts branches in the order in which they were made, whatever the clock said.
        is_current: it is the chat whose tree this is.
        name: where it departs from its parent, such as "What about sinks? · after “What is a KV cache?”"; the title of
            the first one, and of those that the user named.
        is_version: retry, edit or undo made it: it is a version of its parent's chat, and no chat of its own.
    """

    session_id: str
    title: str
    parent: str | None
    forked_at: int | None
    updated: float
    num_turns: int
    made: int = 0
    is_current: bool = False
    name: str = ""
    is_version: bool = False


@dataclass(frozen=True)
class Sibling:
    """One version of a message.

    Attributes:
        session_id: the chat that has it, for `Model.resume`: there is also what followed.
        text: the message.
        created: when it was made, in UNIX seconds.
        is_current: it is the version of the chat that was asked.
        params: of a reply that has other versions, the sampling parameters, and the `model_name` that made it.
    """

    session_id: str
    text: str
    created: float
    is_current: bool
    params: Mapping[str, Any] = field(default_factory=dict)
