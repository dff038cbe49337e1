"""What the window and the line mode ask of the engine: plain frozen dataclasses that may cross threads.

Commands are answered in order, each by events of `mlxkv.events`; `PausePull` alone does not wait its turn.
Message numbers count from 0, the user's and the model's alike. No MLX, no textual.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.config import Settings

# -- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadModel:
    """Load a built-in name, folder or repository id: `ModelReady`. The open chat, if any, goes on with it.

    A repository that is not here is downloaded first, beside the chat: `PullProgress`, which ends with "done". With
    `ask` nobody named it just now, and nothing is downloaded: `ModelMissing`.

    What would not fit is not loaded: `ModelTight`; `anyway` loads it all the same, `kv_bits` with that KV cache.
    """

    name: str
    ask: bool = False
    anyway: bool = False
    kv_bits: int | None = None


@dataclass(frozen=True)
class ListModels:
    """The models on this machine and those of the catalogue, or the `fitting` ones alone: `ModelList`."""

    fitting: bool = False


@dataclass(frozen=True)
class Pull:
    """Download a repository, or go on with a download that was paused; answered by `PullProgress`, in its own time."""

    name: str


@dataclass(frozen=True)
class PausePull:
    """Stop the download and keep what has arrived."""


# -- chats -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewChat:
    system: str | None = None


@dataclass(frozen=True)
class OpenChat:
    """Resume a session by id."""

    session_id: str


@dataclass(frozen=True)
class CheckChat:
    """Whether the chat in front, which another process has open, can be had now: then `ChatReleased`, else nothing."""


@dataclass(frozen=True)
class ListChats:
    """Every saved chat: `ChatList`."""


@dataclass(frozen=True)
class SearchChats:
    """The turns that hold every word of `words`: `ChatHits`."""

    words: str


@dataclass(frozen=True)
class ShowTree:
    """The chat in front with all it was forked from and into: `ChatTree`."""


@dataclass(frozen=True)
class RenameChat:
    """Answered by `ChatRenamed`. `session_id` None means the chat in front, here and below."""

    title: str
    session_id: str | None = None


@dataclass(frozen=True)
class DeleteChat:
    """Remove a chat and the rows only it uses: `ChatDeleted`. The one in front gives way to a new chat."""

    session_id: str | None = None


@dataclass(frozen=True)
class ExportChat:
    """Write a chat to a file: `ChatExported`. An empty `path` names the file by the title."""

    format: str = "md"  # one of `export_format.CHAT_FORMATS`
    path: str = ""
    session_id: str | None = None


# -- turns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send `text` as the next user turn; `sent_at` is `time.perf_counter()` at Enter.

    Of a message that is too long for the window nothing is sent: `MessageTooLong`; `anyway` sends it all the same.
    """

    text: str
    sent_at: float
    anyway: bool = False


@dataclass(frozen=True)
class Retry:
    """Generate reply number `turn` (None: the last) again; the old one stays as a sibling."""

    turn: int | None = None


@dataclass(frozen=True)
class Edit:
    """Say `text` instead of the user's message number `turn`; what followed stays as a sibling. Else as `Send`."""

    turn: int
    text: str
    sent_at: float
    anyway: bool = False


@dataclass(frozen=True)
class Continue:
    """Go on with a reply that was stopped or cut off."""


@dataclass(frozen=True)
class Rewind:
    """Go on before the user's message number `turn` (None: the last); its text comes back in `ChatOpened.prompt`."""

    turn: int | None = None


@dataclass(frozen=True)
class Fork:
    """Go on in a copy: before a message of the user's, after a reply, or with everything (None)."""

    turn: int | None = None


@dataclass(frozen=True)
class PlanCompact:
    """What compacting the chat in front would keep and cost: `CompactPlan`."""


@dataclass(frozen=True)
class Compact:
    """Go on in a branch with the last messages, and (`summarise`) a summary of those before them: `Compacted`."""

    summarise: bool = True


# -- what counts, and what is looked at ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangeSettings:
    """From now on these hold: sampling at once, bounds of the cache by reading the chat again."""

    settings: Settings


@dataclass(frozen=True)
class SetSystem:
    """The system prompt of this chat if it is empty, else of the next one. None takes it away."""

    text: str | None


@dataclass(frozen=True)
class ShowContext:
    """What fills the window: `ContextUse`."""


@dataclass(frozen=True)
class ListCache:
    """What KV lies on the disk: `CacheList`."""


@dataclass(frozen=True)
class CollectCache:
    """Remove from the disk what nothing uses: `CacheCollected`."""


@dataclass(frozen=True)
class PinChat:
    """Keep the rows of the chat in front on the disk whatever else wants the room; if so already, no longer."""


@dataclass(frozen=True)
class CountTokens:
    """How many tokens `text` has: `TokensCounted` with the same `key`, nothing where there is no model to ask."""

    key: str
    text: str


@dataclass(frozen=True)
class ShowStats:
    """The figures of this chat and of everything on disk: `SessionFigures`."""


@dataclass(frozen=True)
class Shutdown:
    pass


Command = (
    LoadModel
    | ListModels
    | Pull
    | PausePull
    | NewChat
    | OpenChat
    | CheckChat
    | ListChats
    | SearchChats
    | ShowTree
    | RenameChat
    | DeleteChat
    | ExportChat
    | Send
    | Retry
    | Edit
    | Continue
    | Rewind
    | Fork
    | PlanCompact
    | Compact
    | ChangeSettings
    | SetSystem
    | ShowContext
    | ListCache
    | CollectCache
    | PinChat
    | CountTokens
    | ShowStats
    | Shutdown
)
