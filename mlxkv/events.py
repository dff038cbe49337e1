"""What the layers tell each other: plain frozen dataclasses that may cross threads. No MLX, no textual.

Turn events go from a turn to its caller (script, print mode, engine). Engine events go from the engine thread to
the window; `mlxkv.commands` go the other way. Only strings, numbers and these values ever cross that line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxkv.stats import TurnStats

# -- a turn --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` new prompt tokens are read; `cached` more came from the KV cache."""

    done: int
    total: int
    cached: int
    tps: float


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply. `num_tokens` counts the tokens generated so far, this piece included."""

    text: str
    num_tokens: int
    thinking: bool = False


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not an error."""

    text: str


@dataclass(frozen=True)
class TurnFinished:
    """The end of a turn. `reason`: "stop" (the model ended), "length", "stopped" (cancelled), "stop_string"."""

    reason: str
    text: str
    stats: TurnStats


TurnEvent = PrefillProgress | TextDelta | Notice | TurnFinished

# -- what the engine tells the window ------------------------------------------------------------------


@dataclass(frozen=True)
class ModelLoading:
    """`phase`: "downloading" or "loading"; `total` 0 while unknown. Bytes."""

    name: str
    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class ModelReady:
    name: str
    weight_bytes: int
    load_s: float
    has_chat_template: bool


@dataclass(frozen=True)
class Message:
    """One turn of a chat as the window shows it."""

    role: str  # "user" | "assistant"
    text: str
    stats: TurnStats | None = None


@dataclass(frozen=True)
class ChatOpened:
    """The chat in front is now this one. `restored_tokens` came back from disk in `restore_s`, 0 for a new chat."""

    session_id: str | None
    title: str
    messages: tuple[Message, ...] = ()
    restored_tokens: int = 0
    restored_bytes: int = 0
    restore_s: float = 0.0


@dataclass(frozen=True)
class ChatSummary:
    """One line of a list of chats. Times are UNIX seconds."""

    id: str
    title: str
    updated: float
    num_turns: int
    kv_bytes: int
    model: str
    parent: str | None = None


@dataclass(frozen=True)
class Branch:
    """One chat of a family of forks. `forked_at`: how many messages it shares with `parent`."""

    session_id: str
    title: str
    parent: str | None
    forked_at: int | None
    updated: float
    num_turns: int
    is_current: bool = False


@dataclass(frozen=True)
class Sibling:
    """One version of a message: open `session_id` to see it and what followed. `created`: UNIX seconds."""

    session_id: str
    text: str
    created: float
    is_current: bool


@dataclass(frozen=True)
class ChatList:
    chats: tuple[ChatSummary, ...]


@dataclass(frozen=True)
class TurnStarted:
    """The user's turn is on disk (unless this chat is not saved) and reading begins."""

    text: str


@dataclass(frozen=True)
class SessionStatus:
    """The footer: the session's state, not the turn's. Bytes and tokens; `memory_limit` 0 when unknown."""

    kv_bytes: int = 0
    cache_tokens: int = 0
    cache_window: int = 0
    memory_used: int = 0
    memory_limit: int = 0
    saved: str = ""  # "" (nothing to save) | "saving" | "saved" | "not saved: <why>" | "off"


@dataclass(frozen=True)
class Failed:
    """A command failed; `text` is one sentence. The engine goes on."""

    text: str


@dataclass(frozen=True)
class EngineStopped:
    """The engine thread has ended; nothing follows."""

    error: str | None = None


EngineEvent = (
    PrefillProgress
    | TextDelta
    | Notice
    | TurnFinished
    | ModelLoading
    | ModelReady
    | ChatOpened
    | ChatList
    | TurnStarted
    | SessionStatus
    | Failed
    | EngineStopped
)


@dataclass(frozen=True)
class ModelCard:
    """A model the first screen offers."""

    id: str
    size_bytes: int
    licence: str
    note: str = ""
    fits: bool = True


@dataclass(frozen=True)
class FirstScreen:
    """What the window shows before any model is chosen."""

    models: tuple[ModelCard, ...] = field(default=())
