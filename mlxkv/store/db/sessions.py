"""Sessions and their turns in the database: create, append, update, load, list, find, search, fork.

Every change is one transaction and a compare-and-swap on the session's head. Loads and saves no KV; imports.py adds
sessions that were made elsewhere. Engine thread.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from mlxkv.arguments import flag, label, optional, public, text, whole
from mlxkv.cache.peers import SessionKey
from mlxkv.errors import CorruptError, SessionChangedError, SessionNotFoundError, StoreError
from mlxkv.protocol.chat_names import chat_called
from mlxkv.protocol.status import ChatSummary, SearchHit
from mlxkv.store.db.branches import reparent_forks
from mlxkv.store.db.database import IS_FORK, IS_NAMED, IS_VERSION, LISTED, PINNED, UNTRUSTED, Database, store_id
from mlxkv.store.db.history import (
    History,
    as_record,
    genesis,
    is_genesis,
    pack_ids,
    stored_fields,
    to_json,
    turn_digest,
    verify_rows,
)
from mlxkv.store.db.listing import NEWEST_FIRST, Departures, read_sessions, summaries
from mlxkv.store.db.search import search
from mlxkv.store.db.search_index import forget_deleted, index_turn, unindex_turns
from mlxkv.store.db.versions import make_chat, take_out
from mlxkv.store.identity import ModelIdentity, digest_of
from mlxkv.store.kv.commits import mark_unused, move_commits, num_removed, remove_commits, saved_bytes
from mlxkv.store.records import (
    KINDS,
    MAX_TITLE,
    Kind,
    SessionRecord,
    TurnRecord,
    as_text,
    as_time,
    is_clock,
    is_seed,
)
from mlxkv.store.ulid import new_ulid
from mlxkv.system.regular_file import parse_json
from mlxkv.text.encoding import well_formed

_MOST_KNOWN = 8  # histories
_MOST_FORKS = 16  # of forks, that are followed back
_TURN = "i, role, text, thinking, state, params, start, stats, extra, ids, prev, digest"
_NEXT = f"(SELECT coalesce(max(seq), 0) + 1 FROM session WHERE seq BETWEEN 0 AND {1 << 62})"
"""The sort key after all others, whatever the clock says; ignores damaged values."""


class Sessions:
    """The tables `session` and `turn`.

    Remembers the head it last saw of each session, for compare-and-swap, and verified histories: while a session's head
    is the known one, its digest chain is not verified again.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.known_heads: dict[str, str] = {}
        self._known: dict[str, History] = {}  # least recently used first
        self._checked: set[str] = set()  # verified for the `load` that follows
        self._sizes: dict[str, tuple[int | None, int]] = {}  # newest commit and bytes of KV rows, for `list`
        self._removed = 0
        self._departures = Departures()

    @public("kind", "clock", "settings", "preset", "origin", "seed", "flags", "id", title=text, system=optional(text))
    def create(
        self, title: str, model: ModelIdentity, *, system: str | None = None, params: Mapping[str, Any] | None = None,
        parent: str | None = None, forked_at: int | None = None, **more: Any,
    ) -> str:  # fmt: skip
        """Create a session without turns and return its id.

        `more`: `kind`, `clock`, `settings`, `preset`, `origin` and `seed`, as in SessionRecord, `flags`, and `id`, one
        that another store made.

        Raises:
            StoreError: a value that cannot be saved.
        """
        now, system = time.time(), None if system is None else well_formed(system)
        with self.database.writing() as db:
            session_id = self.insert(
                db, title=title, created=now, updated=now, model=save_model(db, model), system=system,
                params=to_json(dict(params or {})), parent=parent, forked_at=forked_at, head=genesis(system), **more,
            )  # fmt: skip
        self.known_heads[session_id] = genesis(system)
        return session_id

    def insert(
        self, db: sqlite3.Connection, *, title: str, kind: Kind = Kind.CHAT, clock: str | None = None,
        seed: int | None = None, settings: Mapping[str, Any] | None = None, **columns: Any,
    ) -> str:  # fmt: skip
        """Insert a session without turns, inside a transaction of the caller, and return its id."""
        if kind not in KINDS or not (clock is None or is_clock(clock)) or not (seed is None or is_seed(seed)):
            raise StoreError(f"A session cannot have kind {kind!r}, clock {clock!r} and seed {seed!r}; this is a bug.")
        columns = {
            "id": new_ulid(), "title": _storable(title), "kind": kind, "clock": clock, "seed": seed,
            "settings": to_json(dict(settings or {})), **columns,
        }  # fmt: skip
        db.execute(
            f"INSERT INTO session(seq, {', '.join(columns)}) VALUES({_NEXT}{', ?' * len(columns)})",
            (*columns.values(),),
        )
        return columns["id"]

    def set_untrusted(self, session_id: str) -> None:
        """Mark the session for good: someone else computed its KV rows."""
        with self.database.writing() as db:
            _update(db, session_id, f"flags = flags | {UNTRUSTED}")

    @public(session_id=label, pinned=flag)
    def pin(self, session_id: str, pinned: bool = True) -> None:
        """Exempt the session's KV rows from eviction by the disk limit, or stop that. Raises SessionNotFoundError."""
        with self.database.writing() as db:
            _update(db, session_id, f"flags = flags | {PINNED}" if pinned else f"flags = flags & ~{PINNED}")

    def add_turn(self, session_id: str, turn: TurnRecord, head: str | None = None) -> str:
        """Append a turn and return the new head. `head`: the head it continues, by default the one last seen here.

        Raises:
            SessionChangedError: it is no longer the head. SessionNotFoundError.
        """
        with self.database.writing() as db:
            current = self._check_head(db, session_id, head)
            i, length = self._end(db, session_id)
            new, record = self.write_turn(db, session_id, i, turn, length, current)
        self._continue(session_id, current, i, record, new)
        return new

    def _end(self, db: sqlite3.Connection, session_id: str) -> tuple[int, int]:
        """The number of the turn to be added next, and the length of the log before it."""
        return db.execute(
            "SELECT i + 1, start + length(ids) / 4 FROM turn WHERE session = ? ORDER BY i DESC LIMIT 1", (session_id,)
        ).fetchone() or (0, 0)

    def replace_last(self, session_id: str, turn: TurnRecord) -> str:
        """Replace the last turn by another, without the KV rows saved at it. Returns the new head.

        Raises:
            SessionChangedError: the head moved. SessionNotFoundError.
        """
        with self.database.writing() as db:
            current = self._check_head(db, session_id, None)
            rowid, prev = db.execute(
                "SELECT id, prev FROM turn WHERE session = ? ORDER BY i DESC LIMIT 1", (session_id,)
            ).fetchone()
            unindex_turns(db, [rowid])
            db.execute("DELETE FROM turn WHERE id = ?", (rowid,))
            remove_commits(db, session_id, [current])
            i, length = self._end(db, session_id)
            new, record = self.write_turn(db, session_id, i, turn, length, prev)
        self._continue(session_id, current, i, record, new)
        return new

    def update_open_turn(self, session_id: str, turn: TurnRecord, head: str | None = None, reopen: bool = False) -> str:
        """Replace the last turn, which must be "open", at the same position of the log. Returns the new head.

        `reopen`: it may also be finished, if `turn` continues its ids.

        Raises:
            SessionChangedError: the head moved. StoreError: the last turn is not open.
        """
        with self.database.writing() as db:
            current = self._check_head(db, session_id, head)
            last = db.execute(
                "SELECT id, i, state, start, prev, ids FROM turn WHERE session = ? ORDER BY i DESC LIMIT 1",
                (session_id,),
            ).fetchone()
            continues = last is not None and pack_ids(turn.ids).tobytes().startswith(last[5])
            if last is None or (last[2] != "open" and not (reopen and continues)):
                raise StoreError(f"The last turn of session {session_id:.10} is finished; add a new turn instead.")
            rowid, i, _, start, prev, _ = last
            unindex_turns(db, [rowid])
            db.execute("DELETE FROM turn WHERE id = ?", (rowid,))
            new, record = self.write_turn(db, session_id, i, turn, start, prev)
            if continues:
                move_commits(db, session_id, current, new)
        self._continue(session_id, current, i, record, new)
        return new

    def remove_last(self, session_id: str, num_kept: int) -> None:
        """Remove all turns but the first `num_kept`, and the saved KV rows of the others.

        Raises:
            SessionChangedError: the head moved. SessionNotFoundError.
        """
        with self.database.writing() as db:
            current = self._check_head(db, session_id, None)
            rows = db.execute(
                "SELECT id, prev, digest FROM turn WHERE session = ? AND i >= ? ORDER BY i", (session_id, num_kept)
            ).fetchall()
            if not rows:
                return
            unindex_turns(db, [row[0] for row in rows])
            db.execute("DELETE FROM turn WHERE session = ? AND i >= ?", (session_id, num_kept))
            remove_commits(db, session_id, [row[2] for row in rows])
            head = rows[0][1]
            db.execute("UPDATE session SET head = ? WHERE id = ?", (head, session_id))
        self.known_heads[session_id] = head
        known = self._known.pop(session_id, None)
        if known is not None and known.head == current:
            self._remember(session_id, known.first(num_kept))

    def write_turn(
        self, db: sqlite3.Connection, session_id: str, i: int, turn: TurnRecord, length: int, prev: str
    ) -> tuple[str, TurnRecord]:
        """Insert a turn, inside a transaction of the caller; returns its digest and the turn as stored."""
        start = length if turn.start is None else turn.start
        if not 0 <= start <= length:
            raise StoreError(f"Turn {i + 1} cannot start at {start} in a log of {length} tokens; this is a bug.")
        ids = pack_ids(turn.ids).tobytes()
        fields = stored_fields(turn, start)
        digest = turn_digest(prev, i, fields, ids)
        cursor = db.execute(
            f"INSERT INTO turn(session, {_TURN}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (session_id, i, *fields, ids, prev, digest),
        )
        index_turn(db, int(cursor.lastrowid or 0), fields[1], fields[2])
        db.execute(
            f"UPDATE session SET head = ?, updated = ?, seq = {_NEXT} WHERE id = ?", (digest, time.time(), session_id)
        )
        return digest, as_record(fields, ids)

    def _continue(self, session_id: str, head: str, i: int, turn: TurnRecord, digest: str) -> None:
        """Extend the known history by `turn`, number `i`, now the last; the head before it was `head`."""
        self.known_heads[session_id] = digest
        known = self._known.pop(session_id, None)
        if known is not None and known.head == head and i <= len(known.turns):
            self._remember(session_id, (known if i == len(known.turns) else known.first(i)).with_turn(turn, digest))

    def _remember(self, session_id: str, history: History) -> None:
        self._known.pop(session_id, None)
        self._known[session_id] = history
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def forget(self, session_id: str) -> None:
        """Verify the session again when it is next loaded."""
        self._known.pop(session_id, None)
        self._sizes.pop(session_id, None)
        self._checked.discard(session_id)

    @public(session_id=label)
    def check(self, session_id: str) -> None:
        """Verify a session that is about to be opened; the next `load` does not verify it again. Raises as `load`."""
        with self.database.reading() as db:
            self.history(db, session_id, fresh=True)
        self._checked.add(session_id)

    def _check_head(self, db: sqlite3.Connection, session_id: str, head: str | None) -> str:
        row = db.execute("SELECT head FROM session WHERE id = ?", (session_id,)).fetchone()
        if row is None:
            raise SessionNotFoundError(f"Session {session_id:.10} was deleted; start a new chat.")
        expected = self.known_heads.get(session_id, row[0]) if head is None else head
        if row[0] != expected:
            raise SessionChangedError(
                f"Session {session_id:.10} was changed by another process since it was read; open it again or fork it."
            )
        return row[0]

    def history(self, db: sqlite3.Connection, session_id: str, fresh: bool = False) -> History:
        """A session's verified history, inside a transaction of the caller. A known one is not verified again while its
        head is the session's, unless `fresh`. Raises SessionNotFoundError, CorruptError."""
        row = _select(db, session_id, "system, head")
        known = self._known.get(session_id)
        if fresh or known is None or known.head != row[1] or not is_genesis(known.digests[0], row[0]):
            self.forget(session_id)
            turns = db.execute(f"SELECT {_TURN} FROM turn WHERE session = ? ORDER BY i", (session_id,))
            known = verify_rows(turns, *row)
        self._remember(session_id, known)
        return known

    def load(self, session_id: str, fresh: bool = True) -> SessionRecord:
        """A whole session. `fresh`: verify its digest chain, unless `check` just did."""
        with self.database.reading() as db:
            record = self.record(db, session_id, fresh and session_id not in self._checked)
            self._checked.discard(session_id)
        self.known_heads[session_id] = record.head
        return record

    def record(self, db: sqlite3.Connection, session_id: str, fresh: bool = True) -> SessionRecord:
        """A whole session, inside a transaction of the caller; see `history`."""
        history = self.history(db, session_id, fresh)
        title, created, updated, system, parent, forked_at, kind, clock, preset, origin, seed, *tables = _select(
            db, session_id, "title, created, updated, system, parent, forked_at, kind, clock, preset, origin, seed,"
            " model, params, settings",
        )  # fmt: skip
        with _intact_row(session_id):
            identity, params, settings = load_model(db, tables[0]), parse_json(tables[1]), parse_json(tables[2])
            if not (isinstance(params, dict) and isinstance(settings, dict)):
                raise TypeError("its settings are not a table")
        return SessionRecord(
            session_id, as_text(title), as_time(created), as_time(updated), identity, system, params,
            as_text(parent) or None, forked_at if isinstance(forked_at, int) else None, history.turns,
            tuple(history.log), history.head, Kind(kind) if kind in KINDS else Kind.CHAT,
            clock if is_clock(clock) else None, settings, as_text(preset) or None, as_text(origin) or None,
            seed if is_seed(seed) else None,
        )  # fmt: skip

    @public(session_id=label)
    def model_of(self, session_id: str) -> ModelIdentity:
        """The session's model, without reading its turns. Raises SessionNotFoundError, CorruptError."""
        with self.database.reading() as db, _intact_row(session_id):
            return load_model(db, _select(db, session_id, "model")[0])

    def ids(self) -> tuple[str, ...]:
        """The ids of all sessions."""
        with self.database.reading() as db:
            return tuple(id for (id,) in db.execute("SELECT id FROM session"))

    def key(self, session_id: str) -> SessionKey:
        """What other stores know the session by."""
        query = """WITH RECURSIVE up(id, n) AS (SELECT ?, 0 UNION ALL
            SELECT s.parent, n + 1 FROM session s JOIN up ON s.id = up.id WHERE s.parent IS NOT NULL AND n < ?)
            SELECT id FROM up ORDER BY n"""
        with self.database.reading() as db:
            return SessionKey(store_id(db) or "", tuple(id for (id,) in db.execute(query, (session_id, _MOST_FORKS))))

    def last_model(self) -> ModelIdentity | None:
        """The model that was used last; None if there is none. Those of imported chats do not count."""
        unknown = ModelIdentity.foreign("").model_id
        with self.database.reading() as db:
            row = db.execute(
                f"SELECT m.id FROM session s JOIN model m ON m.id = s.model WHERE m.model_id != ? {NEWEST_FIRST}"
                " LIMIT 1", (unknown,)
            ).fetchone()  # fmt: skip
            return load_model(db, row[0]) if row else None

    def list(self, kv_bytes: Callable[[sqlite3.Connection, str], int] = saved_bytes) -> tuple[ChatSummary, ...]:
        """All chats, their versions and runs of print mode, newest first: see ChatSummary. `kv_bytes` counts a chunk
        shared by sessions for each of them."""
        with self.database.reading() as db:
            removed = num_removed(db)
            if removed != self._removed:
                self._sizes, self._removed = {}, removed
            found = read_sessions(db)
            departed = self._departures.read(db, found)
            for session in found:
                newest = session.commit
                if session.id not in self._sizes or self._sizes[session.id][0] != newest:  # there are new commits
                    self._sizes[session.id] = newest, 0 if newest is None else kv_bytes(db, session.id)
        return summaries(found, departed, lambda id: self._sizes[id][1])

    def _without_sizes(self, db: sqlite3.Connection) -> tuple[ChatSummary, ...]:
        found = read_sessions(db)
        return summaries(found, self._departures.read(db, found), lambda _: 0)

    def _kind_in_list(self, db: sqlite3.Connection, session_id: str) -> str | None:
        return next((chat.kind for chat in self._without_sizes(db) if chat.id == session_id), None)

    def title_of(self, session_id: str) -> str:
        """Raises SessionNotFoundError."""
        with self.database.reading() as db:
            return as_text(_select(db, session_id, "title")[0])

    def chat_ids(self, session_id: str) -> tuple[str, ...]:
        """The ids of the chat that a session is a version of: the one it is listed as, then the others."""
        with self.database.reading() as db:
            chats = self._without_sizes(db)
        chat = next((c for c in chats if session_id in (c.id, *c.versions)), None)
        return (session_id,) if chat is None else (chat.id, *chat.versions)

    @public(text=text)
    def find(self, text: str) -> str:
        """The id of the session with this title, else id, else unique prefix of either, else unique part of a title.
        Chats come before their versions, and before runs of print mode.

        Raises:
            SessionNotFoundError: lists the candidates; or `text` is empty.
        """
        return chat_called(self.list(), well_formed(text)).id

    def latest(self, runs: bool = True) -> str | None:
        """The id of the session that was used last; None without sessions. `runs`: it may be one of print mode."""
        which = LISTED if runs else f"{LISTED} AND s.kind IS NOT 'run'"
        with self.database.reading() as db:
            row = db.execute(f"SELECT s.id FROM session s WHERE {which} {NEWEST_FIRST} LIMIT 1").fetchone()
        return row[0] if row else None

    def endpoint_ids(self) -> tuple[str, ...]:
        """The ids of the conversations that the endpoint saved, the last used one first; no list of chats has them."""
        with self.database.reading() as db:
            found = db.execute(f"SELECT s.id FROM session s WHERE s.kind = 'endpoint' {NEWEST_FIRST}").fetchall()
        return tuple(id for (id,) in found if isinstance(id, str))

    @public(text=text, limit=whole)
    def search(self, text: str, limit: int = 50) -> tuple[SearchHit, ...]:
        """Titles and turns with every word and "quoted phrase" of `text`, best first; the last word may be a prefix."""
        with self.database.reading() as db:
            return tuple(search(db, well_formed(text), limit))

    @public(session_id=label, title=text)
    def rename(self, session_id: str, title: str) -> None:
        """Give a session the user's title. A run of print mode, or a version that its chat is not listed as, becomes a
        chat of its own. Raises SessionNotFoundError."""
        with self.database.writing() as db:
            _update(db, session_id, f"title = ?, flags = flags | {IS_NAMED}", _storable(title))
            kind, parent = _select(db, session_id, "kind, parent")
            if kind == Kind.RUN:
                _update(db, session_id, "kind = ?", Kind.CHAT)
            in_family = parent or db.execute("SELECT 1 FROM session WHERE parent = ?", (session_id,)).fetchone()
            if in_family and self._kind_in_list(db, session_id) == "version":
                make_chat(db, session_id)

    def suggest_title(self, session_id: str, title: str) -> bool:
        """Give a session a title unless the user gave it one; whether that was done. Raises SessionNotFoundError."""
        with self.database.writing() as db:
            (flags,) = _select(db, session_id, "flags")
            if not flags & IS_NAMED:
                _update(db, session_id, "title = ?", _storable(title))
        return not flags & IS_NAMED

    def set_kind(self, session_id: str, kind: Kind) -> None:
        """Raises SessionNotFoundError."""
        with self.database.writing() as db:
            _update(db, session_id, "kind = ?", kind)

    @public(session_id=label)
    def settings_of(self, session_id: str) -> tuple[dict[str, Any], str | None]:
        """The chat's own settings as stored, and its preset. Raises SessionNotFoundError, CorruptError."""
        with self.database.reading() as db, _intact_row(session_id):
            settings, preset = _select(db, session_id, "settings, preset")
            return dict(parse_json(settings)), as_text(preset) or None

    @public(session_id=label, preset=optional(text))
    def set_settings(self, session_id: str, settings: Mapping[str, Any], preset: str | None) -> None:
        """Replace the chat's own settings. Raises SessionNotFoundError."""
        with self.database.writing() as db:
            _update(db, session_id, "settings = ?, preset = ?", to_json(dict(settings)), preset)

    @public()
    def rename_preset(self, old: str, new: str) -> None:
        """Record another name of a preset in all chats that took it."""
        with self.database.writing() as db:
            db.execute("UPDATE session SET preset = ? WHERE preset = ?", (new, old))

    @public(session_id=label)
    def set_model(self, session_id: str, model: ModelIdentity) -> None:
        """Continue the session with another model. Raises SessionNotFoundError."""
        with self.database.writing() as db:
            _update(db, session_id, "model = ?", save_model(db, model))

    @public(session_id=label, name=text)
    def rename_model(self, session_id: str, name: str, *, everywhere: bool = False) -> None:
        """Record another name for the session's model; `everywhere`: in all sessions that have this model and name.

        Raises:
            SessionNotFoundError.
        """
        model = replace(self.model_of(session_id), name=name)
        with self.database.writing() as db:
            same = "model = (SELECT model FROM session WHERE id = ?)" if everywhere else "id = ?"
            db.execute(f"UPDATE session SET model = ? WHERE {same}", (save_model(db, model), session_id))

    def delete(self, db: sqlite3.Connection, session_id: str) -> None:
        """Delete a session and its words in the search index, inside a transaction of the caller; no KV rows.

        Raises:
            SessionNotFoundError.
        """
        _select(db, session_id, "id")
        unindex_turns(db, [id for (id,) in db.execute("SELECT id FROM turn WHERE session = ?", (session_id,))])
        take_out(db, session_id)
        reparent_forks(db, session_id)
        db.execute("DELETE FROM session WHERE id = ?", (session_id,))
        mark_unused(db)
        forget_deleted(db)
        self.known_heads.pop(session_id, None)
        self.forget(session_id)

    def fork(
        self, db: sqlite3.Connection, session_id: str, num_turns: int | None, like: str | None = None,
        is_version: bool = False, new_id: str | None = None,
    ) -> tuple[str, History]:  # fmt: skip
        """Copy the first `num_turns` turns (None: all) to a new session, inside a transaction of the caller.

        Args:
            is_version: it is a version of the same chat, not a chat of its own.
            like: a session that it replaces, whose title it gets.
            new_id: its id, if another store made it.

        Returns the new id and its history.
        """
        history = self.history(db, session_id)
        num_turns = len(history.turns) if num_turns is None else num_turns
        if not 0 <= num_turns <= len(history.turns):
            raise StoreError(
                f"Session {session_id:.10} has {len(history.turns)} messages; it cannot be forked at {num_turns}."
            )
        title, flags = _select(db, like or session_id, "title, flags")
        if like is None:
            flags = flags & IS_NAMED | IS_VERSION if is_version else IS_FORK
            title = as_text(title) if is_version else _free_title(db, as_text(title))
        new_id, now, head = new_id or new_ulid(), time.time(), history.digests[num_turns]
        db.execute(
            "INSERT INTO session(id, title, created, updated, model, spec_id, system, params, flags, parent, forked_at,"
            " head, kind, clock, settings, preset, seed, seq)"
            f" SELECT ?, ?, ?, ?, model, spec_id, system, params, (flags & {UNTRUSTED}) | ?, id, ?, ?,"
            f" kind, clock, settings, preset, seed, {_NEXT} FROM session WHERE id = ?",
            (new_id, title, now, now, flags & (IS_NAMED | IS_VERSION | IS_FORK), num_turns, head, session_id),
        )
        for row in db.execute(
            f"SELECT {_TURN} FROM turn WHERE session = ? AND i < ? ORDER BY i", (session_id, num_turns)
        ).fetchall():
            cursor = db.execute(f"INSERT INTO turn(session, {_TURN}) VALUES(?{', ?' * len(row)})", (new_id, *row))
            index_turn(db, int(cursor.lastrowid or 0), *row[2:4])
        return new_id, history.first(num_turns)  # the copy is verified when it is loaded


