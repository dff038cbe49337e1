"""Commands from a front end to the engine: frozen dataclasses that may cross threads. No MLX, no textual.

Commands are handled in order, and answered by events of `protocol.events`. Only `PausePull` does not wait its turn, and
`READS` do not wait for the end of a reply, `READS_OF_DISK` not for that of a load either.
`turn` is the index of a message, the user's or the model's, from 0. `session_id` None means the open chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# -- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadModel:
    """Load a built-in name, folder or repository id: `ModelReady`. An open chat continues with the new model.

    A repository that is not on this machine is downloaded first, while the chat continues: `PullProgress`. With `ask`
    it is not downloaded: `ModelMissing`. A model that does not fit is not loaded: `ModelTooLarge`; `anyway` loads it
    nevertheless, `kv_bits` with a KV cache of that many bits. `adapter`: a LoRA adapter, as in `mlxkv.load`. `then`:
    for the front end, what it sends once the model is loaded.
    """

    name: str
    ask: bool = False
    anyway: bool = False
    kv_bits: int | str | None = None
    adapter: str | None = None
    then: Retry | None = None


@dataclass(frozen=True)
class Unload:
    """Save the open chat and give the model's memory back: `ModelUnloaded`. What needs the model next loads it again.

    `is_idle`: nobody asked for it; there is no event if it cannot be done now.
    """

    is_idle: bool = False


@dataclass(frozen=True)
class ListModels:
    """List the models on this machine and in the catalogue, or only the `fitting` ones: `ModelList`."""

    fitting: bool = False


@dataclass(frozen=True)
class Pull:
    """Download a repository, or continue a paused download: `PullProgress`."""

    name: str


@dataclass(frozen=True)
class PausePull:
    """Pause the download; the received part is kept."""


# -- chats -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewChat:
    """Start a chat: `ChatOpened`."""

    system: str | None = None


@dataclass(frozen=True)
class OpenChat:
    """Resume a session: `ChatOpened`."""

    session_id: str


@dataclass(frozen=True)
class CheckChat:
    """Check whether the other process has closed the open chat: `ChatReleased` if so, else no event."""


@dataclass(frozen=True)
class Pause:
    """The user has been away for a while: save what a long prefill would cost if the process ended. No event."""


@dataclass(frozen=True)
class SuggestTitle:
    """The user pauses after the first reply: let the model name the chat. `ChatTitled`, or no event."""


@dataclass(frozen=True)
class ShowSaved:
    """Write what is not on disk yet, and show where the chat is saved: `ChatSaved`."""


@dataclass(frozen=True)
class ListChats:
    """List the saved chats: `ChatList`."""


@dataclass(frozen=True)
class SearchChats:
    """Search for messages that contain every word of `words`: `ChatHits`."""

    words: str


@dataclass(frozen=True)
class ShowTree:
    """Show the ancestors and forks of the open chat: `ChatTree`."""


@dataclass(frozen=True)
class RenameChat:
    """Set the title: `ChatRenamed`."""

    title: str
    session_id: str | None = None


@dataclass(frozen=True)
class DeleteChat:
    """Delete a chat and the rows only it uses: `ChatDeleted`. A new chat replaces the open one."""

    session_id: str | None = None


@dataclass(frozen=True)
class ExportChat:
    """Write a chat to a file: `ChatExported`. With an empty `path` the file is named after the title."""

    format: str = "md"  # one of `export_format.CHAT_FORMATS`
    path: str = ""
    session_id: str | None = None


# -- turns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send `text` as the next user message; `sent_at` is `time.perf_counter()` at Enter.

    A message that does not fit into the window is not sent: `MessageTooLong`. `anyway` sends it nevertheless.
    """

    text: str
    sent_at: float
    anyway: bool = False


@dataclass(frozen=True)
class Retry:
    """Generate reply `turn` (None: the last) again; the old one stays as a sibling.

    `changes`: settings for this reply alone, by name: those of sampling, and `think`.
    """

    turn: int | None = None
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Edit:
    """Replace the user's message `turn` by `text`; the old branch stays. Otherwise as `Send`."""

    turn: int
    text: str
    sent_at: float
    anyway: bool = False


@dataclass(frozen=True)
class Continue:
    """Continue a reply that was stopped or cut off."""


@dataclass(frozen=True)
class Rewind:
    """Go back to before the user's message `turn` (None: the last); `ChatOpened.prompt` has its text."""

    turn: int | None = None


@dataclass(frozen=True)
class Fork:
    """Continue in a copy that ends before the user's message or after the reply `turn` (None: a full copy)."""

    turn: int | None = None


@dataclass(frozen=True)
class PlanCompact:
    """Ask what compacting the open chat would keep and cost: `CompactPlan`."""


@dataclass(frozen=True)
class Compact:
    """Continue in a branch with the last messages and (`summarise`) a summary of the older ones: `Compacted`."""

    summarise: bool = True


# -- settings and status ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangeSettings:
    """Change settings of the open chat, from its next reply on, and store them with it: `SettingsApplied`.

    `for_all`: they are the defaults of all chats, and the open one drops its own. It also drops those in `dropped`.
    """

    values: Mapping[str, Any]
    for_all: bool = False
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListPresets:
    """List the presets: `PresetList`."""


@dataclass(frozen=True)
class TakePreset:
    """Take a preset for the open chat: `PresetTaken`."""

    name: str


@dataclass(frozen=True)
class SavePreset:
    """Save what is in force in the open chat as a preset: `SettingsApplied`, or `PresetExists` without `replace`."""

    name: str
    replace: bool = False


@dataclass(frozen=True)
class RenamePreset:
    """Rename a preset, in the chats that took it, too: `SettingsApplied`."""

    name: str
    new: str


@dataclass(frozen=True)
class DeletePreset:
    """Delete a preset; chats keep what they took: `SettingsApplied`."""

    name: str


@dataclass(frozen=True)
class ShowContext:
    """Show how the window is used: `ContextUsage`."""


@dataclass(frozen=True)
class ListCache:
    """List the KV rows on disk: `CacheList`."""


@dataclass(frozen=True)
class CollectCache:
    """Remove unused files from the cache folder: `CacheCollected`."""


@dataclass(frozen=True)
class PinChat:
    """Toggle whether the rows of the open chat are exempt from the disk limit: `ChatPinned`."""


@dataclass(frozen=True)
class CountTokens:
    """Count the tokens of `text`: `TokensCounted` with the same `key`, no event without a model."""

    key: str
    text: str


@dataclass(frozen=True)
class ShowStats:
    """Show the totals of this chat and of the disk: `SessionStats`."""


@dataclass(frozen=True)
class Shutdown:
    """End the engine thread: `EngineStopped`."""


Command = (
    LoadModel | Unload | ListModels | Pull | PausePull | NewChat | OpenChat | CheckChat | Pause | ListChats
    | SearchChats    | ShowTree | RenameChat | DeleteChat | ExportChat | Send | Retry | Edit | Continue | Rewind | Fork
    | PlanCompact | Compact | ChangeSettings | ListPresets | TakePreset | SavePreset | RenamePreset | DeletePreset
    | ShowContext | ListCache | CollectCache | PinChat
    | SuggestTitle | ShowSaved | CountTokens | ShowStats | Shutdown
)  # fmt: skip

# Commands that change nothing: while a reply is written they are answered at once, with what is known then; those that
# need no model also while one is loaded, unless one before them waits for it.
READS_OF_DISK = (ListModels, ListChats, SearchChats, ListPresets, ListCache)
READS = (*READS_OF_DISK, ShowTree, ShowContext, CountTokens, ShowStats)
