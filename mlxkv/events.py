"""What the layers tell each other: plain frozen dataclasses that may cross threads. No MLX, no textual.

Turn events go from a turn to its caller (script, print mode, engine). Engine events go from the engine thread to
the window; `mlxkv.protocol.commands` go the other way. Only strings, numbers and these values ever cross that line.
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
    """`done` of `total` new prompt tokens are read; `cached` more came from the KV cache."""

    done: int
    total: int
    cached: int
    tps: float


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply. `num_tokens` counts the tokens generated so far, this piece included.

    `thinking`: it is a piece of the model's reasoning, which comes before the text. `restarts`: all that was given as
    text was reasoning, for its end has come and its beginning never did; this is the whole of it.
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
    """The turn is on disk, rows of its KV cache are not: a resume reads them again."""


MEANWHILE = " What is said meanwhile is kept in memory, and saved once there is room."


@dataclass(frozen=True)
class NotSaved(KVNotSaved):
    """Neither is on disk: the disk is full or fails. `text` ends with `MEANWHILE`."""


@dataclass(frozen=True)
class NoAnswer(Notice):
    """The reply has no text: it was reasoning alone (`thinking`), or nothing. `reason` and `can_be_quiet` are those of
    `TurnFinished`."""

    num_tokens: int = 0
    reason: str = ""
    thinking: bool = False
    can_be_quiet: bool = True


@dataclass(frozen=True)
class PromptEvicted(Notice):
    """The window does not hold the prompt. `evicted_text` words `overflow` for those who type options."""

    overflow: Overflow = field(default_factory=lambda: Overflow(0, 0, 0))


@dataclass(frozen=True)
class TurnFinished:
    """The end of a turn. `reason`: "stop" (the model ended), "length", "stopped" (cancelled), "stop_string".

    `can_be_quiet`: reasoning was not turned off, and the model's template has a switch for it.
    `unanswered`: it was stopped before anything came of it, and the chat is as it was before. `returned` is then the
    message that has left the chat; "" where it did not come with this turn (a retry).
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
    """One turn of a chat as the window shows it."""

    role: str  # "user" | "assistant"
    text: str
    stats: TurnStats | None = None
    thinking: str = ""
    can_be_quiet: bool = True  # as of `TurnFinished`


@dataclass(frozen=True)
class Branch:
    """One chat of a family of forks. `forked_at`: how many messages it shares with `parent`."""

    session_id: str
    title: str
    parent: str | None
    forked_at: int | None
    updated: float
    num_turns: int  # messages
    made: int = 0  # larger: made later, whatever the clock says
    is_current: bool = False


@dataclass(frozen=True)
class Sibling:
    """One version of a message: open `session_id` to see it and what followed. `created`: UNIX seconds."""

    session_id: str
    text: str
    created: float
    is_current: bool
