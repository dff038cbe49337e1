"""What is remembered of a session's saved rows is what listing all of it finds, whatever happens to them."""

from __future__ import annotations

import hashlib
import os
import random
from array import array
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.store.identity import spec_id
from mlxkv.store.kv.chunk_format import PrefixKeys
from mlxkv.store.kv.commits import saved_bytes, saved_chunks, saved_commits
from mlxkv.store.kv.folder_listing import Listing
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model


def remembered(store: SessionStore, session: str, cache: FakeCache) -> tuple[set[tuple[str, int]], int]:
    """Chunks with where their rows end, and the bytes of all: as they are known, and as the database has them."""
    spec = spec_id(cache.layout(), model().spec_extra)
    with store._database.reading() as db:
        history = store.sessions.history(db, session)
        rows = store._saver.planner.saved(session, model().model_id, spec)
        rows.update(db, history)
        commits = [c for c in saved_commits(db, session, history) if c.spec_id == spec]
        listed = [c for c in saved_chunks(db, commits, history) if store._chunks.has(c.digest, c.size)]
        assert {(c.digest, c.end) for c in rows.chunks.values()} == {(c.digest, c.end) for c in listed}
        assert rows.num_bytes == store._saver.planner.saved_bytes(db, session) == saved_bytes(db, session)
        assert rows.reached >= max((c.valid for c in commits), default=0)
        for name in ("full", "window64"):
            covered = {p for a, b in rows.group(name).covered for p in range(a, b)}
            assert covered == {p for c in listed if c.head.group == name for p in range(c.head.a, c.end)}
    return {(c.digest, c.end) for c in listed}, rows.num_bytes


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_remembered_is_what_is_listed(folders: Folders, window: int | None, seed: int) -> None:
    """A chat that grows, is rewritten, reopened, forked, restored, shares rows, and loses files."""
    rng = random.Random(seed)
    with SessionStore.open(folders) as store, SessionStore.open(folders) as other:
        talk = Talk(store, FakeCache(window))
        kinds = ["turn"] * 6 + ["rewrite", "reopen", "lose", "remove", "restore", "fork", "again"]
        seen = set()
        for n in range(40):
            kind = rng.choice(kinds)
            cache = talk.cache
            if kind in ("turn", "rewrite") or not cache.tokens:
                start = None
                if kind == "rewrite" and cache.tokens:
                    start = rng.randrange(max(0, len(cache.tokens) - 60), len(cache.tokens))
                    kept = cache.tokens[:start]
                    talk.cache = FakeCache(window)
                    talk.cache.feed(kept)
                length = len(talk.cache.tokens)
                ids = tuple(rng.randrange(1000) + 1000 * n for _ in range(rng.randrange(1, 120)))
                store.add_turn(talk.id, TurnRecord("user", f"{n}", ids, length if start is not None else None))
                talk.cache.feed(ids)
                store.commit_kv(talk.id, talk.cache, model())
            elif kind == "reopen":  # the last turn grows
                last = store.load(talk.id).turns[-1]
                more = tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 20)))
                store.update_open_turn(
                    talk.id, TurnRecord(last.role, last.text, (*last.ids, *more), state="done"), reopen=True
                )
                remembered(store, talk.id, talk.cache)
                talk.cache.feed(more)
                store.save_kv(talk.id, talk.cache, model())
                store.flush(talk.id)
            elif kind == "lose":
                files = sorted((folders.cache / "kv").glob("??/*.safetensors"))
                for path in rng.sample(files, min(len(files), 2)):
                    path.unlink()
            elif kind == "remove":  # another process makes room, or finds them damaged
                with other._database.writing() as db:
                    digests = [row[0] for row in db.execute("SELECT digest FROM chunk ORDER BY digest")]
                from mlxkv.store.kv.commits import remove_chunks

                with other._database.writing() as db:
                    remove_chunks(db, rng.sample(digests, min(len(digests), 2)))
            elif kind == "restore":
                store.restore_kv(talk.id, FakeCache(window, run=1), model(), cache.tokens)
            elif kind == "fork":
                talk.id = store.fork(talk.id, len(store.load(talk.id).turns))
            else:
                store.commit_kv(talk.id, cache, model(), rng=bytes([n]))
            seen.add(kind)
            remembered(store, talk.id, talk.cache)
        assert len(seen) >= 6


def test_a_file_that_vanished_is_written_again(talk: Talk, folders: Folders) -> None:
    talk.turn(100)
    talk.turn(10)
    path = max((folders.cache / "kv").glob("??/*.safetensors"), key=lambda p: p.stat().st_size)
    path.unlink()
    talk.turn(10)
    assert path.exists()
    fresh = FakeCache(run=1)
    assert talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens == 120


def test_rows_that_another_process_removed_are_written_again(talk: Talk, folders: Folders) -> None:
    """Its file may still be there."""
    talk.turn(100)
    with SessionStore.open(folders, disk_limit=0):  # makes room at once
        pass
    talk.turn(10)
    fresh = FakeCache(run=1)
    assert talk.store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens == 110


def test_prefix_keys_of_a_growing_log_are_those_of_a_whole_one() -> None:
    def whole(log: array[int], a: int, b: int) -> str:
        ends = a.to_bytes(8, "little") + b.to_bytes(8, "little")
        return hashlib.blake2b(b"seed" + log[:b].tobytes() + ends, digest_size=16).hexdigest()

    rng, every = random.Random(1), PrefixKeys.MARK_EVERY
    log = array("i", (rng.randrange(1 << 20) for _ in range(5 * every)))
    keys = PrefixKeys("seed")
    for end in (10, every, every + 1, 3 * every + 5, 2 * every, 5 * every):
        assert keys.key(log, 3, end) == whole(log, 3, end)
    other = log[: 2 * every + 7] + array("i", [1] * every)
    assert keys.key(other, 0, len(other), 2 * every + 7) == whole(other, 0, len(other))
    keys.cut(2 * every + 7)
    assert keys.key(other, 0, len(other)) == whole(other, 0, len(other))


def test_a_folder_is_listed_again_when_it_has_changed(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    listing = Listing(root)
    assert listing.refresh() == 0
    (root / "aa").mkdir(parents=True)
    (root / "bb").mkdir()
    (root / "aa" / "one").write_bytes(b"x" * 5000)
    long_ago = 1_600_000_000 * 10**9
    for folder in (root / "aa", root / "bb", root):
        os.utime(folder, ns=(long_ago, long_ago))
    used = listing.refresh()
    assert used == sum(p.stat().st_blocks * 512 for p in (root, root / "aa", root / "bb", root / "aa" / "one"))
    known = listing.folder("aa")
    assert (dict(known), listing.refresh()) == ({"one": 5000}, used)
    assert listing.folder("aa") is known
    (root / "aa" / "two").write_bytes(b"y")
    assert listing.refresh() > used
    assert dict(listing.folder("aa")) == {"one": 5000, "two": 1}
    (root / "aa" / "one").unlink()  # at once after it was listed, which may be within one tick of the clock
    listing.refresh()
    assert dict(listing.folder("aa")) == {"two": 1}
    (root / "bb" / "deep").mkdir()
    (root / "bb" / "deep" / "x").write_bytes(b"z" * 9000)
    before = listing.refresh()
    (root / "bb" / "deep" / "y").write_bytes(b"z" * 9000)  # no folder beside it has changed
    assert listing.refresh() > before
