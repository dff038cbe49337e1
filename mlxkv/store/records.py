"""Records that the store takes and returns, and sanity checks of single database values. No SQL, no files, no MLX.

Records are frozen dataclasses that may cross threads. Checks guard against damaged pages, which may hold any value of
any type: digests become paths. Turns need no checks, their digest chain covers them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mlxkv.events import ToolCall
from mlxkv.store.identity import ModelIdentity

_LAST = 253_402_214_400.0  # seconds: a day before the year 10000, for any time zone
_DIGEST = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLOCK = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", re.ASCII)
MAX_SEED = (1 << 63) - 1

MAX_TITLE = 1 << 16


class Kind(StrEnum):
    """Where a session comes from: a chat, one run of print mode, the endpoint."""

    CHAT = "chat"
    RUN = "run"
    ENDPOINT = "endpoint"


KINDS = tuple(Kind)


@dataclass(frozen=True)
class Attachment:
    """A file sent with a message: `text[start:end]` of the message is its content, empty if that was left out."""

    name: str
    media_type: str = "text/plain"
    start: int = 0
    end: int = 0


class TurnState(StrEnum):
    """How complete a stored turn is."""

    DONE = "done"
    OPEN = "open"  # a reply that is still being generated
    STOPPED = "stopped"


@dataclass(frozen=True)
class TurnRecord:
    """One message of a session. After it the session's token log is `log[:start] + ids`.

    Attributes:
        role: "user", "assistant", or "tool" with the result of the call `tool_call_id`.
        text: the message.
        ids: its token ids.
        start: None means "at the end of the log" and is filled in when the record is stored; it is less than the log's
            length if a chat template rewrote history.
        thinking: the reasoning before the text.
        state: "done", "open" (a reply still streaming) or "stopped".
        params: the sampling parameters of a reply.
        stats: the figures of a reply, by the names of TurnStats.
        tool_calls: calls that the reply asks for.
        attachments: files sent with the message.
        tool_call_id: see `role`.
    """

    role: str
    text: str
    ids: tuple[int, ...] = ()
    start: int | None = None
    thinking: str = ""
    state: str = TurnState.DONE
    params: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    tool_calls: tuple[ToolCall, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class SessionRecord:
    """A snapshot of a whole session. Times are UNIX seconds; `log` is the replay of the turns.

    `id` is empty, and `parent` None, in a session that was read from a document and is in no store yet. `clock` is the
    time that the chat template prints, ISO 8601 with offset; None in chats of older versions, which print `created`.
    `settings` are the chat's own, by name; `preset` is the name they were taken from. `origin` identifies an imported
    chat at its source. `seed` seeds the keys that tokens are sampled with.
    """

    id: str
    title: str
    created: float
    updated: float
    model: ModelIdentity
    system: str | None
    params: Mapping[str, Any]
    parent: str | None
    forked_at: int | None  # turns shared with the parent
    turns: tuple[TurnRecord, ...]
    log: tuple[int, ...]
    head: str
    kind: Kind = Kind.CHAT
    clock: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    origin: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class KVCommit:
    """The outcome of a save: rows of positions before `pos` are on disk; `bytes_written` were added to the disk.

    `notice` says in one sentence why less than the whole log could be saved.
    """

    pos: int
    bytes_written: int
    notice: str | None = None


@dataclass(frozen=True)
class Restored:
    """What a resume loaded from disk.

    Attributes:
        tokens: tokens of the chat that the cache holds now, and that are not prefilled again.
        bytes: bytes read from disk.
        seconds: the time it took.
        notice: one sentence if saved rows could not be used, else None.
        rng: the state of the random numbers after these tokens, with which sampling continues; None if none was saved.
        shared: of the tokens, those whose rows another chat with the same beginning saved.
        is_other: the saved rows were made with another model or setting, which `notice` says.
        evicted: of the tokens, those that had been evicted from the window, so that nothing was loaded for them.
    """

    tokens: int
    bytes: int
    seconds: float
    notice: str | None = None
    rng: bytes | None = None
    shared: int = 0
    evicted: int = 0
    is_other: bool = False


# -- sanity checks ---------------------------------------------------------------------------------------------------


def is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_chunk(digest: object, size: object, group: object, a: object, b: object, key: object = "") -> bool:
    """Whether these can be a row of `chunk`; only its checksum and key show whether they are true."""
    if not (is_digest(digest) and isinstance(group, str) and isinstance(key, str)):
        return False
    return isinstance(size, int) and isinstance(a, int) and isinstance(b, int) and size > 0 and 0 <= a < b


def is_clock(value: object) -> bool:
    """Whether it is a local time with offset, to the second: "2026-11-29T23:58:12+01:00"."""
    if not (isinstance(value, str) and _CLOCK.fullmatch(value)):
        return False
    try:
        return datetime.datetime.fromisoformat(value).astimezone(datetime.UTC) is not None
    except (ValueError, OverflowError):
        return False


def is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_SEED


def as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def as_time(value: object) -> float:
    """Seconds since the epoch within the range of calendars, else 0."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _LAST else 0.0
