"""Large restores: memory asked for in long runs, which cover every row and change none; several chunks at once."""

from __future__ import annotations

import mmap
import random
import sys
from pathlib import Path

import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.interchange import Buffer, Places
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.config import Folders
from mlxkv.inference.runner import ModelRunner
from mlxkv.store.kv import chunk_reader, prefault
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.reference import largest, random_ids, tiny_llama
from tests.store.fake import model as identity
from tests.store.test_damage import chunks, flip_first_row


@pytest.mark.parametrize("between", [0, 256 << 10])
def test_the_runs_hold_every_row_that_is_wanted(between: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefault, "_BETWEEN", between)
    dice = random.Random(between)
    for _ in range(50):
        heads, rows, width = dice.randrange(1, 4), dice.randrange(4, 40), dice.randrange(1, 9)
        tensors = {n: Buffer(memoryview(bytearray(heads * rows * width)), width, heads, rows) for n in "kv"}
        places, wanted = [], set()
        for _ in range(dice.randrange(1, 4)):
            row, count = dice.randrange(rows - 2), dice.randrange(1, 3)
            places.append(Places(((100, 107, None), (107, 107 + count, row)), tensors))
            wanted |= {h * rows + r for h in range(heads) for r in range(row, row + count)}
        for run in prefault.runs(places):
            run[:] = b"\1" * len(run)
        for buffer in tensors.values():
            there = {i // width for i, byte in enumerate(buffer.data) if byte}
            assert wanted <= there
            if not between:  # nothing before the first and after the last row of a head
                low, high = min(i % rows for i in wanted), max(i % rows for i in wanted)
                assert all(low <= i % rows <= high for i in there)
    assert list(prefault.runs([Places(((0, 5, None),), {})])) == []


def test_asking_for_pages_leaves_what_they_hold() -> None:
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        view = memoryview(memory)
        view[5000:5010] = b"0123456789"
        prefault.prefault(view[100:-100])
        prefault.prefault(view[4999:5000])  # not one whole page
        assert (view[5000:5010], sum(view)) == (b"0123456789", sum(b"0123456789"))
        view.release()


@pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to ask for elsewhere")
def test_the_pages_are_there_afterwards() -> None:
    with mmap.mmap(-1, 4096 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        before = _resident()
        view = memoryview(memory)
        prefault.prefault(view)
        view.release()
        assert _resident() - before >= 4000  # the kernel's count is a little behind


def _resident() -> int:
    """Pages of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("asks", [True, False])
def test_a_damaged_chunk_among_several_at_once_costs_tokens(
    asks: bool, store: SessionStore, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_reader, "_PARALLEL_FROM", 0)
    if not asks:
        monkeypatch.setattr(prefault, "_madvise", lambda: None)
    model = tiny_llama()
    runner, plan = ModelRunner(model), plan_cache(model, CacheConfig(window=1024, block=64))
    cache, session = PromptCache(plan, model), store.sessions.create("cuts", identity())
    for n in range(3):
        ids = random_ids(200, seed=n)
        list(runner.prefill(cache, ids))
        store.add_turn(session, TurnRecord("user", "x", tuple(ids)))
        store.commit_kv(session, cache, identity())
    back = PromptCache(plan, model)
    assert store.restore_kv(session, back, identity(), cache.tokens).tokens == 600
    flip_first_row(max(chunks(folders), key=lambda path: path.stat().st_mtime_ns))
    found = store.restore_kv(session, back, identity(), cache.tokens)
    assert 300 <= found.tokens < 600
    assert found.notice is not None
    cache.rewind(found.tokens)
    probe = random_ids(9, seed=9)
    assert largest(runner.score(back, probe) - runner.score(cache, probe)) == 0.0
