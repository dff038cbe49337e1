"""Commits of a session's KV rows: the tables `kv_commit`, `kv_ref` and `chunk`, checked against the token log.

A commit adds only its new chunks. The chunks of all commits of a session form one pool, and every row of it that still
belongs to the log can be restored. Runs inside the caller's transaction; touches no files. Engine and writer thread.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mlxkv.store.db.history import DIGEST_BYTES, History, to_json
from mlxkv.store.kv.chunk_format import ChunkHead, EncodedChunk, PrefixKeys
from mlxkv.store.records import is_chunk

STATE = "state"
"""The group whose chunks are whole recurrent states: the state after p tokens counts as the row [p - 1, p)."""

PREFIX = "prefix"
"""`kv_ref.kept_for` of a state at the end of a prefix that other chats begin with too, such as a system prompt."""


@dataclass(frozen=True)
class SavedCommit:
    """A verified commit of the history. The first `valid` tokens of its log are still the session's."""

    id: int
    pos: int
    num_turns: int
    model_id: str
    spec_id: str
    rng: bytes | None
    valid: int


@dataclass(frozen=True)
class SavedChunk:
    """A chunk whose rows [head.a, end) belong to the session's log; `end` < `head.b` after history was rewritten."""

    digest: str
    size: int
    head: ChunkHead
    end: int


def seed(model_id: str, spec_id: str, group: str) -> str:
    """The seed of prefix keys."""
    return f"{model_id} {spec_id} {group}"


def commit_digest(pos: int, turn_digest: str, model: str, spec_id: str, rng: bytes | None) -> str:
    text = to_json([pos, turn_digest, model, spec_id, None if rng is None else rng.hex()])
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def is_commit(digest: str, pos: int, turn_digest: str, model: str, spec_id: str, rng: bytes | None) -> bool:
    """Whether a row of `kv_commit` is undamaged."""
    try:
        return digest == commit_digest(pos, turn_digest, model, spec_id, rng)
    except (TypeError, AttributeError):  # values of other types: the page is damaged
        return False


def saved_commits(db: sqlite3.Connection, session_id: str, history: History, since: int = 0) -> list[SavedCommit]:
    """The undamaged commits of this history, newest first, with an id of at least `since`."""
    rows = db.execute(
        "SELECT c.id, c.pos, c.turn_digest, c.model, c.spec_id, c.rng, c.digest, m.model_id"
        " FROM kv_commit c JOIN model m ON m.id = c.model WHERE c.session = ? AND c.id >= ? ORDER BY c.id DESC",
        (session_id, since),
    ).fetchall()
    valid, out = history.shared_prefixes([row[2] for row in rows]), []
    for row in rows:
        commit_id, pos, turn, model, spec_id, rng, digest, model_id = row
        if turn in valid and is_commit(digest, pos, turn, model, spec_id, rng):
            num_turns, length = valid[turn]
            out.append(SavedCommit(commit_id, pos, num_turns, model_id, spec_id, rng, min(pos, length)))
    return out


def saved_chunks(
    db: sqlite3.Connection, commits: Iterable[SavedCommit], history: History,
    keys: Callable[[SavedCommit, str], PrefixKeys] | None = None,
) -> list[SavedChunk]:  # fmt: skip
    """The chunks of `commits` (all of one model and spec) of which at least one row belongs to the session's log.

    The prefix key of each is computed from the ids; a chunk whose database row differs is left out. `keys`: the keys of
    the log for a commit's model and spec and a group.
    """
    made: dict[str, PrefixKeys] = {}
    keys = keys or (lambda c, group: made.setdefault(group, PrefixKeys(seed(c.model_id, c.spec_id, group))))
    out: dict[str, SavedChunk] = {}
    for commit in commits:
        rows = db.execute(
            "SELECT k.digest, k.size, k.grp, k.a, k.b, k.prefix_key FROM kv_ref r JOIN chunk k ON k.digest = r.chunk"
            " WHERE r.kv_commit = ?",
            (commit.id,),
        ).fetchall()
        rows = [row for row in rows if is_chunk(*row)]
        log = history.log  # the ids the chunks were computed from, unless one of them was rewritten since
        if max((row[4] for row in rows), default=0) > commit.valid:
            log = history.log_after(commit.num_turns, commit.valid)
        for digest, size, group, a, b, key in rows:
            end = min(b, commit.valid)
            if a < end and b <= len(log) and keys(commit, group).key(log, a, b, commit.valid) == key:
                out.setdefault(digest, SavedChunk(digest, size, ChunkHead(group, a, b, key), end))
    return list(out.values())


def num_removed(db: sqlite3.Connection) -> int:
    """Count of removals, in this store, of chunks that sessions referred to."""
    row = db.execute("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'kv_removed'").fetchone()
    return row[0] if row else 0


def remove_chunks(db: sqlite3.Connection, digests: Iterable[str]) -> None:
    """Remove chunks and all references to them, and count that: SavedRows then looks again."""
    digests = list(digests)
    db.executemany("DELETE FROM chunk WHERE digest = ?", [(digest,) for digest in digests])
    if digests:
        count_removal(db)


