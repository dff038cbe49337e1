"""Saving and restoring against mlx-lm's save_prompt_cache and load_prompt_cache: `python -m bench.store [--mib N ...]`.

One cache of the given size in each program's own form, the same rows in both, on the same disk, in one process, in
turns. mlx-lm writes without fsync; mlxkv's times end when the rows are durable (`synced`) and, for comparison, when the
engine may continue (`handed over`). No model is run: rows are random.

Every load gets memory fresh from the kernel, as in a program just started: else glibc keeps the memory of the load
before or gives it back, as it happens, and a load is three times as fast or not (`--reuse` leaves it to glibc).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, load_prompt_cache, save_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from bench.measure import header
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.config import Folders
from mlxkv.store.files import sync
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore

LAYERS, HEADS, DIM = 28, 8, 128  # as Qwen3-0.6B keeps them, in bfloat16: 112 KiB per token
ROW_BYTES = LAYERS * 2 * HEADS * DIM * 2
IDENTITY = ModelIdentity.of("bench", {"config.hidden_size": "64"})
CUT = 512  # tokens fed at once
_M_MMAP_THRESHOLD = -3  # glibc's name for: allocations as large as this are given back at once


def bare_model() -> Model:
    """A model whose layers have rows of this shape; it is never run."""
    args = ModelArgs(model_type="llama", hidden_size=64, num_hidden_layers=LAYERS, intermediate_size=64,
                     num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=DIM, rms_norm_eps=1e-5,
                     vocab_size=256, max_position_embeddings=1 << 17)  # fmt: skip
    model = Model(args)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


class Pair:
    """The same rows in a PromptCache and in mlx-lm's caches."""

    def __init__(self, model: Model, window: int) -> None:
        self.model, self.plan = model, plan_cache(model, CacheConfig(window=window, sinks=4))
        self.ours = PromptCache(self.plan, model)
        self.theirs: list[Any] = [KVCache() for _ in range(LAYERS)]
        self.num_tokens = 0

    def fresh(self) -> PromptCache:
        return PromptCache(self.plan, self.model)

    def feed(self, num: int, theirs: bool = True) -> tuple[int, ...]:
        """Random rows for `num` new tokens; their ids."""
        ids = tuple(self.num_tokens + i for i in range(num))
        while num > 0:
            n = min(num, CUT, self.ours.tokens_to_boundary() or CUT)
            start = self.num_tokens
            for layer in range(LAYERS):
                k, v = (
                    mx.random.normal(
                        (1, HEADS, n, DIM), mx.bfloat16, key=mx.random.key(2 * (start * LAYERS + layer) + i)
                    )
                    for i in (0, 1)
                )
                self.ours.layers[layer].update_and_fetch(k, v)
                if theirs:
                    self.theirs[layer].update_and_fetch(k, v)
                    mx.eval(self.theirs[layer].keys, self.theirs[layer].values)
                mx.eval(self.ours.layers[layer].state)
            self.ours.advance(range(start, start + n))
            self.num_tokens, num = start + n, num - n
        return ids


@dataclass(frozen=True)
class Sizes:
    """Bytes of the rows in use, and of the buffers that hold them (with a block to fill, and undo blocks)."""

    rows: int
    buffers: int


