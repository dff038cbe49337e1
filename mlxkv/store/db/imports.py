"""Sessions that were made elsewhere: of an archive, or chats of another program with all their branches.

They keep their dates and are sorted by them: the chat last used here stays the newest. Engine thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence

from mlxkv.errors import CorruptError
from mlxkv.store.db.database import IS_VERSION
from mlxkv.store.db.history import genesis, to_json
from mlxkv.store.db.sessions import Sessions, save_model
from mlxkv.store.records import SessionRecord


def import_session(sessions: Sessions, chat: SessionRecord) -> str:
    """Add a session that was exported elsewhere, with its dates, and return its new id."""
    with sessions.database.writing() as db:
        session_id = _add(sessions, db, chat)
    sessions.known_heads[session_id] = chat.head
    return session_id


def known_session(sessions: Sessions, chat: SessionRecord) -> tuple[str, str] | None:
    """Id and title of the session here that `chat` was exported from or imported as, if it has all of its messages.

    It may have continued since. One that was changed, or that ends before `chat` does, is another chat.
    """
    with sessions.database.reading() as db:
        return db.execute(
            """SELECT id, title FROM session WHERE (origin = :origin OR 'mlxkv:' || id = :origin)
            AND (head = :head OR EXISTS (SELECT 1 FROM turn WHERE session = session.id AND prev = :head))
            ORDER BY seq DESC LIMIT 1""",
            {"origin": chat.origin, "head": chat.head},
        ).fetchone()


def import_families(
    sessions: Sessions, families: Iterable[Sequence[tuple[SessionRecord, int | None]]]
) -> tuple[str | None, ...]:
    """Add chats of another program with all their branches, or none if anything fails.

    Args:
        families: the branches of each chat, in the order in which they were made, each with the number of the one that
            it is a fork of. A family is skipped if a session of the same `origin` exists and all of its messages are
            here; if it has grown or changed since, all of it is added again.

    Returns:
        For each family the id of its session without a parent; None if it was skipped.
    """
    added: list[str | None] = []
    with sessions.database.writing() as db:
        known = {origin for (origin,) in db.execute("SELECT origin FROM session WHERE origin IS NOT NULL")}
        heads: set[str] = set()  # read where a chat may be known
        for family in families:
            origins = {record.origin for record, _ in family if record.origin}
            if origins & known:
                heads = heads or {d for (d,) in db.execute("SELECT head FROM session UNION SELECT prev FROM turn")}
                if all(record.head in heads for record, _ in family):
                    added.append(None)
                    continue
            known |= origins
            heads |= {record.head for record, _ in family} if heads else set()
            ids = [_add(sessions, db, record) for record, _ in family]
            for session_id, (record, parent) in zip(ids, family, strict=True):
                if parent is None:
                    added.append(session_id)
                    continue
                forked = (ids[parent], record.forked_at, session_id)
                db.execute(f"UPDATE session SET parent = ?, forked_at = ?, flags = {IS_VERSION} WHERE id = ?", forked)
    return tuple(added)


def _add(sessions: Sessions, db: sqlite3.Connection, chat: SessionRecord) -> str:
    head, length = genesis(chat.system), 0
    earlier = "updated <= ?"
    if chat.updated > time.time():  # one of two clocks is wrong: the chat last used here stays first
        earlier = "? AND seq < (SELECT max(seq) FROM session)"
    (place,) = db.execute(
        f"SELECT coalesce(max(seq), 0) FROM session WHERE {earlier} AND seq BETWEEN 0 AND {1 << 62}",
        (chat.updated,),
    ).fetchone()
    session_id = sessions.insert(
        db, title=chat.title, created=chat.created, updated=chat.updated, model=save_model(db, chat.model),
        system=chat.system, params=to_json(dict(chat.params)), head=head, kind=chat.kind,
        clock=chat.clock, settings=chat.settings, preset=chat.preset, origin=chat.origin, seed=chat.seed,
    )  # fmt: skip
    for i, turn in enumerate(chat.turns):
        head, _ = sessions.write_turn(db, session_id, i, turn, length, head)
        length = (turn.start or 0) + len(turn.ids)
    if head != chat.head:
        raise CorruptError("The chat's messages do not match its digests; it was not imported.")
    db.execute("UPDATE session SET updated = ?, seq = ? WHERE id = ?", (chat.updated, place, session_id))
    return session_id
