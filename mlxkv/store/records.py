"""The values the store takes and gives: plain frozen dataclasses that may cross threads. No SQL, no files, no MLX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxkv.store.identity import ModelIdentity


@dataclass(frozen=True)
class TurnRecord:
    """One turn. After it the session's token log is `log[:start] + ids`.

    `start` None means "at the end of the log" and is filled in when the turn is stored; it is smaller than the log
    when a chat template rewrote history. `state`: "done", "open" (a reply still streaming), "stopped".
    """

    role: str
    text: str
    ids: tuple[int, ...] = ()
    start: int | None = None
    thinking: str = ""
    state: str = "done"
    params: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionRecord:
    """A whole session as of one moment. Times are UNIX seconds; `log` is the replay of the turns."""

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


@dataclass(frozen=True)
class SearchHit:
    """A turn that matches, or a title: then `turn` is None and `role` "title".

    `snippet` is one line of the text as it is; `marks` are the spans of it [start, end) that were looked for.
    """

    session_id: str
    title: str
    turn: int | None
    role: str
    snippet: str
    marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class KVCommit:
    """The rows of positions before `pos` are on disk; `bytes_written` is what this commit added to the disk.

    `notice` says in one sentence why less than the whole log could be kept.
    """

    pos: int
    bytes_written: int
    notice: str | None = None


@dataclass(frozen=True)
class Restored:
    """`tokens` of the prompt are back in the cache after reading `bytes` in `seconds`.

    `rng` is the sampler state saved at exactly this point of the log, None if there is none; `notice` is one sentence
    when rows that were saved could not be used. `shared` of the tokens are rows of another chat that began alike.
    """

    tokens: int
    bytes: int
    seconds: float
    notice: str | None = None
    rng: bytes | None = None
    shared: int = 0
