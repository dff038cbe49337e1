"""The disk limit: how much lies in the KV folder, what goes first when there is no room, what never goes.

One hard limit over every file and folder there, temporary and quarantined ones included, kept before a byte is written.
Whoever calls `make_room` holds the KV lock, so that what is counted stays true until it is written. Writer thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlxkv.errors import StoreError
from mlxkv.store.chunks import ChunkFiles
from mlxkv.store.commit import Plan
from mlxkv.store.files import disk_usage
from mlxkv.store.format import ChunkHead
from mlxkv.store.ports import LayerGroup, Range
from mlxkv.store.schema import Database

FILE_HEADER = 512  # bytes, and for each tensor:
TENSOR_HEADER = 128
BLOCK = 4096  # bytes; file systems give space in such pieces
HEADROOM = 8 * BLOCK  # a write may also need a folder, and a folder may grow
ANY_AGE = -3600.0  # seconds; under the KV lock nobody is writing, so whatever lies about was left behind


def on_disk(size: int) -> int:
    """What a file of `size` bytes takes."""
    return -(-size // BLOCK) * BLOCK


@dataclass
class _Candidate:
    """A chunk that may go. `is_needed`: a session cannot be resumed without it."""

    digest: str
    size: int
    a: int
    b: int
    is_needed: bool = False
    is_kept: bool = False  # needed by a session that is open
    updated: float = 0.0

    @property
    def order(self) -> tuple[bool, float, int]:
        """Rows that left every window first, then the chats that rest longest; of these the end first, since the
        beginning is of use without it."""
        return self.is_needed, self.updated, -self.b if self.is_needed else self.a


@dataclass
class Quota:
    """`limit` bytes for everything in the KV folder, None for no limit.

    `open_sessions` names the sessions that are open, in this process or another.
    """

    limit: int | None
    chunks: ChunkFiles
    open_sessions: Callable[[], set[str]]

    def fits(self, plan: Plan, groups: Sequence[LayerGroup]) -> bool:
        """Whether what this session needs stays under the limit by itself."""
        if self.limit is None or not plan.pos:
            return True
        kept = [c.size for c in plan.kept if _overlaps(plan.needed, c.head.group, c.head.a, c.end)]
        sizes = kept + [_estimate(head, groups) for head in plan.heads]
        return sum(on_disk(size) + BLOCK for size in sizes) + 2 * HEADROOM <= self.limit

    def make_room(self, database: Database, size: int, plan: Plan, new: Iterable[str]) -> None:
        """Remove until a file of `size` bytes fits; what the plan needs and the digests in `new` stay.

        Raises:
            StoreError: it cannot fit.
        """
        if self.limit is None:
            return
        target = self.limit - on_disk(size) - HEADROOM
        keep = set(new)
        for old in (True, False):
            self._shrink(database, target, keep, plan, old)
        if disk_usage(self.chunks.root) > target:
            raise StoreError(
                f"The KV cache was not saved: open chats fill the disk limit of {self.limit / 1e9:.3g} GB; "
                "raise `disk_limit`."
            )

    def enforce(self, database: Database) -> None:
        """Go under the limit, as far as open sessions allow."""
        if self.limit is not None:
            self._shrink(database, self.limit, set())

    def _shrink(
        self, database: Database, target: int, keep: set[str], saving: Plan | None = None, old: bool = True
    ) -> None:
        """`old`: spare what the session that is being saved was saved with last: it counts until the new commit."""
        if disk_usage(self.chunks.root) <= target:
            return
        self.chunks.drop_empty_folders()
        used = disk_usage(self.chunks.root)
        with database.reading() as db:
            known = {row[0] for row in db.execute("SELECT digest FROM chunk")}
        for path in self.chunks.stale(known | keep, ANY_AGE):
            if used > target:
                used -= self.chunks.discard(path)
        while used > target and (victims := self._victims(database, used - target, keep, saving, old)):
            for digest in victims:  # after the commit: a crash in between leaves files without a row, not the reverse
                self.chunks.discard(self.chunks.path(digest))
            self.chunks.drop_empty_folders()
            used = disk_usage(self.chunks.root)

    def _victims(self, database: Database, num_bytes: int, keep: set[str], saving: Plan | None, old: bool) -> list[str]:
        """Forget as many chunks as may free `num_bytes`; how many they really free is seen when they are gone."""
        victims = []
        with database.writing() as db:
            for chunk in self._candidates(db, saving, old):
                if num_bytes <= 0:
                    break
                if not chunk.is_kept and chunk.digest not in keep:
                    num_bytes -= on_disk(chunk.size) + BLOCK  # and perhaps its folder
                    victims.append(chunk.digest)
            db.executemany("DELETE FROM chunk WHERE digest = ?", [(digest,) for digest in victims])
        return victims

    def _candidates(self, db: sqlite3.Connection, saving: Plan | None, old: bool) -> list[_Candidate]:
        is_open = self.open_sessions()
        needed: dict[str, list[_Needed]] = {}
        updated: dict[str, float] = {}
        for session, when, text in db.execute("SELECT id, updated, needed FROM session"):
            updated[session], needed[session] = when, [_ranges(text)]
        if saving:
            is_open.add(saving.session_id)
            before = needed.get(saving.session_id, []) if old else []
            needed[saving.session_id] = [*before, saving.needed]
        found: dict[str, _Candidate] = {}
        for digest, size, group, a, b, session in db.execute(
            "SELECT k.digest, k.size, k.grp, k.a, k.b, c.session FROM chunk k"
            " LEFT JOIN kv_ref r ON r.chunk = k.digest LEFT JOIN kv_commit c ON c.id = r.kv_commit"
        ):
            chunk = found.setdefault(digest, _Candidate(digest, size, a, b))
            if session is not None:
                chunk.updated = max(chunk.updated, updated.get(session, 0.0))
                if any(_overlaps(ranges, group, a, b) for ranges in needed.get(session, [])):
                    chunk.is_needed = True
                    chunk.is_kept = chunk.is_kept or session in is_open
        return sorted(found.values(), key=lambda chunk: chunk.order)


_Needed = Mapping[str, list[Range]] | None
"""Ranges by group; None: not known, so everything may be needed."""


def _ranges(text: str) -> _Needed:
    try:
        table = json.loads(text)
        return {group: [(int(a), int(b)) for a, b in ranges] for group, ranges in table.items()} or None
    except (ValueError, TypeError, AttributeError):
        return None


def _estimate(head: ChunkHead, groups: Sequence[LayerGroup]) -> int:
    """Bytes of the file, or a little more."""
    group = next(group for group in groups if group.name == head.group)
    rows = head.b - head.a
    return rows * group.row_bytes + FILE_HEADER + TENSOR_HEADER * len(group.shapes(rows))


def _overlaps(needed: _Needed, group: str, a: int, b: int) -> bool:
    return needed is None or any(a < high and low < b for low, high in needed.get(group, ()))
