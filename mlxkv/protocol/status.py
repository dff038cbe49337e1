"""Status values inside events: footer, ring, context usage, totals, rows of lists. Any thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mlxkv.protocol.branch_names import Departure


@dataclass(frozen=True)
class CacheView:
    """The ring in rows. `head` is the row that the next token is written to.

    `live` of `capacity` rows are attended, the first `pinned` of them always; `undo` more rows hold the tokens
    evicted last. `evicted` counts tokens since the chat began; `bits` None is the model's own precision, "8/4" those of
    keys and values.
    """

    pinned: int
    live: int
    capacity: int
    head: int
    undo: int
    evicted: int
    allocated_bytes: int
    live_bytes: int
    bits: int | str | None = None


class SaveState(StrEnum):
    """Whether the open chat is on disk."""

    NOTHING = ""  # nothing to save yet
    SAVING = "saving"
    SAVED = "saved"
    NOT_SAVED = "not saved"  # `SessionStatus.save_problem` says why
    OFF = "off"


@dataclass(frozen=True)
class Unattended:
    """The part of the open chat that no layer attends to any more: `tokens` of `num_messages` messages.

    What is attended begins in message number `message`, after `chars` characters of its text; None: after some of it,
    and it is not known how much. Apart from that the first `pinned` tokens are attended: with `pins_system` all of the
    system prompt, and the first `pinned_messages` messages. `in_state`: recurrent layers have all of it in their state.
    """

    tokens: int
    num_messages: int
    message: int
    chars: int | None = 0
    pinned: int = 0
    pins_system: bool = False
    pinned_messages: int = 0
    in_state: bool = False


@dataclass(frozen=True)
class SessionStatus:
    """State of the session for the footer, in bytes and tokens; `memory_limit` is 0 if unknown."""

    kv_bytes: int = 0
    cache_tokens: int = 0
    cache_window: int = 0
    memory_used: int = 0
    memory_limit: int = 0
    saved: SaveState = SaveState.NOTHING
    cache: CacheView | None = None
    weight_bytes: int = 0
    disk_bytes: int = 0  # rows of all chats and named prompt caches
    disk_limit: int = 0  # 0: none
    session_id: str | None = None  # of the open chat, once it is saved
    fork: int = 0  # the number of this fork in its family, from 1 in the order they were made; 0: no fork
    save_problem: str = ""
    unloaded: bool = False  # the next message loads the model again
    unattended: Unattended | None = None  # None: all of the chat is attended


@dataclass(frozen=True)
class ContextPart:
    """A message's share of the window: `live` of its `tokens` are attended, `waiting` are yet to be prefilled, and the
    others are evicted. A system prompt without a text is the chat template's own."""

    role: str  # "system" | "user" | "assistant"
    text: str
    tokens: int
    live: int
    waiting: int = 0


@dataclass(frozen=True)
class StateUsage:
    """What the recurrent layers of a chat take, in bytes.

    `state` is one state; its checkpoints, at `positions` in tokens, take `checkpoints` bytes of at most `limit`. On
    disk the chat has `disk_rows` and `disk_states`; None: it is not saved.
    """

    state: int
    checkpoints: int
    limit: int
    positions: tuple[int, ...] = ()
    disk_rows: int | None = None
    disk_states: int | None = None


@dataclass(frozen=True)
class ContextUsage:
    """How the window is used, in tokens: the `live` ones of the parts are SessionStatus.cache_tokens together.

    `removed`: what the chat template left out of the reply before the last question, such as its reasoning; `again`:
    tokens prefilled a second time for that. `recurrent` is None if the model has no recurrent layers.
    """

    parts: tuple[ContextPart, ...]
    window: int
    pinned: int
    removed: int = 0
    again: int = 0
    recurrent: StateUsage | None = None


@dataclass(frozen=True)
class ModelTooLarge:
    """A model that was not loaded for lack of memory: bytes needed at its peak, usable, and in the machine.

    `kv_bits`: the most bits of a KV cache with which it would fit, None if there are none. `draft`: the model that
    would draft for it, and is counted.
    """

    name: str
    need: int
    usable: int
    total: int
    kv_bits: int | str | None = None
    draft: str = ""

    @property
    def text(self) -> str:
        """`Qwen3-32B needs ~19.2 GB, 17.5 GB usable (of 24)`."""
        names = [name.rstrip("/").rsplit("/", 1)[-1] for name in (self.name, self.draft) if name]
        short = " with the draft model ".join(names)
        unit, size = ("GB", 1e9) if self.usable >= 1e9 else ("MB", 1e6)
        need, usable = (f"{n / size:.1f}" for n in (self.need, self.usable))
        total = f"{self.total / size:.0f}" if self.total < 1000 * size else f"{self.total / 1e9:.0f} GB"
        return f"{short} needs ~{need} {unit}, {usable} {unit} usable (of {total})"


@dataclass(frozen=True)
class CompactPlan:
    """What compacting the open chat would do, in tokens.

    The last `kept_messages` stay unchanged. The `older_messages` before them are summarised, which prefills
    `ask_tokens` and generates at most `summary_tokens` (0: this model cannot). `evicted_tokens` of the older ones are
    in no summary, since the window no longer holds them.
    """

    model: str
    window: int
    kept_messages: int
    kept_tokens: int
    older_messages: int
    older_tokens: int
    evicted_tokens: int = 0
    ask_tokens: int = 0
    summary_tokens: int = 0


@dataclass(frozen=True)
class SessionStats:
    """Totals of a chat and of the disk. Rates are tokens per second over all turns, 0 if unknown."""

    num_turns: int = 0  # questions with their replies
    generated_tokens: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    evicted_tokens: int = 0
    decode_tps: float = 0.0
    prefill_tps: float = 0.0
    kv_bytes: int = 0
    disk_bytes: int = 0
    disk_written_bytes: int = 0
    num_chats: int = 0
    all_disk_bytes: int = 0  # all chats and named prompt caches, as `du` counts
    all_written_bytes: int = 0
    disk_limit: int = 0
    named_disk_bytes: int = 0  # of `all_disk_bytes`
    cached_evicted_tokens: int = 0  # of `cached_tokens`
    num_messages: int = 0  # questions and replies
    tokens_per_step: float = 0.0  # generated by a call of the model; 0: nothing was drafted


@dataclass(frozen=True)
class ChatSummary:
    """One row of a list of chats. Times are UNIX seconds.

    `kind` is "chat", "version" (of the chat `parent`, which retry, edit or undo left) or "run" (of print mode). A chat
    is one that the user began or forked, listed as the version continued last; `versions` are the others, and `parent`
    is the chat that it was forked from. `departure`: where a fork or version departs, unless the user has named it.
    """

    id: str
    title: str
    updated: float
    num_turns: int  # messages: a question and its reply count as two
    kv_bytes: int  # of the chunk files it refers to
    model: str
    parent: str | None = None
    untrusted: bool = False  # its KV rows were imported, not computed here
    pinned: bool = False  # its KV rows are exempt from the disk limit
    seq: int = 0  # larger: used later, independent of the clock
    made: int = 0  # larger: created later, independent of the clock
    kind: str = "chat"
    departure: Departure | None = None
    versions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in lists: a branch by where it departs."""
        return self.departure.text if self.departure else self.title


@dataclass(frozen=True)
class SearchHit:
    """A message that matches a search, or a title (`turn` None, `role` "title").

    `snippet` is one line of the text; `marks` are its matching spans [start, end).
    """

    session_id: str
    title: str
    turn: int | None
    role: str
    snippet: str
    marks: tuple[tuple[int, int], ...] = ()
