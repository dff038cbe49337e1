"""CPU time of the decode loop itself, beside mlx-lm's: `python -m bench --only overhead`.

What Python and MLX do to build and start a step, on a model whose matrices are tiny. Waiting for results does not
count, so other programs hardly change it. On a GPU this time is hidden behind the work as long as it is shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from bench.full_window import SINKS, rotating
from bench.measure import make_part
from bench.rows import Pair, Shape, bare_model
from mlxkv.cache.config import CacheConfig
from mlxkv.cli.bench.parts import FASTEST
from mlxkv.cli.bench.report import Part, Row, Unit
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams

WINDOW, SHORT = 512, 128
CASES: dict[str, tuple[int, int | None, Callable[[], Any]]] = {  # tokens fed before, bits, mlx-lm's cache
    "before the window is full": (SHORT, None, KVCache),
    "on a full window": (WINDOW + SHORT, None, lambda: rotating(WINDOW)),
    "on rows of 8 bits": (SHORT, 8, lambda: QuantizedKVCache(64, 8)),
}


def loops(layers: int = 12, steps: int = 300) -> Part:
    """Microseconds per layer and step, the sides in turns, step by step."""
    shape = Shape("tiny matrices", layers, 2, 64)
    model = bare_model(shape)
    model.set_dtype(mx.float32)  # whose quantized rows are not decoded on a CPU
    mx.eval(model.parameters())
    rows = [_row(what, model, shape, fed, bits, make, steps) for what, (fed, bits, make) in CASES.items()]
    return make_part(
        "overhead", "CPU time of the decode loop, beside mlx-lm's", f"{layers} layers with tiny matrices, float32",
        f"of the thread that calls the model, per layer and step, greedy; the fastest tenth of {steps} steps, in turns",
        {"mlxkv": Unit.SECONDS, "mlx-lm": Unit.SECONDS, "ratio": Unit.RATIO}, rows,
    )  # fmt: skip


def _row(what: str, model: Any, shape: Shape, fed: int, bits: int | None, make: Callable[[], Any], steps: int) -> Row:
    pair = Pair(shape, CacheConfig(window=WINDOW, sinks=SINKS, bits=bits), model, mx.float32)
    pair.theirs = [make() for _ in range(shape.layers)]
    pair.feed(fed)
    params = SamplingParams(temperature=0.0, max_tokens=steps + 2)
    streams: list[Iterator[Any]] = [
        ModelRunner(model).decode(pair.ours, 5, params),
        generate_step(mx.array([5]), model, max_tokens=steps + 2, prompt_cache=pair.theirs),
    ]
    times: list[list[float]] = [[], []]
    for i in range(2 * steps + 4):
        side = (i + i // 2) % 2  # who goes first changes with every step
        begun = time.thread_time()
        next(streams[side])
        times[side].append((time.thread_time() - begun) / shape.layers)
    # Other programs only ever add to it, by emptying the processor's caches: the fastest tenth is the most steady.
    ours, theirs = (sorted(found[2:])[len(found) // 10] for found in times)
    return Row(what, {"mlxkv": ours, "mlx-lm": theirs, "ratio": theirs / ours}, FASTEST)


def parts(full: bool) -> Iterator[Part]:
    yield loops(steps=300 if full else 100)
