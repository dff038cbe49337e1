"""Events of the engine for a front end: plain frozen dataclasses that may cross threads. No MLX, no textual.

Those of one turn are public, in `mlxkv.events`; front ends find them here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxkv.events import (  # noqa: F401 - front ends find them here
    MEANWHILE,
    Branch,
    KVNotSaved,
    Message,
    NoAnswer,
    Notice,
    NotSaved,
    PrefillProgress,
    PromptEvicted,
    Sibling,
    TextDelta,
    TurnEvent,
    TurnFinished,
)
from mlxkv.protocol.status import ChatSummary, CompactPlan, ContextUse, ModelTight, SessionFigures, SessionStatus
from mlxkv.stats import Overflow


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
class ChatOpened:
    """The chat in front is now this one. `restored_tokens` came back from disk in `restore_s`, 0 for a new chat:
    without those that had rotated out of its window.

    `prompt` is what the user takes back to change it; `read_only` says who else has the chat open.
    """

    session_id: str | None
    title: str
    messages: tuple[Message, ...] = ()
    restored_tokens: int = 0
    restored_bytes: int = 0
    restore_s: float = 0.0
    prompt: str = ""
    read_only: str = ""


@dataclass(frozen=True)
class ChatReleased:
    """The chat in front was open in another process, and is so no longer: opened again it can be continued."""

    session_id: str


@dataclass(frozen=True)
class ChatList:
    chats: tuple[ChatSummary, ...]


@dataclass(frozen=True)
class ChatTree:
    """All that the chat in front was forked from and into: each chat before its forks."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Versions:
    """For each message of the chat in front from number `first` on its versions, this chat's own among them."""

    messages: tuple[tuple[Sibling, ...], ...]
    first: int = 0


@dataclass(frozen=True)
class ChatHit:
    """A turn that was found, or a title (`turn` None); `marks` are the spans of `snippet` that were looked for."""

    session_id: str
    title: str
    turn: int | None
    role: str
    snippet: str
    marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ChatHits:
    words: str
    hits: tuple[ChatHit, ...]


@dataclass(frozen=True)
class ChatRenamed:
    session_id: str
    title: str


@dataclass(frozen=True)
class ChatDeleted:
    session_id: str
    title: str


@dataclass(frozen=True)
class ChatExported:
    path: str


@dataclass(frozen=True)
class ChatPinned:
    session_id: str
    pinned: bool


@dataclass(frozen=True)
class CacheList:
    """What lies in mlxkv's cache folder, which may have up to `limit` bytes (0: no limit) and has `used`.

    `named`: the prompt caches, by name, with their bytes.
    """

    chats: tuple[ChatSummary, ...]
    named: tuple[tuple[str, int], ...]
    used: int
    limit: int


@dataclass(frozen=True)
class CacheCollected:
    """What nothing used was removed: bytes freed, and bytes that are still used."""

    freed: int
    used: int


@dataclass(frozen=True)
class Applied:
    """A change of settings or of the system prompt holds; `text` says from when on."""

    text: str


@dataclass(frozen=True)
class KVSaving:
    """Rows are on their way to the disk, and that takes longer than a blink: bytes; `done` is `total` at the end."""

    done: int
    total: int


@dataclass(frozen=True)
class TokensCounted:
    """`key` is the one of `CountTokens`."""

    key: str
    tokens: int


@dataclass(frozen=True)
class Compacted:
    """The chat in front is the short form of the one before; `text` says what it has, and how to go back."""

    text: str


@dataclass(frozen=True)
class TurnStarted:
    """The user's turn is on disk (unless this chat is not saved) and reading begins."""

    text: str


@dataclass(frozen=True)
class MessageTooLong:
    """The answer to `Send` and `Edit`: the window would hold only a part of `text`, so it was not sent."""

    text: str
    overflow: Overflow


@dataclass(frozen=True)
class Failed:
    """A command failed; `text` is one sentence. The engine goes on.

    `kind`: "memory" (it would not fit), "disk" (no room), "locked" (open elsewhere), "stopped" (the user
    stopped it), "" (anything else). `returned`: the message that was to be sent and is not part of the chat.
    """

    text: str
    kind: str = ""
    returned: str = ""


@dataclass(frozen=True)
class EngineStopped:
    """The engine thread has ended; nothing follows."""

    error: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """A model to choose. `is_local`: no download is needed; `fits`: there is memory for it and a KV cache.

    `is_folder`: `id` is the path of a folder of the user's. `is_current`: it is the one that is loaded.
    """

    id: str
    size_bytes: int
    licence: str = ""
    note: str = ""
    fits: bool = True
    is_local: bool = False
    is_folder: bool = False
    is_current: bool = False


@dataclass(frozen=True)
class ModelList:
    """`only_fitting`: those that are too large were left out."""

    models: tuple[ModelCard, ...]
    only_fitting: bool = False


@dataclass(frozen=True)
class ModelMissing:
    """The model of a chat is not on this disk (any more); bytes to download, 0 while unknown."""

    name: str
    size_bytes: int = 0


@dataclass(frozen=True)
class PullProgress:
    """A download beside everything else. `state`: "asking" | "downloading" | "paused" | "done" | "failed" | "tight".

    "tight": what would not fit is not begun; `tight` says by how much.

    Bytes, and bytes per second; `text` says why it failed. `then_load`: it was wanted as the model to talk to.
    """

    name: str
    state: str
    done: int = 0
    total: int = 0
    bytes_per_s: float = 0.0
    text: str = ""
    then_load: bool = False
    tight: ModelTight | None = None


EngineEvent = (
    PrefillProgress
    | TextDelta
    | Notice
    | TurnFinished
    | ModelLoading
    | ModelReady
    | ModelList
    | ModelMissing
    | ModelTight
    | PullProgress
    | ChatOpened
    | ChatReleased
    | ChatList
    | ChatTree
    | Versions
    | ChatHits
    | ChatRenamed
    | ChatDeleted
    | ChatExported
    | Applied
    | ChatPinned
    | CacheList
    | CacheCollected
    | Compacted
    | KVSaving
    | TokensCounted
    | CompactPlan
    | TurnStarted
    | SessionStatus
    | ContextUse
    | SessionFigures
    | MessageTooLong
    | Failed
    | EngineStopped
)


@dataclass(frozen=True)
class FirstScreen:
    """What the window shows before any model is chosen."""

    models: tuple[ModelCard, ...] = field(default=())