def _select(db: sqlite3.Connection, session_id: str, columns: str) -> tuple[Any, ...]:
    row = db.execute(f"SELECT {columns} FROM session WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise SessionNotFoundError(f"No session has the id {session_id}; `mlxkv chats ls` lists them.")
    return row


def _update(db: sqlite3.Connection, session_id: str, assignment: str, *values: object) -> None:
    _select(db, session_id, "id")
    db.execute(f"UPDATE session SET {assignment} WHERE id = ?", (*values, session_id))


def save_model(db: sqlite3.Connection, model: ModelIdentity) -> str:
    """Insert an identity; returns its row id, a hash of its three names: another template is another row."""
    row_id = digest_of("identity", {name: getattr(model, name) for name in ("name", "model_id", "template_id")})
    text = to_json(asdict(model))
    if db.execute("SELECT 1 FROM model WHERE id = ? AND json = ?", (row_id, text)).fetchone():
        return row_id
    db.execute(
        "INSERT INTO model VALUES(?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET json = excluded.json",
        (row_id, model.name, model.model_id, text),
    )
    return row_id


def load_model(db: sqlite3.Connection, row_id: str) -> ModelIdentity:
    return ModelIdentity(**parse_json(db.execute("SELECT json FROM model WHERE id = ?", (row_id,)).fetchone()[0]))


def _storable(title: str) -> str:
    """`title` as valid Unicode of at most `MAX_TITLE` characters."""
    title = well_formed(title)
    return title if len(title) <= MAX_TITLE else f"{title[: MAX_TITLE - 1]}…"


@contextmanager
def _intact_row(session_id: str) -> Iterator[None]:
    """Report damaged values of a session's row as CorruptError."""
    try:
        yield
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptError(f"Session {session_id:.10} is damaged ({error}); restore a backup.") from error


def _free_title(db: sqlite3.Connection, title: str) -> str:
    """`title (2)`, with the first number that is free, so that a title still finds one session."""
    title = re.sub(r" \(\d+\)$", "", title)[: MAX_TITLE - 20]
    n = 2
    while db.execute("SELECT 1 FROM session WHERE title = ?", (f"{title} ({n})",)).fetchone():
        n += 1
    return f"{title} ({n})"
