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
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.models.llama import Model, ModelArgs

from bench.measure import Ratio, compare, header
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.geometry import Geometry
from mlxkv.cache.plan import plan_cache
from mlxkv.cache.positions import SinkRotation
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.ring import RingKVCache
from mlxkv.runner import ModelRunner
from mlxkv.sampling import SamplingParams

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


def tokens(n: int, vocab: int) -> list[int]:
    return [int(t) for t in mx.random.randint(3, vocab, (n,), key=mx.random.key(1)).tolist()]  # type: ignore


def decode(model: Any, vocab: int, context: int) -> Ratio:
    ids = tokens(context, vocab)
    runner = ModelRunner(model)
    ours = PromptCache(plan_cache(model, CacheConfig(window=2 * context)), model)
    for _ in runner.prefill(ours, ids):
        pass
    theirs = [KVCache() for _ in model.layers]
    for at in range(0, context, 512):
        model(mx.array([ids[at : at + 512]]), cache=theirs)
        mx.eval([c.state for c in theirs])

    def run_ours() -> float:
        stream = runner.decode(ours, 5, SamplingParams(temperature=0.0, max_tokens=STEPS + 1))
        seconds = _timed(stream)
        ours.rewind(context)
        return seconds

    def run_theirs() -> float:
        stream = generate_step(mx.array([5]), model, max_tokens=STEPS + 1, prompt_cache=theirs)
        seconds = _timed(stream)
        for c in theirs:
            c.trim(c.offset - context)
        return seconds

    return compare(run_ours, run_theirs)


def _timed(stream: Any) -> float:
    """Seconds from the first token to the last."""
    next(stream)
    begun = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - begun


def prefill(model: Any, vocab: int, length: int) -> Ratio:
    ids = tokens(length, vocab)
    runner = ModelRunner(model)
    plan = plan_cache(model, CacheConfig(window=length))  # once per chat, as there

    def run_ours() -> float:
        cache = PromptCache(plan, model)
        begun = time.perf_counter()
        for _ in runner.prefill(cache, ids[:-1]):
            pass
        next(runner.decode(cache, ids[-1], SamplingParams(temperature=0.0, max_tokens=1)))
        return time.perf_counter() - begun

    def run_theirs() -> float:
        cache = [KVCache() for _ in model.layers]
        begun = time.perf_counter()
        next(generate_step(mx.array(ids), model, max_tokens=1, prompt_cache=cache))
        return time.perf_counter() - begun

    return compare(run_ours, run_theirs)


def turn_update(window: int = 4096, turn: int = 64, heads: int = 8, dim: int = 64) -> tuple[float, float, float, float]:
    """A 64-token update on a full window, cache alone.

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
            n = min(n, cache.geometry.room(cache.offset))
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


def main() -> None:
    header("bench.quick")
    models: dict[str, tuple[Any, int]] = {"random 12x512": (random_llama(), 4096)}
    if STORIES.is_dir():
        from mlx_lm.utils import load_model

        models = {"stories260K": (load_model(STORIES)[0], 512), **models}
    print("| what | model | mlxkv / mlx-lm (median of 5) | worst pair |\n|---|---|---|---|")
    for name, (model, vocab) in models.items():
        for context in (512, 4096):
            r = decode(model, vocab, context)
            speed = f"{STEPS / r.ours:.0f} against {STEPS / r.theirs:.0f} tok/s"
            print(f"| decode at {context:,} tokens ({speed}) | {name} | {r.median:.3f} | {r.worst:.3f} |", flush=True)
        # The random model reads some 50 tokens a second on two cores: one length is enough.
        for length in (512, 2048) if name == "stories260K" else (512,):
            r = prefill(model, vocab, length)
            speed = f"{length / r.ours:.0f} against {length / r.theirs:.0f} tok/s"
            print(f"| prefill of {length:,} tokens ({speed}) | {name} | {r.median:.3f} | {r.worst:.3f} |", flush=True)
    median, mean, ours, theirs = turn_update()
    print(f"| 64-token update on a full 4,096 window, median turn of 40 | one layer | {median:.0f} | |")
    print(f"| the same, mean turn (every fourth flushes a block) | one layer | {mean:.1f} | |")
    print(f"\npeak memory of that update: {ours:.1%} of the layer, mlx-lm's RotatingKVCache {theirs:.1%}")


if __name__ == "__main__":
    main()