def synced(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    sync(fd)
    os.close(fd)


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(mib: int, rounds: int, root: Path) -> None:
    tokens = (mib << 20) // ROW_BYTES
    extra = max(1, tokens // 100)
    pair = Pair(bare_model(), window=tokens + (rounds + 2) * extra)
    theirs = root / "theirs.safetensors"
    with SessionStore.open(Folders.from_env({"MLXKV_HOME": str(root / "home")})) as store:
        session = store.sessions.create("bench", IDENTITY)
        store.add_turn(session, TurnRecord("user", "x", pair.feed(tokens)))
        handed: list[float] = []

        def commit() -> None:
            handed.append(seconds(lambda: store.save_kv(session, pair.ours, IDENTITY)))
            assert store.flush(session) is None

        rows = pair.ours.live_nbytes

        base = reset_peak()
        tracemalloc.start()
        first = seconds(commit)
        save_peaks = max(mx.get_peak_memory() - base, 0) / rows, tracemalloc.get_traced_memory()[1] / rows
        tracemalloc.stop()
        first_bytes = store.num_bytes_written(session)
        first_theirs = seconds(lambda: save_prompt_cache(str(theirs), pair.theirs))
        line(mib, "first save", first, first_theirs, first_bytes, theirs.stat().st_size)

        ours_s, theirs_s, synced_s, ours_b = [], [], [], []
        for _ in range(rounds):
            store.add_turn(session, TurnRecord("user", "more", pair.feed(extra)))
            before = store.num_bytes_written(session)
            ours_s.append(seconds(commit))
            ours_b.append(store.num_bytes_written(session) - before)
            theirs_s.append(seconds(lambda: save_prompt_cache(str(theirs), pair.theirs)))
            synced_s.append(theirs_s[-1] + seconds(lambda: synced(theirs)))
        line(mib, "save after 1 % more", statistics.median(ours_s), statistics.median(theirs_s),
             int(statistics.median(ours_b)), theirs.stat().st_size)  # fmt: skip
        line(mib, "the same, mlx-lm's file synced as well", statistics.median(ours_s), statistics.median(synced_s),
             int(statistics.median(ours_b)), theirs.stat().st_size)  # fmt: skip
        print(f"| {mib} MiB | of that until the chat goes on | {statistics.median(handed[1:]):.3f} | | | | | |")
        print(
            f"| {mib} MiB | the same, worst round of {rounds} | {max(ours_s):.3f} | {min(theirs_s):.3f} |"
            f" {min(theirs_s) / max(ours_s):.1f} | | | |"
        )

        log = store.load(session).log
        pair.theirs = []
        sizes = Sizes(pair.ours.live_nbytes, pair.ours.nbytes)
        pair.ours.reset()
        pair.ours = pair.fresh()
        mx.clear_cache()
        load(store, session, pair, log, theirs, mib, sizes, rounds)
        print(f"\nwhile all of it was saved, memory above the cache: {save_peaks[0]:.1%} of its rows for MLX,"
              f" {save_peaks[1]:.1%} for bytes on their way to the disk\n")  # fmt: skip


def load(
    store: SessionStore, session: str, pair: Pair, log: tuple[int, ...], theirs: Path, mib: int, sizes: Sizes,
    rounds: int,
) -> None:  # fmt: skip
    """Load and verify, against mlx-lm's load and against a bare mx.load, each with the files in the page cache."""

    def bare() -> None:
        mx.eval(mx.load(str(theirs)))

    def their_load() -> None:
        caches: Any = load_prompt_cache(str(theirs))
        mx.eval([c.state[:2] for c in caches])

    def our_load() -> None:
        cache = pair.fresh()
        restored = store.restore_kv(session, cache, IDENTITY, log)
        assert restored.tokens == len(log), restored

    times: dict[str, list[float]] = {"ours": [], "bare": [], "theirs": []}
    peak = 0.0
    works = {"ours": our_load, "bare": bare, "theirs": their_load}
    for n in range(rounds + 1):
        for name, work in list(works.items())[:: 1 if n % 2 else -1]:
            base = reset_peak()
            took = seconds(work)
            if name == "ours":
                peak = max(peak, mx.get_peak_memory() - base)
            mx.clear_cache()
            if n:  # the first one warms the page cache
                times[name].append(took)
    a, b, c = (statistics.median(times[name]) for name in ("ours", "bare", "theirs"))
    worst = max(x / y for x, y in zip(times["ours"], times["bare"], strict=True))
    print(f"| {mib} MiB | load and verify (mlx-lm's load) | {a:.3f} | {c:.3f} | {c / a:.2f} | | | |")
    print(f"| {mib} MiB | load and verify against a bare mx.load + eval | {a:.3f} | {b:.3f} | {b / a:.2f} | | | |")
    print(f"\nload and verify takes {a / b:.2f} x a bare mx.load + eval (worst pair {worst:.2f}), target 1.25;"
          f" peak memory {peak / sizes.buffers:.3f} x the cache, target 1.1"
          f" ({peak / sizes.rows:.3f} x the rows in use: a ring has room for more)")  # fmt: skip


def reset_peak() -> int:
    mx.clear_cache()
    mx.reset_peak_memory()
    return mx.get_active_memory()


def line(mib: int, what: str, ours: float, theirs: float, ours_bytes: int, theirs_bytes: int) -> None:
    print(f"| {mib} MiB | {what} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.1f} |"
          f" {ours_bytes:,} | {theirs_bytes:,} | {theirs_bytes / ours_bytes:.1f} |", flush=True)  # fmt: skip


def amplification(root: Path, turns: int = 50) -> None:
    """Bytes written over 50 turns of 40 to 400 tokens, over the bytes of the rows seen; the window wraps."""
    pair, rng = Pair(bare_model(), window=4096), random.Random(1)
    with SessionStore.open(Folders.from_env({"MLXKV_HOME": str(root / "fifty")})) as store:
        session = store.sessions.create("fifty", IDENTITY)
        for _ in range(turns):
            store.add_turn(session, TurnRecord("user", "x", pair.feed(rng.randint(40, 400), theirs=False)))
            store.commit_kv(session, pair.ours, IDENTITY)
        written = store.num_bytes_written(session)
    print(f"{turns} turns, {pair.num_tokens:,} tokens: {written / (pair.num_tokens * ROW_BYTES):.3f} bytes written per"
          " byte of rows, target 1.25")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="*", default=[64, 1024], help="cache sizes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-turns", action="store_true", help="leave out the 50 turns (they write 1.3 GB)")
    parser.add_argument("--reuse", action="store_true", help="let a load have the memory of the one before")
    parser.add_argument("--folder", help="where to write (default: a new folder in TMPDIR)")
    args = parser.parse_args()
    header("bench.store")
    if sys.platform == "linux" and not args.reuse:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    print(f"rows: {LAYERS} layers x {HEADS} heads x {DIM}, bfloat16, {ROW_BYTES:,} bytes per token\n")
    print("| cache | what | mlxkv s | mlx-lm s | x faster | mlxkv bytes | mlx-lm bytes | x fewer |")
    print("|---|---|---|---|---|---|---|---|")
    for mib in args.mib:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            os.chmod(folder, 0o700)
            measure(mib, args.rounds, Path(folder))
    if not args.no_turns:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            os.chmod(folder, 0o700)
            amplification(Path(folder))


if __name__ == "__main__":
    main()
