"""Trees of forked chats, and the versions of each message. Inside a transaction of the caller. Engine thread.

Two messages are versions of each other if their `prev` digests are equal: the same history precedes them. Two replies
are, too, if the same question does, of which another model has other tokens; such questions are one version. Chats are
in the order of their SQL rows, since a clock may be wrong.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from mlxkv.events import Branch, Sibling
from mlxkv.protocol.branch_names import Departure
from mlxkv.store.db.database import FLAGS
from mlxkv.store.db.versions import departures, has_own_title, is_version
from mlxkv.store.records import as_text
from mlxkv.system.regular_file import parse_json

_FAMILY = """WITH RECURSIVE
  up(id, parent) AS (SELECT id, parent FROM session WHERE id = ?1
    UNION SELECT s.id, s.parent FROM session s JOIN up ON s.id = up.parent),
  family(id) AS (SELECT id FROM up WHERE parent IS NULL
    UNION SELECT s.id FROM session s JOIN family ON s.parent = family.id)"""


def tree(db: sqlite3.Connection, session_id: str) -> tuple[Branch, ...]:
    """All chats forked from the same root: each before its forks, forks in the order of creation. () if there is no
    such session."""
    children: dict[str | None, list[Branch]] = defaultdict(list)
    rows = db.execute(
        _FAMILY
        + " SELECT s.id, s.title, s.parent, s.forked_at, s.updated, (SELECT count(*) FROM turn WHERE session = s.id),"
        f" s.rowid, {FLAGS} FROM session s WHERE s.id IN family ORDER BY s.rowid",
        (session_id,),
    ).fetchall()
    found: dict[str, Departure] = {}
    for row in rows:
        found |= departures(db, "s.id = ?", row[0]) if row[2] is not None else {}
    titles = {row[0]: as_text(row[1]) for row in rows}
    for row in rows:
        *columns, flags = row
        id, parent, departure = row[0], row[2], found.get(row[0])
        version, parent_title = is_version(parent, flags, departure), titles.get(parent, "")
        inherited = version and titles[id] == parent_title  # which all versions of a named chat are called
        own = departure is None or (has_own_title(flags, titles[id], parent_title) and not inherited)
        name = titles[id] if own or departure is None else departure.text
        children[parent].append(Branch(*columns, is_current=id == session_id, name=name, is_version=version))
    out: list[Branch] = []
    waiting = children[None][::-1]
    while waiting:
        out.append(branch := waiting.pop())
        waiting += children[branch.session_id][::-1]
    return tuple(out)


def siblings(db: sqlite3.Connection, session_id: str, first: int = 0) -> tuple[tuple[Sibling, ...], ...]:
    """The versions of each message of a chat, from number `first` on, in the order of creation, this chat's included.

    A version shared by several chats is listed as this chat's, else as that of the chat last used.
    """
    versions: dict[int, dict[str, tuple[int, Sibling, str]]] = defaultdict(dict)
    for i, key, mine, session, text, created, made, params in db.execute(
        _FAMILY
        + """ SELECT m.i, iif(o.role = 'user', o.text, o.digest), iif(o.role = 'user', o.text = m.text,
            o.digest = m.digest), o.session, o.text, s.created, s.rowid, o.params
          FROM turn m JOIN session s ON s.id IN family JOIN turn o ON o.session = s.id AND o.i = m.i AND o.role = m.role
          LEFT JOIN turn mq ON mq.session = m.session AND mq.i = m.i - 1
          LEFT JOIN turn oq ON oq.session = o.session AND oq.i = o.i - 1
          WHERE m.session = ?1 AND m.i >= ?2 AND (o.prev = m.prev OR (m.role = 'assistant' AND mq.role = 'user'
            AND oq.role = 'user' AND oq.prev = mq.prev AND oq.text = mq.text))
          ORDER BY m.i, s.seq, s.updated, s.id""",
        (session_id, first),
    ):
        before = versions[i].get(key)
        first_made, created = min((made, created), (before[0], before[1].created)) if before else (made, created)
        sibling = Sibling(session_id if mine else session, text, created, bool(mine))
        versions[i][key] = first_made, sibling, params
    return tuple(map(_in_order, versions.values()))


def _in_order(found: Mapping[str, tuple[int, Sibling, str]]) -> tuple[Sibling, ...]:
    """The versions of a message by age; only where there are several, it matters what made each."""
    rows = sorted(found.values(), key=itemgetter(0))
    return tuple(replace(sibling, params=_params(text)) if len(rows) > 1 else sibling for _, sibling, text in rows)


def _params(text: object) -> Mapping[str, Any]:
    try:
        params = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        params = None
    return params if isinstance(params, dict) else {}


def reparent_forks(db: sqlite3.Connection, session_id: str) -> None:
    """Reparent the forks of a chat that will be deleted: to its parent, else to the oldest of them."""
    row = db.execute("SELECT parent, forked_at FROM session WHERE id = ?", (session_id,)).fetchone()
    forks = db.execute("SELECT id, forked_at FROM session WHERE parent = ? ORDER BY rowid", (session_id,)).fetchall()
    if row is None or not forks:
        return
    parent, shared = row
    if parent is None:
        (parent, shared), forks = forks[0], forks[1:]
        db.execute("UPDATE session SET parent = NULL, forked_at = NULL WHERE id = ?", (parent,))
    db.executemany(
        "UPDATE session SET parent = ?, forked_at = ? WHERE id = ?",
        [(parent, min(forked_at, shared), fork) for fork, forked_at in forks],
    )
