"""Events from the engine to a front end: frozen dataclasses that may cross threads. No MLX, no textual.

The events of one turn are public, in `mlxkv.events`; they are exported again here, so that front ends need one module.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mlxkv.events import (  # noqa: F401 - exported again
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
from mlxkv.protocol.status import (  # ChatSummary and SearchHit are exported again
    ChatSummary,
    CompactPlan,
    ContextUsage,
    ModelTooLarge,
    SearchHit,
    SessionStats,
    SessionStatus,
)  # fmt: skip
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.stats import Overflow


class LoadPhase(StrEnum):
    DOWNLOADING = "downloading"
    LOADING = "loading"


class PullState(StrEnum):
    ASKING = "asking"  # the hub, for the list of files
    DOWNLOADING = "downloading"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    TOO_LARGE = "too large"  # it would not fit in memory, so nothing was downloaded


class FailureKind(StrEnum):
    OTHER = ""
    MEMORY = "memory"  # it would not fit
    DISK = "disk"  # no space left
    LOCKED = "locked"  # the chat is open in another process
    STOPPED = "stopped"  # by the user


@dataclass(frozen=True)
class ModelLoading:
    """Progress in bytes; `total` is 0 while unknown."""

    name: str
    phase: LoadPhase = LoadPhase.LOADING
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class ModelReady:
    name: str
    weight_bytes: int
    load_s: float
    has_chat_template: bool
    adapter: str = ""  # its folder or repository


@dataclass(frozen=True)
class ModelUnloaded:
    """The model's memory was given back: `freed` bytes. The next message loads it again, and prefills the `again`
    tokens of a chat that is not saved. `is_idle`: nobody asked for it."""

    name: str
    freed: int
    again: int = 0
    is_idle: bool = False


@dataclass(frozen=True)
class ChatOpened:
    """This is the open chat now. `restored_tokens` were restored from disk in `restore_s`, not counting evicted ones.

    `restored_bytes` they take in memory, as SessionStatus counts.
    `prompt` is a message returned to the user for editing; `read_only` says who else has the chat open.
    `left_tokens` of the chat were not restored: the next turn prefills them. `evicted_tokens` were evicted before, as
    TurnStats counts them.
    """

    session_id: str | None
    title: str
    messages: tuple[Message, ...] = ()
    restored_tokens: int = 0
    restored_bytes: int = 0
    restore_s: float = 0.0
    prompt: str = ""
    read_only: str = ""
    left_tokens: int = 0
    evicted_tokens: int = 0


@dataclass(frozen=True)
class ChatReleased:
    """The other process has closed the open chat, which can be continued once it is opened again."""

    session_id: str


@dataclass(frozen=True)
class ChatList:
    chats: tuple[ChatSummary, ...]


@dataclass(frozen=True)
class ChatTree:
    """The open chat's ancestors and forks: each chat before its forks."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Versions:
    """The versions of each message of the open chat from number `first` on, including the chat's own."""

    messages: tuple[tuple[Sibling, ...], ...]
    first: int = 0


@dataclass(frozen=True)
class ChatHits:
    words: str
    hits: tuple[SearchHit, ...]


@dataclass(frozen=True)
class ChatRenamed:
    session_id: str
    title: str


@dataclass(frozen=True)
class ChatTitled:
    """The model has named the open chat."""

    session_id: str
    title: str


@dataclass(frozen=True)
class ChatSaved:
    """Where the open chat is saved: its title and the command line that continues it; None: nowhere.

    `problem` says in a sentence what is not saved, and why.
    """

    title: str | None = None
    command: str = ""
    problem: str = ""


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
    """KV on disk: `used` bytes of at most `limit` (0: no limit). `named`: prompt caches and their bytes. `states`:
    bytes of the chats' recurrent states."""

    chats: tuple[ChatSummary, ...]
    named: tuple[tuple[str, int], ...]
    used: int
    limit: int
    states: int = 0


@dataclass(frozen=True)
class CacheCollected:
    """Unused files were removed from the cache folder: bytes freed, and bytes still in use."""

    freed: int
    used: int


@dataclass(frozen=True)
class SettingsApplied:
    """A change of settings or presets is done; `text` says what it costs."""

    text: str


@dataclass(frozen=True)
class SettingsInForce:
    """The settings of the chat that is open now, and where they come from."""

    sources: SettingSources


