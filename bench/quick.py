"""Speed and memory against mlx-lm's own caches, as ratios in one process: `python -m bench.quick`.

Decode and prefill run mlx-lm's generate_step with KVCache on one side and mlxkv's runner on the other; the turn update
compares cache updates alone on a full window. Ratios above 1 mean mlxkv is faster.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import RotatingKVCache
from mlx_lm.models.llama import Model, ModelArgs

from bench.measure import header
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.geometry import Geometry
from mlxkv.cache.plan import CachePlan, plan_cache
from mlxkv.cache.ring import RingKVCache
from mlxkv.cache.sink_rotation import SinkRotation
from mlxkv.cli.bench.measure import Speeds, decode_speeds, fill, prefill_speeds, random_ids
from mlxkv.inference.runner import ModelRunner

STORIES = Path(__file__).resolve().parents[1].parent / "shared" / "testdata" / "stories260K"
STEPS = 64  # decoded tokens per round


def random_llama() -> Model:
    """12 layers, 512 wide, float32, random weights."""
    mx.random.seed(0)
    args = ModelArgs(model_type="llama", hidden_size=512, num_hidden_layers=12, intermediate_size=1408,
                     num_attention_heads=8, num_key_value_heads=4, rms_norm_eps=1e-5, vocab_size=4096,
                     max_position_embeddings=8192)  # fmt: skip
    model = Model(args)
    mx.eval(model.parameters())
    return model


def plan(model: Any, window: int) -> CachePlan:
    return plan_cache(model, CacheConfig(window=window))


def turn_update(window: int = 4096, turn: int = 64, heads: int = 8, dim: int = 64) -> tuple[float, float, float, float]:
    """Time a 64-token update on a full window, of the cache alone.

    Returns the ratio of the median turns, that of the mean turns (every fourth one flushes a block), and the largest
    rise of peak memory of each side in layers.
    """
    rows = mx.random.normal((1, heads, turn, dim))
    mx.eval(rows)
    ring = RingKVCache(Geometry(4, window, 256, 2), SinkRotation(nn.RoPE(dim), dim))
    rotating = RotatingKVCache(max_size=window + 4, keep=4)
    for _ in range(window // turn + 2):
        _update(ring, rows)
        _update(rotating, rows)
    times: dict[Any, list[float]] = {ring: [], rotating: []}
    for _ in range(40):
        for cache, seconds in times.items():
            begun = time.perf_counter()
            _update(cache, rows)
            seconds.append(time.perf_counter() - begun)
    ours, theirs = times[ring], times[rotating]
    return (
        statistics.median(theirs) / statistics.median(ours),
        statistics.mean(theirs) / statistics.mean(ours),
        _rise(ring, rows),
        _rise(rotating, rows),
    )


def _update(cache: Any, rows: mx.array) -> None:
    """One turn, cut at the ring's block boundaries as the runner does."""
    at = 0
    while at < rows.shape[2]:
        n = rows.shape[2] - at
        if isinstance(cache, RingKVCache):
            n = min(n, cache.geometry.tokens_to_boundary(cache.offset))
        cache.update_and_fetch(rows[..., at : at + n, :], rows[..., at : at + n, :])
        mx.eval(cache.state)
        at += n


def _rise(cache: Any, rows: mx.array) -> float:
    """The largest rise of peak memory over 8 turns, in units of the layer's bytes."""
    worst = 0.0
    for _ in range(8):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        _update(cache, rows)
        worst = max(worst, (mx.get_peak_memory() - before) / cache.nbytes)
    return worst


def _row(what: str, name: str, speeds: Speeds) -> None:
    speed = f"{speeds.ours_tps:.0f} against {speeds.theirs_tps:.0f} tok/s"
    print(f"| {what} ({speed}) | {name} | {speeds.ratio.median:.3f} | {speeds.ratio.worst:.3f} |", flush=True)


def main() -> None:
    header("bench.quick")
    models: dict[str, tuple[Any, int]] = {"random 12x512": (random_llama(), 4096)}
    if STORIES.is_dir():
        from mlx_lm.utils import load_model

        models = {"stories260K": (load_model(STORIES)[0], 512), **models}
    print("| what | model | mlxkv / mlx-lm (median of 5) | worst pair |\n|---|---|---|---|")
    for name, (model, vocab) in models.items():
        runner = ModelRunner(model)
        for context in (512, 4096):
            ids = random_ids(context + 1, vocab)
            speeds = decode_speeds(runner, fill(runner, plan(model, 2 * context), ids), ids[-1], STEPS)
            _row(f"decode at {context:,} tokens", name, speeds)
        # The random model reads some 50 tokens a second on two cores: one length is enough.
        for length in (512, 2048) if name == "stories260K" else (512,):
            _row(
                f"prefill of {length:,} tokens",
                name,
                prefill_speeds(runner, plan(model, length), random_ids(length, vocab)),
            )
    median, mean, ours, theirs = turn_update()
    print(f"| 64-token update on a full 4,096 window, median turn of 40 | one layer | {median:.0f} | |")
    print(f"| the same, mean turn (every fourth flushes a block) | one layer | {mean:.1f} | |")
    print(f"\npeak memory of that update: {ours:.1%} of the layer, mlx-lm's RotatingKVCache {theirs:.1%}")


if __name__ == "__main__":
    main()
