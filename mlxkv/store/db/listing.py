"""The list of chats: sessions as the user sees them. Reads no messages but the questions at which forks depart.

`versions.py` decides what is a chat. Inside a transaction of the caller. Engine thread.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mlxkv.protocol.branch_names import Departure
from mlxkv.protocol.status import ChatSummary
from mlxkv.store.db.database import FLAGS, LISTED, PINNED, UNTRUSTED
from mlxkv.store.db.versions import Member, chats_of, departures, has_own_title, is_version
from mlxkv.store.records import Kind, as_text, as_time

NEWEST_FIRST = "ORDER BY s.seq DESC, s.updated DESC, s.id DESC"


class ListedSession(NamedTuple):
    """Columns of a session. `commit`: its newest one, None if it has none."""

    id: str
    title: object
    updated: object
    num_turns: int
    commit: int | None
    model: object
    parent: str | None
    forked_at: object
    flags: int
    kind: object
    seq: int
    made: int
    head: object


def read_sessions(db: sqlite3.Connection) -> list[ListedSession]:
    """All sessions that are not the endpoint's, newest first."""
    rows = db.execute(
        f"""SELECT s.id, s.title, s.updated, (SELECT count(*) FROM turn WHERE session = s.id),
             (SELECT max(id) FROM kv_commit WHERE session = s.id), m.name, s.parent, s.forked_at, {FLAGS}, s.kind,
             s.seq, s.rowid, s.head
           FROM session s JOIN model m ON m.id = s.model WHERE {LISTED} {NEWEST_FIRST}"""
    )
    return [ListedSession(*row) for row in rows if isinstance(row[0], str)]


class Departures:
    """Where forks depart, read once for each state of a session."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Departure | None]] = {}

    def read(self, db: sqlite3.Connection, sessions: Sequence[ListedSession]) -> dict[str, Departure]:
        forks = [s for s in sessions if s.parent]
        new = [s for s in forks if self._known.get(s.id, (None,))[0] != (s.head, s.parent, s.forked_at)]
        if new:
            found = departures(db, LISTED if len(new) > 1 else "s.id = ?", *(() if len(new) > 1 else (new[0].id,)))
            self._known |= {s.id: ((s.head, s.parent, s.forked_at), found.get(s.id)) for s in new}
        return {s.id: departure for s in forks if (departure := self._known[s.id][1]) is not None}


def summaries(
    sessions: Sequence[ListedSession], departed: Mapping[str, Departure], kv_bytes: Callable[[str], int]
) -> tuple[ChatSummary, ...]:
    """The rows of the list, in the order of `sessions`. `kv_bytes`: of a session."""
    parents = {s.parent for s in sessions}
    family = [s for s in sessions if s.parent or s.id in parents]
    titles = {s.id: as_text(s.title) for s in family}
    chats, origins = chats_of(
        Member(
            s.id, s.parent, (s.seq, s.updated, s.id), is_version(s.parent, s.flags, departed.get(s.id)),
            s.num_turns <= (s.forked_at if isinstance(s.forked_at, int) else 0), s.kind == Kind.RUN,
        )
        for s in family
    )  # fmt: skip
    versions: dict[str, list[str]] = defaultdict(list)
    for id, chat in chats.items():
        if chat != id:
            versions[chat].append(id)

    def summary(s: ListedSession) -> ChatSummary:
        chat, departure = chats.get(s.id, s.id), departed.get(s.id)
        origin = origins.get(chat)
        kind = Kind.CHAT if chat == s.id else "version"
        if (
            departure is not None
            and chat == s.id
            and (origin is None or has_own_title(s.flags, titles[s.id], titles.get(s.parent or "", "")))
        ):
            departure = None
        return ChatSummary(
            s.id, as_text(s.title), as_time(s.updated), s.num_turns, kv_bytes(s.id), as_text(s.model),
            origin if chat == s.id else chat,
            bool(s.flags & UNTRUSTED), bool(s.flags & PINNED), s.seq, s.made,
            Kind.RUN if s.kind == Kind.RUN else kind, departure, tuple(versions[s.id]) if s.id in versions else (),
        )  # fmt: skip

    return tuple(map(summary, sessions))