def mark_unused(db: sqlite3.Connection) -> None:
    """Note that there may be chunks without a reference; `gc.remove_unused` removes them and the note."""
    db.execute("INSERT OR IGNORE INTO meta VALUES('kv_unused', '1')")


def count_removal(db: sqlite3.Connection) -> None:
    db.execute(
        "INSERT INTO meta VALUES('kv_removed', '1') ON CONFLICT(key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
    )


def save_spec(db: sqlite3.Connection, spec_id: str, parts: dict[str, str]) -> None:
    if not db.execute("SELECT 1 FROM spec WHERE id = ?", (spec_id,)).fetchone():
        db.execute("INSERT INTO spec VALUES(?, ?)", (spec_id, to_json(parts)))


def save_commit(
    db: sqlite3.Connection, session_id: str, pos: int, turn: str, model: str, spec_id: str, rng: bytes | None,
    chunks: Iterable[EncodedChunk | SavedChunk], prefixes: Collection[int] = (),
) -> None:  # fmt: skip
    """Insert a commit with its new chunks; a second commit of the same position replaces the sampler's state.

    Recurrent states at `prefixes`, and those that another session keeps as such, stay as long as the commit.
    """
    digest = commit_digest(pos, turn, model, spec_id, rng)
    recent = list(_commits_at(db, session_id, turn))
    same = [row[0] for row in recent if row[1:4] == (pos, model, spec_id)]
    if same:
        commit_id = same[0]
        db.execute("UPDATE kv_commit SET rng = ?, digest = ? WHERE id = ?", (rng, digest, commit_id))
        if commit_id != recent[0][0]:  # readers do not expect an older commit to change
            count_removal(db)
    else:
        commit_id = db.execute(
            "INSERT INTO kv_commit(session, pos, turn_digest, model, spec_id, rng, digest) VALUES(?, ?, ?, ?, ?, ?, ?)",
            (session_id, pos, turn, model, spec_id, rng, digest),
        ).lastrowid
    for chunk in chunks:
        head = chunk.head
        db.execute(
            "INSERT INTO chunk VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT(digest) DO UPDATE SET last_used = excluded.last_used",
            (chunk.digest, chunk.size, head.group, head.a, head.b, head.prefix_key, spec_id, time.time()),
        )
        kept_for = PREFIX if head.group == STATE and head.b in prefixes else ""
        for commit in {commit_id, _first_commit_beyond(db, commit_id, head.b) if head.group == STATE else commit_id}:
            db.execute(
                "INSERT OR IGNORE INTO kv_ref(kv_commit, chunk, kept_for)"
                " VALUES(?1, ?2, max(?3, (SELECT coalesce(max(kept_for), '') FROM kv_ref WHERE chunk = ?2)))",
                (commit, chunk.digest, kept_for),
            )


def _first_commit_beyond(db: sqlite3.Connection, commit_id: int | None, position: int) -> int:
    """The commit that first reached `position` with the model and layout of this one: a fork at an earlier turn has
    that one, and not the one that writes the state there later."""
    return db.execute(
        "SELECT c.id FROM kv_commit c JOIN kv_commit n"
        " ON (c.session, c.model, c.spec_id) = (n.session, n.model, n.spec_id)"
        " WHERE n.id = ? AND (c.pos >= ? OR c.id = n.id) ORDER BY c.pos, c.id LIMIT 1",
        (commit_id, position),
    ).fetchone()[0]


def remove_old_states(
    db: sqlite3.Connection, session_id: str, kept: Collection[int], among: Collection[str] | None = None
) -> list[str]:
    """Drop the references to recurrent states except those at the positions `kept` and the last one before each fork;
    returns the digests of the dropped ones.

    A reference with a reason in `kept_for` stays. `among`: all states of the session, if they are known.
    """
    digests = tuple(among or ())
    chunks = "k.grp = ?" if among is None else f"k.digest IN ({', '.join('?' * len(digests))})"
    rows = db.execute(
        f"SELECT r.kv_commit, r.chunk, k.b FROM chunk k CROSS JOIN kv_ref r ON r.chunk = k.digest"
        f" CROSS JOIN kv_commit c ON c.id = r.kv_commit WHERE {chunks} AND c.session = ? AND r.kept_for = ''"
        " ORDER BY c.id DESC, k.b DESC",
        (*((STATE,) if among is None else digests), session_id),
    ).fetchall()
    rows = [row for row in rows if isinstance(row[2], int)]
    keep = {row[:2] for row in rows if row[2] in kept}
    for position in _fork_positions(db, session_id):
        before = max((row for row in rows if row[2] <= position), key=lambda row: row[2], default=None)
        keep |= {before[:2]} if before else set()
    old = [row[:2] for row in rows if row[:2] not in keep]
    db.executemany("DELETE FROM kv_ref WHERE kv_commit = ? AND chunk = ?", old)
    return [chunk for _, chunk in old]


