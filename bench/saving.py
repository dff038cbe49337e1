"""Saving and restoring beside mlx-lm's save_prompt_cache and load_prompt_cache: `python -m bench --only saving`.

One cache of the given size in each program's own form, the same rows in both, on the same disk, in one process, in
turns. mlx-lm writes without fsync; mlxkv's times end when the rows are durable. No model is run: rows are random.

Every load gets memory fresh from the kernel, as in a program just started: else glibc keeps the memory of the load
before or gives it back, as it happens, and a load is three times as fast or not.
"""

from __future__ import annotations

import ctypes
import os
import random
import statistics
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from bench.measure import fresh_home, make_part, seconds
from bench.rows import QWEN3, Pair, Shape
from mlxkv.cache.config import CacheConfig
from mlxkv.cli.bench.measure import ROUNDS, peak_of
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.config import Folders
from mlxkv.store.files import sync
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore

IDENTITY = ModelIdentity.of("bench", {"config.hidden_size": "64"})
COLUMNS = {
    "mlxkv": Unit.SECONDS, "other": Unit.SECONDS, "ratio": Unit.RATIO, "mlxkv bytes": Unit.BYTES,
    "other bytes": Unit.BYTES, "bytes ratio": Unit.RATIO,
}  # fmt: skip
_M_MMAP_THRESHOLD = -3  # glibc's name for: allocations as large as this are given back at once


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    sync(fd)
    os.close(fd)


def row(what: str, ours: float, other: float, sizes: tuple[int, int] | None = None, goal: Goal | None = None) -> Row:
    """Seconds of both sides, and bytes where a file was written."""
    values: dict[str, float] = {"mlxkv": ours, "other": other, "ratio": other / ours}
    if sizes is not None:
        values |= {"mlxkv bytes": sizes[0], "other bytes": sizes[1], "bytes ratio": sizes[1] / sizes[0]}
    return Row(what, values, goal)


