"""Turn events, from a turn to its caller (script, print mode, engine), and the values in them.

Frozen dataclasses that may cross threads. No MLX, no Textual.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mlxkv.stats import Overflow, TurnStats


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # the model ended it
    STOP_STRING = "stop_string"
    LENGTH = "length"  # `max_tokens`, or the model's learned positions are used up
    STOPPED = "stopped"  # cancelled, or the caller closed the iterator


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` new prompt tokens are prefilled; `cached` more were in the KV cache."""

    done: int
    total: int
    cached: int
    tps: float


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply. `num_tokens` counts the tokens generated so far, this piece included.

    `thinking`: it is a piece of the model's reasoning, which comes before the text. `restarts`: all text so far was
    reasoning, since its end marker came without a start marker; this is the whole of it.
    """

    text: str
    num_tokens: int
    thinking: bool = False
    restarts: bool = False


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not an error."""

    text: str


@dataclass(frozen=True)
class KVNotSaved(Notice):
    """The turn is saved but not all of its KV rows: a resume prefills those again."""


MEANWHILE = " New messages stay in memory, and are saved once there is space."


@dataclass(frozen=True)
class NotSaved(KVNotSaved):
    """Neither is saved: the disk is full or fails. `text` ends with `MEANWHILE`."""


@dataclass(frozen=True)
class NoAnswer(Notice):
    """The reply has no text: only reasoning (`thinking`), or nothing. `reason` and `can_be_quiet`: see TurnFinished."""

    num_tokens: int = 0
    reason: str = ""
    thinking: bool = False
    can_be_quiet: bool = True


@dataclass(frozen=True)
class PromptEvicted(Notice):
    """The window evicted a part of the prompt. `evicted_text` describes `overflow` in terms of the options."""

    overflow: Overflow = field(default_factory=lambda: Overflow(0, 0, 0))


@dataclass(frozen=True)
class TurnFinished:
    """The end of a turn. `reason` is a FinishReason, which equals its string.

    `can_be_quiet`: reasoning was not turned off, and the model's template has a switch for it.
    `unanswered`: it was stopped before anything was generated, and the chat is unchanged. `returned` is then the
    message that was removed from the chat; "" if it did not come with this turn (a retry).
    """

    reason: str
    text: str
    stats: TurnStats
    thinking: str = ""  # the reasoning before the text
    can_be_quiet: bool = True
    unanswered: bool = False
    returned: str = ""


TurnEvent = PrefillProgress | TextDelta | Notice | TurnFinished


@dataclass(frozen=True)
class Message:
    """One message of a chat for display."""

    role: str  # "user" | "assistant"
    text: str
    stats: TurnStats | None = None
    thinking: str = ""
    can_be_quiet: bool = True  # see TurnFinished


@dataclass(frozen=True)
class Branch:
    """One chat of a tree of forks. `forked_at`: the number of messages it shares with `parent`."""

    session_id: str
    title: str
    parent: str | None
    forked_at: int | None
    updated: float
    num_turns: int  # messages
    made: int = 0  # increases with every branch, independent of the clock
    is_current: bool = False


@dataclass(frozen=True)
class Sibling:
    """One version of a message: open `session_id` to see it and what followed. `created`: UNIX seconds."""

    session_id: str
    text: str
    created: float
    is_current: bool