@dataclass(frozen=True)
class PresetCard:
    """A row of the list of presets. `problem`: why it cannot be taken."""

    name: str
    summary: str
    problem: str = ""


@dataclass(frozen=True)
class PresetList:
    """`current`: the preset of the open chat, or ""."""

    presets: tuple[PresetCard, ...]
    current: str = ""


@dataclass(frozen=True)
class PresetTaken:
    """The open chat has taken a preset; `text` says what of it holds and what it costs. `model`: one to load, with
    `adapter`, "" if the loaded one is right."""

    name: str
    text: str
    model: str = ""
    adapter: str | None = None


@dataclass(frozen=True)
class PresetExists:
    """The answer to `SavePreset`: there is one of this name, which may be replaced."""

    name: str


@dataclass(frozen=True)
class SaveProgress:
    """Progress in bytes of a long save of KV rows; `done` is `total` at the end."""

    done: int
    total: int


@dataclass(frozen=True)
class TokensCounted:
    """The answer to the `CountTokens` with the same `key`."""

    key: str
    tokens: int


@dataclass(frozen=True)
class Compacted:
    """The open chat is now a compacted branch: `tokens` of `window` (0: unlimited)."""

    has_summary: bool
    kept_messages: int
    tokens: int
    window: int


@dataclass(frozen=True)
class TurnStarted:
    """The user's message is on disk (unless the chat is not saved) and prefill begins."""

    text: str


@dataclass(frozen=True)
class MessageTooLong:
    """The answer to `Send` and `Edit`: `text` does not fit into the window, so it was not sent."""

    text: str
    overflow: Overflow


@dataclass(frozen=True)
class Failed:
    """A command failed; the engine continues. `text` is one sentence, `returned` a message that was not sent.
    `is_read`: the command was one of `READS`, and another may be in progress."""

    text: str
    kind: FailureKind = FailureKind.OTHER
    returned: str = ""
    is_read: bool = False


@dataclass(frozen=True)
class EngineStopped:
    """The engine thread has ended; this is the last event."""

    error: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """A row of the list of models. `is_local`: no download is needed; `fits`: memory suffices for it and a KV cache.

    `is_folder`: `id` is the path of a folder. `is_current`: the loaded model. `reason`: why it is suggested for this
    machine, "" if it is not. `quantization`: "4-bit", "" if unknown. `group`: the heading above it; "" for the usual
    one. `label`: a shorter name below that heading.
    """

    id: str
    size_bytes: int
    licence: str = ""
    note: str = ""
    fits: bool = True
    is_local: bool = False
    is_folder: bool = False
    is_current: bool = False
    reason: str = ""
    quantization: str = ""
    group: str = ""
    label: str = ""


@dataclass(frozen=True)
class ModelList:
    """`only_fitting`: models that do not fit were left out. `notes`: on folders without models."""

    models: tuple[ModelCard, ...]
    only_fitting: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelMissing:
    """The model of a chat is not on this disk; `size_bytes` to download, 0 if unknown."""

    name: str
    size_bytes: int = 0


@dataclass(frozen=True)
class PullProgress:
    """Progress of a download, in bytes and bytes per second.

    `text` says why it failed, `too_large` what it would need. `then_load`: the model is loaded once it is complete.
    """

    name: str
    state: PullState
    done: int = 0
    total: int = 0
    bytes_per_s: float = 0.0
    text: str = ""
    then_load: bool = False
    too_large: ModelTooLarge | None = None


EngineEvent = (
    PrefillProgress | TextDelta | Notice | TurnFinished | ModelLoading | ModelReady | ModelList | ModelMissing
    | ModelTooLarge | PullProgress | ChatOpened | ChatReleased | ChatList | ChatTree | Versions | ChatHits
    | ChatRenamed | ChatTitled | ChatSaved | ChatDeleted | ChatExported | SettingsApplied | ChatPinned | CacheList
    | CacheCollected | Compacted | SaveProgress | TokensCounted | CompactPlan | TurnStarted | SessionStatus
    | ContextUsage | SessionStats | SettingsInForce | PresetList | PresetTaken | PresetExists | ModelUnloaded
    | MessageTooLong | Failed | EngineStopped
)  # fmt: skip