def save_and_load(nbytes: int, folders: Folders, shape: Shape = QWEN3, rounds: int = ROUNDS) -> Part:
    """Save a cache of about `nbytes`, save it again after 1 % more tokens, load it."""
    tokens = nbytes // shape.row_bytes
    extra = max(1, tokens // 100)
    pair = Pair(shape, CacheConfig(window=tokens + (rounds + 2) * extra, sinks=4))
    file = folders.cache / "theirs.safetensors"
    with SessionStore.open(folders) as store:
        session = store.sessions.create("bench", IDENTITY)
        store.add_turn(session, TurnRecord("user", "x", pair.feed(tokens)))
        handed: list[float] = []

        def commit() -> None:
            handed.append(seconds(lambda: store.save_kv(session, pair.ours, IDENTITY)))
            assert store.flush(session) is None

        live = pair.ours.live_nbytes
        tracemalloc.start()
        first, save_peak = peak_of(lambda: seconds(commit))
        python_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        size = store.num_bytes_written(session)
        first_theirs = seconds(lambda: save_prompt_cache(str(file), pair.theirs))
        rows = [row("first save; save_prompt_cache", first, first_theirs, (size, file.stat().st_size))]
        ours, theirs, synced, written = list[float](), list[float](), list[float](), list[int]()
        for _ in range(rounds):
            store.add_turn(session, TurnRecord("user", "more", pair.feed(extra)))
            before = store.num_bytes_written(session)
            ours.append(seconds(commit))
            written.append(store.num_bytes_written(session) - before)
            theirs.append(seconds(lambda: save_prompt_cache(str(file), pair.theirs)))
            synced.append(theirs[-1] + seconds(lambda: sync_file(file)))
        sizes = int(statistics.median(written)), file.stat().st_size
        mine = statistics.median(ours)
        rows += [
            row("save after 1 % more tokens; save_prompt_cache", mine, statistics.median(theirs), sizes),
            row("the same; mlx-lm's file synced as well", mine, statistics.median(synced), sizes),
            row("the same, worst round; best of mlx-lm", max(ours), min(theirs)),
            row("of that until the chat continues; save_prompt_cache", statistics.median(handed[1:]),
                statistics.median(theirs)),
        ]  # fmt: skip
        log, held = store.load(session).log, pair.ours.nbytes
        pair.theirs, pair.ours = [], pair.fresh()
        loads, load_peak = _load(store, session, pair, log, file, rounds)
    peak = Row("peak memory of a load, in caches", {"ratio": load_peak / held}, Goal("ratio", at_most=1.1))
    return make_part(
        f"saving-{nbytes >> 20}", f"Saving and loading {nbytes >> 20:,} MiB", str(shape),
        f"{tokens:,} tokens; medians of {rounds}; files in the page cache", COLUMNS,
        [*rows, *loads, peak],
        f"While all of it was saved, memory above the cache was {save_peak / live:.1%} of its rows in MLX and "
        f"{python_peak / live:.1%} in Python.",
    )  # fmt: skip


def _load(
    store: SessionStore, session: str, pair: Pair, log: tuple[int, ...], file: Path, rounds: int
) -> tuple[list[Row], int]:
    """Load and verify, beside mlx-lm's load and a bare mx.load; the rows, and the highest memory of ours."""

    def bare() -> None:
        mx.eval(mx.load(str(file)))

    def theirs() -> None:
        caches: Any = load_prompt_cache(str(file))
        mx.eval([cache.state[:2] for cache in caches])

    def ours() -> None:
        restored = store.restore_kv(session, pair.fresh(), IDENTITY, log)
        assert restored.tokens == len(log), restored

    times: dict[Any, list[float]] = {ours: [], bare: [], theirs: []}
    peak = 0
    for n in range(rounds + 1):
        for work in list(times)[:: 1 if n % 2 else -1]:
            took, rise = peak_of(lambda work=work: seconds(work))
            peak = max(peak, rise if work is ours else 0)
            mx.clear_cache()
            if n:  # the first one warms the page cache
                times[work].append(took)
    mine, plain, other = (statistics.median(times[work]) for work in (ours, bare, theirs))
    return [
        row("load and verify; load_prompt_cache", mine, other),
        row("load and verify; a bare mx.load", mine, plain, goal=Goal("ratio", at_least=0.8)),
    ], peak


def amplification(folders: Folders, shape: Shape = QWEN3, turns: int = 50, window: int = 4096) -> Part:
    """Bytes written over turns of 40 to 400 tokens, over the bytes of the rows seen; the window wraps."""
    pair, dice = Pair(shape, CacheConfig(window=window, sinks=4)), random.Random(1)
    pair.theirs = []
    with SessionStore.open(folders) as store:
        session = store.sessions.create("turns", IDENTITY)
        for _ in range(turns):
            store.add_turn(session, TurnRecord("user", "x", pair.feed(dice.randint(40, 400))))
            store.commit_kv(session, pair.ours, IDENTITY)
        written, seen = store.num_bytes_written(session), pair.num_tokens * shape.row_bytes
    values = {"rows": seen, "written": written, "ratio": written / seen}
    return make_part(
        "write-amplification", "Bytes written by a chat", str(shape), f"turns of 40 to 400 tokens, window {window:,}",
        {"rows": Unit.BYTES, "written": Unit.BYTES, "ratio": Unit.RATIO},
        [Row(f"{turns} turns, {pair.num_tokens:,} tokens", values, Goal("ratio", at_most=1.25))],
    )  # fmt: skip


def parts(full: bool) -> Iterator[Part]:
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    for mib in (64, 1024):
        with fresh_home() as folders:
            folders.cache.mkdir(parents=True, mode=0o700)
            yield save_and_load(mib << 20, folders, rounds=ROUNDS if full or mib < 1024 else 3)
    with fresh_home() as folders:
        yield amplification(folders, turns=50 if full else 20)
