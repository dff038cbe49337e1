"""The disk limit, and the order in which chunks are removed to stay under it; some never are.

One hard limit over every file and folder in mlxkv's cache folder (disk_usage.py counts them), checked before a byte is
written. Rows of chats are removed to free space, named prompt caches never. Database rows go first and files second, so
that a crash in between leaves files without a row; a file that cannot be removed gets its row back. The caller of
`free_space` holds the KV lock, so that the count stays true until the write. Any thread, with its own connection.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlxkv.errors import StoreError
from mlxkv.stats import bytes_text, plural
from mlxkv.store.db.database import PINNED, Database
from mlxkv.store.files import disk_usage
from mlxkv.store.kv.chunk_format import ChunkHead
from mlxkv.store.kv.commits import PREFIX, STATE, remove_chunks, state_bytes
from mlxkv.store.kv.disk_usage import BLOCK, CacheFolder, on_disk
from mlxkv.store.kv.protocols import LayerGroup, Range
from mlxkv.store.kv.save_plan import Plan
from mlxkv.store.records import is_chunk
from mlxkv.system.regular_file import parse_json

FILE_HEADER = 512  # bytes, and for each tensor:
TENSOR_HEADER = 128
HEADROOM = 8 * BLOCK  # bytes; a write may also need a folder, and a folder may grow
MARGIN = 4 * BLOCK  # bytes left free when nothing is written: a new folder must still fit


@dataclass
class _Candidate:
    """A chunk that could be removed. `is_needed`: a session cannot be resumed without it, or it is the state at the end
    of a system prompt, which other chats begin with too."""

    digest: str
    size: int
    a: int
    b: int
    is_needed: bool = False
    is_locked: bool = False  # needed by a session that is open or pinned
    seq: int = 0  # of the chat that was used last

    @property
    def order(self) -> tuple[bool, int, int]:
        """Rows evicted from every window and states that only going back needs first, then the least recently used
        chats; of these the end first, since the beginning is useful without it."""
        return self.is_needed, self.seq, -self.b if self.is_needed else self.a


@dataclass(frozen=True)
class _Removed:
    """The rows of `chunk` and `kv_ref` that were removed from the database."""

    chunks: Sequence[tuple[object, ...]] = ()
    refs: Sequence[tuple[object, ...]] = ()

    @property
    def digests(self) -> list[str]:
        return [str(row[0]) for row in self.chunks]

    @classmethod
    def remove(cls, db: sqlite3.Connection, digests: Collection[str]) -> _Removed:
        chunks = [row for d in digests for row in db.execute("SELECT * FROM chunk WHERE digest = ?", (d,))]
        query = "SELECT kv_commit, chunk, kept_for FROM kv_ref WHERE chunk = ?"
        refs = [row for d in digests for row in db.execute(query, (d,))]
        remove_chunks(db, digests)
        return cls(chunks, refs)

    def reinsert(self, db: sqlite3.Connection, digests: Collection[str]) -> None:
        """Insert the rows of `digests` again; a commit that was deleted meanwhile needs none."""
        for row in self.chunks:
            if row[0] in digests:
                db.execute(f"INSERT OR IGNORE INTO chunk VALUES({', '.join('?' * len(row))})", row)
        db.executemany(
            "INSERT OR IGNORE INTO kv_ref(kv_commit, chunk, kept_for) SELECT ?1, ?2, ?3"
            " WHERE EXISTS(SELECT 1 FROM kv_commit WHERE id = ?1)",
            [row for row in self.refs if row[1] in digests],
        )


@dataclass
class Quota:
    """A limit of `limit` bytes for everything in `space`, None for no limit.

    `open_sessions` returns the sessions that are open, in this process or another.
    """

    limit: int | None
    space: CacheFolder
    open_sessions: Callable[[], set[str]]
    _stuck: set[str] = field(default_factory=set, init=False)  # chunks whose files could not be removed last time
    _spared: frozenset[str] = field(default=frozenset(), init=False)
    _counted: tuple[Plan | None, int] = field(default=(None, 0), init=False)  # the most bytes used during a save

    def description(self, database: Database) -> str:
        """The limit in words, with the shares of named prompt caches and of recurrent states if they are large."""
        limit = self.limit or 0
        with database.reading() as db:
            parts = {"named prompt caches": self.space.named(), "recurrent states": state_bytes(db, None, {})}
        large = max(limit // 20, HEADROOM)
        texts = [f"{what} take {bytes_text(size)}" for what, size in parts.items() if size > large]
        return f"the disk limit of {bytes_text(limit)}" + (f", of which {' and '.join(texts)}" if texts else "")

    def fits(self, plan: Plan, groups: Sequence[LayerGroup]) -> bool:
        """Whether the session's needed chunks fit under the limit, with the named prompt caches and nothing else."""
        if self.limit is None or not plan.pos:
            return True
        free = self.limit - self.space.permanent() - 2 * HEADROOM
        free -= sum(on_disk(_estimate(head, groups)) + BLOCK for head in plan.heads)
        if plan.saved_bytes + 2 * BLOCK * len(plan.saved) <= free:  # all of it: no need to look at each
            return True
        saved = [c.size for c in plan.saved if _overlaps(plan.needed, c.head.group, c.head.a, c.end)]
        return sum(on_disk(size) + BLOCK for size in saved) <= free

    def free_space(self, database: Database, size: int, plan: Plan, new: Iterable[str]) -> None:
        """Remove chunks until a file of `size` bytes fits; those the plan needs and the digests in `new` stay.

        Raises:
            StoreError: it cannot fit.
        """
        if self.limit is None:
            return
        target = self.limit - on_disk(size) - HEADROOM
        counted_for, used = self._counted
        if counted_for is not plan:  # only one save runs at a time: until it is done only its files are added
            used = self.space.used_quickly()
        if used <= target:
            self._counted = plan, used + on_disk(size) + 2 * BLOCK
            return
        self._counted = None, 0
        keep = set(new)
        if all(self._shrink(database, target, keep, plan, old) > target for old in (True, False)):
            what = self.description(database)
            if self._stuck:
                files = f"{plural(len(self._stuck), 'file')} in {self.space.chunks.root}"
                raise StoreError(
                    f"The KV cache was not saved: {what} is full, and {files} cannot be removed; check it."
                )
            raise StoreError(f"The KV cache was not saved: open chats fill {what}; raise `disk_limit`.")

    def free_space_for_named(self, database: Database, name: str, size: int) -> None:
        """Remove rows of chats until a file of `size` bytes fits; nothing is removed if that cannot be enough.

        Raises:
            StoreError: the named prompt caches and the rows that open chats need leave too little space.
        """
        self.check_named(database, name, size)
        if self.limit is None:
            return
        target = self.limit - on_disk(size) - HEADROOM
        if self._shrink(database, target, set()) > target:
            root = self.space.chunks.root
            raise StoreError(f"{name!r} does not fit: files in {root} cannot be removed; check that folder.")

    def check_named(self, database: Database, name: str, size: int) -> None:
        """Raises StoreError as `free_space_for_named` does, and removes nothing."""
        if self.limit is None or self.space.used() <= (target := self.limit - on_disk(size) - HEADROOM):
            return
        with database.reading() as db:
            chunks = self._candidates(db, None, True)
        paths = {locked: [self._path(c) for c in chunks if c.is_locked == locked] for locked in (True, False)}
        unused = [*self.space.orphans({chunk.digest for chunk in chunks}), *self.space.damaged()]
        if self.space.used_without({*paths[False], *unused}) <= target:
            return
        is_alone_too_large = target < 0
        named = 0 if is_alone_too_large else self.space.named()
        is_open = 0 if is_alone_too_large else sum(map(disk_usage, paths[True]))
        others = [f"other named ones take {bytes_text(named)} of it"] if named > HEADROOM else []
        others += [f"open chats need {bytes_text(is_open)} of it"] if is_open else []
        shares = f" ({' and '.join(others)})" if others else ""
        remedy = "delete some with `mlxkv cache rm`, or raise `disk_limit`" if others else "raise `disk_limit`"
        raise StoreError(
            f"The prompt cache {name!r} takes {bytes_text(size)}, which does not fit the disk limit of"
            f" {bytes_text(self.limit)}{shares}; {remedy}."
        )

    def _path(self, chunk: _Candidate) -> Path:
        return self.space.chunks.path(chunk.digest)

    def enforce(self, database: Database, spare: Collection[str] = ()) -> None:
        """Get under the limit, as far as open sessions and named prompt caches allow. `spare`: sessions about to be
        opened, which count as open."""
        if self.limit is not None:
            self._spared = frozenset(spare)
            try:
                self._shrink(database, self.limit - MARGIN, set())
            finally:
                self._spared = frozenset()

    def _shrink(
        self, database: Database, target: int, keep: set[str], saving: Plan | None = None, old: bool = True
    ) -> int:
        """Remove chunks and return the bytes used then. `old`: spare the last commit of the session being saved, which
        is valid until the new one."""
        chunks = self.space.chunks
        if (used := self.space.used()) <= target:
            return used
        chunks.drop_empty_folders()
        used = self.space.used()
        with database.reading() as db:
            known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
        for path in [*self.space.orphans(known | keep), *self.space.damaged()]:
            if used > target:
                used -= chunks.discard(path)
        self._stuck = set()
        while used > target:
            victims = self._remove_rows(database, used - target, keep | self._stuck, saving, old)
            if not victims.chunks:
                break
            for digest in victims.digests:
                chunks.discard(chunks.path(digest))
            if stuck := {digest for digest in victims.digests if os.path.lexists(chunks.path(digest))}:
                self._stuck |= stuck
                with database.writing() as db:
                    victims.reinsert(db, stuck)
            chunks.drop_empty_folders()
            used = self.space.used()
        return used

    def _remove_rows(
        self, database: Database, num_bytes: int, keep: set[str], saving: Plan | None, old: bool
    ) -> _Removed:
        """Remove the database rows of about `num_bytes` of chunks; the bytes they free show once the files are gone."""
        victims = []
        with database.writing() as db:
            for chunk in self._candidates(db, saving, old):
                if num_bytes <= 0:
                    break
                if not chunk.is_locked and chunk.digest not in keep:
                    num_bytes -= on_disk(chunk.size) + BLOCK  # and perhaps its folder
                    victims.append(chunk.digest)
            return _Removed.remove(db, victims)

    def _candidates(self, db: sqlite3.Connection, saving: Plan | None, old: bool) -> list[_Candidate]:
        is_open = self.open_sessions() | self._spared
        needed: dict[str, list[_Needed]] = {}
        used: dict[str, int] = {}
        query = f"SELECT id, seq, needed, flags & {PINNED} FROM session"
        for session, seq, text, is_pinned in db.execute(query):
            used[session] = seq if isinstance(seq, int) else 0
            needed[session] = [_ranges(text)]
            if is_pinned:
                is_open.add(session)
        if saving:
            is_open.add(saving.session_id)
            before = needed.get(saving.session_id, []) if old else []
            needed[saving.session_id] = [*before, saving.needed]
        found: dict[str, _Candidate] = {}
        for digest, size, group, a, b, session, kept_for in db.execute(
            "SELECT k.digest, k.size, k.grp, k.a, k.b, c.session, r.kept_for FROM chunk k"
            " LEFT JOIN kv_ref r ON r.chunk = k.digest LEFT JOIN kv_commit c ON c.id = r.kv_commit"
        ):
            if not is_chunk(digest, size, group, a, b):
                continue
            chunk = found.setdefault(digest, _Candidate(digest, size, a, b))
            if session is not None:
                chunk.seq = max(chunk.seq, used.get(session, 0))
                chunk.is_needed = chunk.is_needed or (group == STATE and kept_for == PREFIX)
                if any(_overlaps(ranges, group, a, b) for ranges in needed.get(session, [])):
                    chunk.is_needed = True
                    chunk.is_locked = chunk.is_locked or session in is_open
        return sorted(found.values(), key=lambda chunk: chunk.order)


_Needed = Mapping[str, list[Range]] | None
"""Ranges by group; None: unknown, so everything may be needed."""


def _ranges(text: str) -> _Needed:
    try:
        table = parse_json(text)
        return {group: [(int(a), int(b)) for a, b in ranges] for group, ranges in table.items()} or None
    except (ValueError, TypeError, AttributeError):
        return None


def _estimate(head: ChunkHead, groups: Sequence[LayerGroup]) -> int:
    """Bytes of the chunk file, or a few more."""
    group = next(group for group in groups if group.name == head.group)
    rows = head.b - head.a
    return rows * group.row_bytes + FILE_HEADER + TENSOR_HEADER * len(group.shapes(rows))


def _overlaps(needed: _Needed, group: str, a: int, b: int) -> bool:
    return needed is None or any(a < high and low < b for low, high in needed.get(group, ()))
