"""Versions: sessions that retry, edit and undo make are no chats of their own, but versions of one.

A chat is a session that the user began, forked or renamed, with the versions made in it. It is listed as the version
that was continued last. Inside a transaction of the caller. Engine thread.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlxkv.protocol.branch_names import Departure
from mlxkv.store.db.database import IS_FORK, IS_NAMED, IS_VERSION
from mlxkv.store.records import as_text

_HEAD = 300  # characters read of a question
_NUMBER = re.compile(r" \(\d+\)$")
_BRANCH = IS_FORK | IS_VERSION


class Member(NamedTuple):
    """What decides which chat a session belongs to. `order`: larger: used later. `is_empty`: it has nothing but what it
    was forked with. `is_run`: print mode made it."""

    id: str
    parent: str | None
    order: tuple[object, ...]
    is_version: bool
    is_empty: bool
    is_run: bool


def is_version(parent: object, flags: object, departure: Departure | None) -> bool:
    """Whether a session is a version of its parent's chat. Older mlxkv wrote no flag: of theirs, retries are."""
    bits = flags if isinstance(flags, int) else 0
    if not parent or bits & IS_FORK:
        return False
    return bool(bits & IS_VERSION) or (departure is not None and departure.is_retry)


def has_own_title(flags: object, title: str, parent_title: str) -> bool:
    """Whether the user named a fork. Older mlxkv did not record that; it gave forks their parent's title with a
    number."""
    bits = flags if isinstance(flags, int) else 0
    if bits & (_BRANCH | IS_NAMED):
        return bool(bits & IS_NAMED)
    return _NUMBER.sub("", title) != _NUMBER.sub("", parent_title)


def chats_of(members: Iterable[Member]) -> tuple[dict[str, str], dict[str, str | None]]:
    """The session that each session's chat is listed as; and of these, the chat that each was forked from."""
    known = {member.id: member for member in members}
    roots: dict[str, str] = {}
    for member in known.values():
        path, at = list[str](), member
        while at.id not in roots and at.is_version and at.parent in known and at.id not in path:
            path.append(at.id)
            at = known[at.parent]
        root = roots.get(at.id, at.id)
        roots.update(dict.fromkeys([*path, at.id], root))
    listed: dict[str, Member] = {}
    for id, root in roots.items():
        member, best = known[id], listed.get(root)
        if best is None or _rank(member) > _rank(best):
            listed[root] = member
    chats = {id: listed[root].id for id, root in roots.items()}
    return chats, {member.id: chats.get(known[root].parent or "") for root, member in listed.items()}


def _rank(member: Member) -> tuple[object, ...]:
    return not member.is_run, not member.is_empty, member.order


def departures(db: sqlite3.Connection, where: str, *values: object) -> Mapping[str, Departure]:
    """Where the forks among the sessions `s` of the condition `where` depart from their parents."""
    question = f"SELECT substr(text, 1, {_HEAD}) FROM turn WHERE session = s.id AND role = 'user' AND i"
    at = "coalesce(s.forked_at, 0)"
    rows = db.execute(
        f"""SELECT s.id, ({question} >= {at} ORDER BY i LIMIT 1), ({question} < {at} ORDER BY i DESC LIMIT 1),
             coalesce(own.role = 'assistant' OR (own.role = 'user' AND own.text = other.text), 0),
             s.system IS NOT p.system
           FROM session s JOIN session p ON p.id = s.parent
           LEFT JOIN turn own ON own.session = s.id AND own.i = {at}
           LEFT JOIN turn other ON other.session = p.id AND other.i = {at} AND other.role = own.role
           WHERE {where}""",
        values,
    )
    return {
        id: Departure(as_text(own), as_text(after), bool(same), bool(changed)) for id, own, after, same, changed in rows
    }


def take_out(db: sqlite3.Connection, session_id: str) -> None:
    """Put the oldest version that was made from a session in its place, so that it can be deleted or become a chat of
    its own. Its forks stay its own."""
    row = db.execute("SELECT parent, forked_at, flags FROM session WHERE id = ?", (session_id,)).fetchone()
    found = departures(db, "s.parent = ?", session_id)
    versions = [
        (id, shared or 0)
        for id, shared, flags in db.execute(
            "SELECT id, forked_at, flags FROM session WHERE parent = ? ORDER BY rowid", (session_id,)
        )
        if is_version(session_id, flags, found.get(id))
    ]
    if row is None or not versions:
        return
    (parent, shared, flags), (heir, inherited) = row, versions[0]
    place = "UPDATE session SET parent = ?, forked_at = ?, flags = (flags & ?) | ? WHERE id = ?"
    at = None if parent is None else min(shared or 0, inherited)
    db.execute(place, (parent, at, ~_BRANCH, flags & _BRANCH, heir))
    for id, at in versions[1:]:
        db.execute(place, (heir, min(at, inherited), ~_BRANCH, IS_VERSION, id))
    if parent is None:
        db.execute(place, (heir, inherited, ~_BRANCH, IS_FORK, session_id))


def make_chat(db: sqlite3.Connection, session_id: str) -> None:
    """Make a version a chat of its own."""
    take_out(db, session_id)
    db.execute(f"UPDATE session SET flags = (flags & ?) | {IS_FORK | IS_NAMED} WHERE id = ?", (~_BRANCH, session_id))
