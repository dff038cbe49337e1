"""Saving a cache: export the rows that are new, write them as chunks, then refer to them in one transaction.

Chunks first, references second: a crash in between leaves a file that nothing refers to, never a reference to nothing.
The engine thread calls this, since exporting rows is MLX's work.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.errors import SessionChangedError, StoreError
from mlxkv.store.arrays import to_tensors
from mlxkv.store.chunks import ChunkFiles
from mlxkv.store.format import ChunkHead, Encoded, encode_chunk, prefix_keys
from mlxkv.store.history import History, pack_ids
from mlxkv.store.identity import ModelIdentity, spec_id, spec_parts
from mlxkv.store.ports import KVCacheLike, LayerGroup, Range
from mlxkv.store.ranges import SHORT, Grid, clipped, common_prefix, covers, without
from mlxkv.store.records import KVCommit
from mlxkv.store.refs import SavedChunk, save_commit, save_spec, saved_chunks, saved_commits, seed
from mlxkv.store.sessions import Sessions, save_model

ATTEMPTS = 3  # another process may remove an unused chunk between our finding it and our referring to it


class _Vanished(Exception):
    pass


@dataclass(frozen=True)
class Committer:
    sessions: Sessions
    chunks: ChunkFiles

    def commit(self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None) -> KVCommit:
        """Save what the cache holds of the session's log; see SessionStore.commit_kv."""
        written = 0
        for _ in range(ATTEMPTS):
            try:
                done = self._commit(session_id, cache, model, rng, written)
                return KVCommit(done.pos, written + done.bytes_written, done.notice)
            except _Vanished as vanished:
                written += vanished.args[0]
        raise StoreError(f"The KV folder {self.chunks.root} keeps losing files; check what else deletes them.")

    def _commit(
        self, session_id: str, cache: KVCacheLike, model: ModelIdentity, rng: bytes | None, before: int
    ) -> KVCommit:
        parts = spec_parts(cache.layout(), model.spec_extra)
        spec = spec_id(cache.layout(), model.spec_extra)
        with self.sessions.database.reading() as db:
            history = self.sessions.history(db, session_id)
            mine = [
                c for c in saved_commits(db, session_id, history) if c.model_id == model.model_id and c.spec_id == spec
            ]
            saved = saved_chunks(db, mine, history)
        present = [chunk for chunk in saved if self.chunks.has(chunk.digest, chunk.size)]
        pos = common_prefix(history.log, pack_ids(cache.tokens))
        plan = {group.name: self._new(group, pos, present) for group in cache.groups}
        if pos == 0 or not cache.groups:
            return KVCommit(0, 0)
        if not all(_can_stand(g, pos, present, plan[g.name]) for g in cache.groups):
            return KVCommit(
                0, 0, f"The KV cache was not saved: at token {pos} it no longer holds the rows to go on from there."
            )
        new: list[Encoded] = []
        written = 0
        try:
            for group in cache.groups:
                keys = prefix_keys(history.log, seed(model.model_id, spec, group.name), plan[group.name])
                for a, b in plan[group.name]:
                    head = ChunkHead(group.name, a, b, keys[a, b])
                    chunk = encode_chunk(head, to_tensors(group.export_rows(a, b), group.shapes(b - a)))
                    written += self.chunks.put(chunk)
                    new.append(Encoded(head, (), chunk.digest, chunk.size))  # without the bytes: memory stays flat
        except OSError as error:
            raise StoreError(
                f"The KV cache could not be written to {self.chunks.root} ({error.strerror}); the chat is kept, "
                "only reopening it will take longer."
            ) from error
        gone = [chunk for chunk in saved if chunk not in present]
        self._refer(session_id, history, pos, model, (spec, parts), rng, new, gone, before + written)
        return KVCommit(pos, written)

    def _refer(
        self, session_id: str, history: History, pos: int, model: ModelIdentity, spec: tuple[str, dict[str, str]],
        rng: bytes | None, new: list[Encoded], gone: list[SavedChunk], written: int,
    ) -> None:  # fmt: skip
        with self.sessions.database.writing() as db:
            row = db.execute("SELECT head FROM session WHERE id = ?", (session_id,)).fetchone()
            if row is None or row[0] != history.head:
                raise SessionChangedError(
                    f"Session {session_id} was changed by another process while its KV cache was saved; open it again."
                )
            for chunk in gone:
                if not self.chunks.has(chunk.digest, chunk.size):
                    db.execute("DELETE FROM chunk WHERE digest = ?", (chunk.digest,))
            if not all(self.chunks.has(chunk.digest, chunk.size) for chunk in new):
                raise _Vanished(written)
            save_spec(db, *spec)
            save_commit(db, session_id, pos, history.head, save_model(db, model), spec[0], rng, new)
            db.execute(
                "UPDATE session SET kv_written = kv_written + ?, spec_id = ? WHERE id = ?",
                (written, spec[0], session_id),
            )

    def _new(self, group: LayerGroup, pos: int, saved: list[SavedChunk]) -> list[Range]:
        """The chunks to write for one group: rows held and not saved yet, cut on its grid."""
        grid = Grid(group)
        held = clipped(group.held(), pos)
        mine = [chunk for chunk in saved if chunk.head.group == group.name]
        out: list[Range] = []
        for a, b in without(held, [(chunk.head.a, chunk.end) for chunk in mine]):
            out += grid.cut(_merge_start(a, mine, held, grid), b)
        return out


def _merge_start(a: int, saved: list[SavedChunk], held: list[Range], grid: Grid) -> int:
    """Where to start instead of `a`, to take in the previous chunk while that is short and its cell is not full."""
    if grid.is_cut(a):
        return a
    for chunk in saved:
        start, end = chunk.head.a, chunk.end
        if end == a == chunk.head.b and end - start < SHORT and covers(held, [(start, end)]):
            return start
    return a


def _can_stand(group: LayerGroup, pos: int, saved: list[SavedChunk], new: list[Range]) -> bool:
    have = [(chunk.head.a, chunk.end) for chunk in saved if chunk.head.group == group.name]
    return covers([*have, *new], group.required(pos))