def _fork_positions(db: sqlite3.Connection, session_id: str) -> list[int]:
    """Positions in the log at which this session was forked from another, or others from it."""
    out = []
    for (k,) in db.execute("SELECT forked_at FROM session WHERE id = ?1 OR parent = ?1", (session_id,)).fetchall():
        if isinstance(k, int):
            query = "SELECT start + length(ids) / 4 FROM turn WHERE session = ? AND i = ?"
            out += [row[0] for row in db.execute(query, (session_id, k - 1))]
    return out


def move_commits(db: sqlite3.Connection, session_id: str, head: str, new_head: str) -> None:
    """Move commits from `head` to `new_head`, the digest of the same turn after it has grown; their rows stay valid."""
    for row in list(_commits_at(db, session_id, head)):
        commit_id, pos, model, spec_id, rng = row
        digest = commit_digest(pos, new_head, model, spec_id, rng)
        db.execute("UPDATE kv_commit SET turn_digest = ?, digest = ? WHERE id = ?", (new_head, digest, commit_id))


def remove_commits(db: sqlite3.Connection, session_id: str, heads: Collection[str]) -> None:
    """Remove the commits made at turns, given by digest, that the session no longer has."""
    marks = ", ".join("?" * len(heads))
    query = f"DELETE FROM kv_commit WHERE session = ? AND turn_digest IN ({marks})"
    if db.execute(query, (session_id, *heads)).rowcount:
        mark_unused(db)
        count_removal(db)


def _commits_at(
    db: sqlite3.Connection, session_id: str, head: str
) -> Iterator[tuple[int, int, str, str, bytes | None]]:
    """The commits made at `head`, newest first. They are the session's last ones: a head never recurs, so that the
    search ends at the first other one."""
    for *row, turn in db.execute(
        "SELECT id, pos, model, spec_id, rng, turn_digest FROM kv_commit WHERE session = ? ORDER BY id DESC",
        (session_id,),
    ):
        if turn != head:
            return
        yield tuple(row)  # type: ignore[misc]


def copy_commits(db: sqlite3.Connection, session_id: str, new_id: str, history: History) -> None:
    """Copy the commits of the history that a fork keeps: references only, no rows."""
    on_chain = {commit.id for commit in saved_commits(db, session_id, history)}
    for commit_id in sorted(on_chain):
        copy = db.execute(
            "INSERT INTO kv_commit(session, pos, turn_digest, model, spec_id, rng, digest)"
            " SELECT ?, pos, turn_digest, model, spec_id, rng, digest FROM kv_commit WHERE id = ?",
            (new_id, commit_id),
        ).lastrowid
        db.execute(
            "INSERT INTO kv_ref(kv_commit, chunk, kept_for) SELECT ?, chunk, kept_for FROM kv_ref WHERE kv_commit = ?",
            (copy, commit_id),
        )


def saved_bytes(db: sqlite3.Connection, session_id: str) -> int:
    """Bytes of the chunk files that the session's commits refer to, shared ones included."""
    return db.execute(
        "SELECT CAST(min(total(size), 9e18) AS INTEGER) FROM chunk WHERE digest IN (SELECT r.chunk FROM kv_ref r"
        " JOIN kv_commit c ON c.id = r.kv_commit WHERE c.session = ?)",
        (session_id,),
    ).fetchone()[0]


def unsaved_bytes(db: sqlite3.Connection, session_id: str, waiting: Mapping[str, int]) -> int:
    """Bytes that `saved_bytes` gains once the session refers to the chunks `waiting` (sizes by digest) too."""
    query = "SELECT 1 FROM kv_ref r JOIN kv_commit c ON c.id = r.kv_commit WHERE c.session = ? AND r.chunk = ?"
    return sum(size for digest, size in waiting.items() if not db.execute(query, (session_id, digest)).fetchone())


def state_bytes(db: sqlite3.Connection, session_id: str | None, waiting: Mapping[str, int]) -> int:
    """Bytes of the recurrent states that the session's commits refer to, or of all (None), each counted once, and of
    those `waiting` to be written (sizes by digest)."""
    found = db.execute(
        "SELECT digest, size FROM chunk WHERE grp = ?1 AND (?2 IS NULL OR digest IN (SELECT r.chunk FROM kv_ref r"
        " JOIN kv_commit c ON c.id = r.kv_commit WHERE c.session = ?2))",
        (STATE, session_id),
    )
    return sum({**waiting, **{digest: size for digest, size in found if isinstance(size, int)}}.values())


def bytes_written(db: sqlite3.Connection, session_id: str | None) -> int:
    """Bytes ever written for the session, or by this store (None)."""
    if session_id is None:
        row = db.execute("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'kv_written'").fetchone()
    else:
        row = db.execute("SELECT kv_written FROM session WHERE id = ?", (session_id,)).fetchone()
    return row[0] if row else 0


def count_written(db: sqlite3.Connection, session_id: str, written: int) -> None:
    """Add to the bytes ever written for the session and by this store."""
    db.execute("UPDATE session SET kv_written = kv_written + ? WHERE id = ?", (written, session_id))
    db.execute(
        "INSERT INTO meta VALUES('kv_written', ?1) ON CONFLICT(key) DO UPDATE SET value = CAST(value AS INTEGER) + ?1",
        (str(written),),
    )
