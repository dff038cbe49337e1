"""What the layers tell each other: plain frozen dataclasses that may cross threads. No MLX, no textual.

Turn events go from a turn to its caller (script, print mode, engine). Engine events go from the engine thread to
the window; `mlxkv.commands` go the other way. Only strings, numbers and these values ever cross that line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxkv.readings import CompactPlan, ContextUse, ModelTight, SessionFigures, SessionStatus
from mlxkv.stats import Overflow, TurnStats

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
    thinking: str = ""
    can_be_quiet: bool = True  # as of `TurnFinished`


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
class ChatSummary:
    """One line of a list of chats. Times are UNIX seconds."""

    id: str
    title: str
    updated: float
    num_turns: int  # messages: a question and its reply are two
    kv_bytes: int  # of the files of the rows it refers to
    model: str
    parent: str | None = None
    untrusted: bool = False  # its KV rows were imported: nobody here computed them
    pinned: bool = False  # its KV rows stay whatever else wants the room
    seq: int = 0  # larger: used later, whatever the clock says
    made: int = 0  # larger: made later, whatever the clock says


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
