"""The saved rows of one open session, updated incrementally: a turn reads new commits instead of listing all.

Follows the history (rows of ids that were replaced no longer belong to the log), other writers (`num_removed` counts
removals of referenced rows), and the KV folder, from which files may vanish at any moment. The result is equal to
`commits.saved_chunks`. Engine thread.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from mlxkv.store.db.history import EMPTY_HISTORY, History
from mlxkv.store.kv.chunk_format import PrefixKeys
from mlxkv.store.kv.commits import STATE, SavedChunk, num_removed, saved_chunks, saved_commits, seed
from mlxkv.store.kv.folder_listing import Listing
from mlxkv.store.kv.protocols import Range
from mlxkv.store.kv.ranges import clip, merge


class GroupRows:
    """The chunks of one group, sorted by their ends."""

    def __init__(self, keys: PrefixKeys) -> None:
        self.keys = keys
        self.covered: list[Range] = []
        self._ends: list[tuple[int, str]] = []
        self.chunks: dict[str, SavedChunk] = {}

    def add(self, chunk: SavedChunk) -> None:
        self.chunks[chunk.digest] = chunk
        insort(self._ends, (chunk.end, chunk.digest))
        if self.covered and self.covered[-1][0] <= chunk.head.a <= self.covered[-1][1]:  # at the end, as most are
            self.covered[-1] = (self.covered[-1][0], max(self.covered[-1][1], chunk.end))
        else:
            self.covered = merge([*self.covered, (chunk.head.a, chunk.end)])

    def discard(self, digests: Iterable[str]) -> None:
        for digest in digests:
            chunk = self.chunks.pop(digest)
            del self._ends[bisect_left(self._ends, (chunk.end, digest))]
        self.covered = merge((chunk.head.a, chunk.end) for chunk in self.chunks.values())

    def cut(self, length: int) -> list[SavedChunk]:
        """Cut to the first `length` tokens; removes and returns the chunks that reached further."""
        self.keys.cut(length)
        self.covered = clip(self.covered, length)
        first = bisect_left(self._ends, (length + 1, ""))
        over = [self.chunks.pop(digest) for _, digest in self._ends[first:]]
        del self._ends[first:]
        return over

    def chunk_starts(self, end: int) -> list[int]:
        """The starts of the whole chunks that end at `end`."""
        found = []
        for at in range(bisect_left(self._ends, (end, "")), len(self._ends)):
            chunk = self.chunks[self._ends[at][1]]
            if chunk.end != end:
                break
            if chunk.head.b == end:
                found.append(chunk.head.a)
        return found


class SavedRows:
    """The saved rows of a session, for one model and cache layout.

    `chunks` by digest; `missing` are those whose files have vanished. `num_bytes` counts all chunks that the session
    refers to, those of other models too; of these `states` are recurrent states. `reached`: the most tokens of
    the log that a commit saved.
    """

    def __init__(self, session_id: str, model_id: str, spec_id: str, listing: Listing) -> None:
        self.session_id, self.model_id, self.spec_id, self._listing = session_id, model_id, spec_id, listing
        self._start_over(EMPTY_HISTORY, -1)

    def _start_over(self, history: History, removed: int) -> None:
        self._history, self._removed = history, removed
        # The newest commit when sizes and when chunks were read; it may have more chunks since.
        self._counted = self._listed = 0
        self._sizes: dict[str, int] = {}  # of all chunks that the session refers to,
        self.states: set[str] = set()  # and which of them are recurrent states
        self._by_folder: dict[str, set[str]] = defaultdict(set)  # `chunks`
        self._checked_folders: dict[str, Mapping[str, int]] = {}  # folders as they were then
        self.chunks: dict[str, SavedChunk] = {}
        self.groups: dict[str, GroupRows] = {}
        self.missing: dict[str, SavedChunk] = {}
        self.num_bytes = self.reached = 0

    def group(self, name: str) -> GroupRows:
        if name not in self.groups:
            self.groups[name] = GroupRows(PrefixKeys(seed(self.model_id, self.spec_id, name)))
        return self.groups[name]

    def update(self, db: sqlite3.Connection, history: History) -> None:
        """Apply new commits, removals and changes of the history."""
        removed = num_removed(db)
        if not self._follow_history(history) or self._removed < 0:
            self._start_over(history, removed)
        self._drop_removed(db, removed)
        self._count_chunks(db)
        self._list_chunks(db)
        self._check_files()

    def update_bytes(self, db: sqlite3.Connection) -> int:
        """Update and return `num_bytes`."""
        self._drop_removed(db, num_removed(db))
        self._count_chunks(db)
        return self.num_bytes

    # -- changes ----------------------------------------------------------------------------------------------------

    def _follow_history(self, history: History) -> bool:
        """Forget rows of ids that were replaced; False if the history is not a continuation."""
        before, self._history = self._history, history
        shared = _shared(before, history)
        if shared is None:
            return False
        if shared < len(before.log):
            self.reached = min(self.reached, shared)
            for chunk in [chunk for rows in self.groups.values() for chunk in rows.cut(shared)]:
                self._drop(chunk)
                if chunk.head.a < shared:
                    self._add(replace(chunk, end=shared))
        return True

    def _drop_removed(self, db: sqlite3.Connection, removed: int) -> None:
        """Forget chunks that others have removed, and states without a reference."""
        lost: set[str] = set()
        if removed != self._removed:
            self._removed = removed
            query = "SELECT r.chunk FROM kv_commit c JOIN kv_ref r ON r.kv_commit = c.id WHERE c.session = ?"
            present = {row[0] for row in db.execute(query, (self.session_id,))}
            lost = (self._sizes.keys() | self.missing.keys()) - present
        elif self.states:
            marks = ", ".join("?" * len(self.states))
            query = f"""SELECT r.chunk FROM kv_ref r CROSS JOIN kv_commit c ON c.id = r.kv_commit
                WHERE r.chunk IN ({marks}) AND c.session = ?"""  # CROSS: in this order, else SQLite scans all commits
            lost = self.states - {row[0] for row in db.execute(query, (*self.states, self.session_id))}
        for digest in lost:
            self.num_bytes -= self._sizes.pop(digest, 0)
            self.states.discard(digest)
            self.missing.pop(digest, None)
        self._discard(lost)

    def _count_chunks(self, db: sqlite3.Connection) -> None:
        """Add the sizes of the chunks of new commits."""
        for commit_id, digest, size, group in db.execute(
            "SELECT c.id, k.digest, k.size, k.grp FROM kv_commit c LEFT JOIN kv_ref r ON r.kv_commit = c.id"
            " LEFT JOIN chunk k ON k.digest = r.chunk WHERE c.session = ? AND c.id >= ?",
            (self.session_id, self._counted),
        ).fetchall():
            self._counted = max(self._counted, commit_id)
            if isinstance(size, int) and digest not in self._sizes:
                self._sizes[digest] = size
                self.num_bytes += size
                if group == STATE:
                    self.states.add(digest)

    def _list_chunks(self, db: sqlite3.Connection) -> None:
        """Add the chunks of new commits that belong to the log."""
        commits = saved_commits(db, self.session_id, self._history, self._listed)
        self._listed = max((self._listed, *(commit.id for commit in commits)))
        mine = [c for c in commits if (c.model_id, c.spec_id) == (self.model_id, self.spec_id)]
        self.reached = max((self.reached, *(c.valid for c in mine)))
        for chunk in saved_chunks(db, mine, self._history, lambda commit, name: self.group(name).keys):
            known = self.chunks.get(chunk.digest)
            if known is None or known.end < chunk.end:
                if known is not None:
                    self._discard([known.digest])
                self._add(chunk)

    def _check_files(self) -> None:
        self._listing.refresh()
        missing = []
        for name, digests in self._by_folder.items():
            sizes = self._listing.folder(name)
            if self._checked_folders.get(name) is not sizes:
                missing += [d for d in digests if sizes.get(f"{d}.safetensors") != self.chunks[d].size]
                self._checked_folders[name] = sizes
        self.missing.update((digest, self.chunks[digest]) for digest in missing)
        self._discard(missing)

    # ----------------------------------------------------------------------------------------------------------------

    def _add(self, chunk: SavedChunk) -> None:
        self.chunks[chunk.digest] = chunk
        self.group(chunk.head.group).add(chunk)
        self.missing.pop(chunk.digest, None)
        self._by_folder[chunk.digest[:2]].add(chunk.digest)
        self._checked_folders.pop(chunk.digest[:2], None)

    def _discard(self, digests: Iterable[str]) -> None:
        by_group: dict[str, list[str]] = defaultdict(list)
        for digest in digests:
            if (chunk := self.chunks.get(digest)) is not None:
                by_group[chunk.head.group].append(digest)
                self._drop(chunk)
        for name, found in by_group.items():
            self.groups[name].discard(found)

    def _drop(self, chunk: SavedChunk) -> None:
        del self.chunks[chunk.digest]
        self._by_folder[chunk.digest[:2]].discard(chunk.digest)


def _shared(before: History, now: History) -> int | None:
    """The number of tokens that an earlier log shares with the log now; None if it is not an earlier one.

    The last turn may have been replaced; one that has grown keeps its rows (`Sessions.update_open_turn`).
    """
    k, shared = len(before.turns), len(before.log)
    if now.digests[k : k + 1] != (before.head,):
        if not k or len(now.turns) < k or now.digests[k - 1] != before.digests[k - 1]:
            return None
        old, new = before.turns[-1], now.turns[k - 1]
        if new.start != old.start or new.ids[: len(old.ids)] != old.ids:
            shared = min(old.start or 0, new.start or 0)
    return min([shared, *(turn.start or 0 for turn in now.turns[k:])])
