"""What the engine reads off itself for those who look: ring, footer, window, totals. Plain values; any thread."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheView:
    """The ring as rows, for those who look at it. `head` is the row the next token is written to.

    Rows: `pinned`, then up to `capacity` those attended, `live` of them written; then `undo` that hold what was evicted
    last. `evicted` counts tokens since the chat began; `bits` None is the model's own precision.
    """

    pinned: int
    live: int
    capacity: int
    head: int
    undo: int
    evicted: int
    allocated_bytes: int
    live_bytes: int
    bits: int | None = None


@dataclass(frozen=True)
class SessionStatus:
    """The footer: the session's state, not the turn's. Bytes and tokens; `memory_limit` 0 when unknown."""

    kv_bytes: int = 0
    cache_tokens: int = 0
    cache_window: int = 0
    memory_used: int = 0
    memory_limit: int = 0
    saved: str = ""  # "" (nothing to save) | "saving" | "saved" | "not saved: <why>" | "off"
    cache: CacheView | None = None
    weight_bytes: int = 0
    disk_bytes: int = 0  # rows of all chats and named prompt caches
    disk_limit: int = 0  # 0: none
    session_id: str | None = None  # of the chat in front, once it is saved
    fork: int = 0  # which of the forks of its family that chat is, from 1 in the order they were made; 0: none


@dataclass(frozen=True)
class ContextPart:
    """What one message takes of the window: `live` of its `tokens` are attended, the rest is evicted."""

    role: str  # "system" | "user" | "assistant"
    text: str
    tokens: int
    live: int


@dataclass(frozen=True)
class ContextUse:
    parts: tuple[ContextPart, ...]
    window: int
    pinned: int


@dataclass(frozen=True)
class ModelTight:
    """A model that was not loaded, because it needs more than there is: bytes at its peak, usable, and of the machine.

    `four_bit`: with a KV cache in 4 bits it would fit.
    """

    name: str
    need: int
    usable: int
    total: int
    four_bit: bool = False

    @property
    def text(self) -> str:
        """`Qwen3-32B needs ~19.2 GB, 17.5 GB usable (of 24)`."""
        short = self.name.rstrip("/").rsplit("/", 1)[-1]
        unit, size = ("GB", 1e9) if self.usable >= 1e9 else ("MB", 1e6)
        need, usable = (f"{n / size:.1f}" for n in (self.need, self.usable))
        total = f"{self.total / size:.0f}" if self.total < 1000 * size else f"{self.total / 1e9:.0f} GB"
        return f"{short} needs ~{need} {unit}, {usable} {unit} usable (of {total})"


@dataclass(frozen=True)
class CompactPlan:
    """What compacting the chat in front would do, in tokens.

    The last `kept_messages` stay as they are; of the `older_messages` before them a summary is made, for which
    `ask_tokens` are read and at most `summary_tokens` (0: this model cannot) written. `gone_tokens` of the older ones
    have rotated out already: no summary has them.
    """

    model: str
    window: int
    kept_messages: int
    kept_tokens: int
    older_messages: int
    older_tokens: int
    gone_tokens: int = 0
    ask_tokens: int = 0
    summary_tokens: int = 0


@dataclass(frozen=True)
class SessionFigures:
    """A chat in numbers, and everything on disk. Rates are tokens per second over all turns, 0 where unknown."""

    num_turns: int = 0  # questions, with their replies
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
    all_disk_bytes: int = 0  # rows of all chats, and named prompt caches, with their folders, as `du` counts
    all_written_bytes: int = 0
    disk_limit: int = 0
    named_disk_bytes: int = 0  # of `all_disk_bytes`
    cached_evicted_tokens: int = 0  # of `cached_tokens`
    num_messages: int = 0  # questions and replies


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
