"""A reply of many thousand tokens on a full window: is its speed and memory flat? `python -m bench --only streaming`.

The story model is small enough to generate 20,000 tokens here; a rate is the median of stretches of a hundred tokens.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model

from bench.measure import STORIES, make_part
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cli.bench.measure import random_ids
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams

_STRETCH = 100  # tokens


def stream(model: Any, name: str, vocab: int, tokens: int, window: int = 256, part: int = 1000) -> Part:
    """Generate `tokens` on a full window; compare the first `part` of them with the last."""
    cache = PromptCache(plan_cache(model, CacheConfig(window=window, sinks=4)), model)
    runner, prompt = ModelRunner(model), random_ids(2 * window, vocab)
    for _ in runner.prefill(cache, prompt[:-1]):
        pass
    marks, held = [time.perf_counter()], []
    params = SamplingParams(temperature=0.8, max_tokens=tokens)
    for n, _ in enumerate(runner.decode(cache, prompt[-1], params), 1):
        if n % _STRETCH == 0:
            marks.append(time.perf_counter())
        if n in (part, tokens):
            held.append((cache.nbytes, cache.num_attended, mx.get_active_memory()))
    rates = [_STRETCH / (b - a) for a, b in itertools.pairwise(marks)]
    each = part // _STRETCH
    first, last = statistics.median(rates[:each]), statistics.median(rates[-each:])
    (bytes_first, rows_first, active_first), (bytes_last, rows_last, active_last) = held

    def row(what: str, first: float, last: float, goal: Goal | None) -> Row:
        return Row(what, {f"first {part:,}": first, f"last {part:,}": last, "ratio": last / first}, goal)

    columns = {f"first {part:,}": Unit.COUNT, f"last {part:,}": Unit.COUNT, "ratio": Unit.RATIO}
    return make_part(
        "streaming", f"{tokens:,} tokens streamed", name,
        f"window {window:,}, full from the first token on; temperature 0.8", columns,
        [
            row("tokens per second", first, last, Goal("ratio", 0.95, 1.05)),
            row("bytes of the cache", bytes_first, bytes_last, Goal("ratio", 1, 1)),
            row("rows attended", rows_first, rows_last, None),
            row("bytes in MLX, weights included", active_first, active_last, None),
        ],
    )  # fmt: skip


def parts(full: bool) -> Iterator[Part]:
    if not STORIES.is_dir():
        print("shared/testdata is not beside this checkout, so the stream on the story model was left out.")
        return
    model, config = load_model(STORIES)
    yield stream(model, "story model of 260,000 parameters, float32", config["vocab_size"], 20_000 if full else 2000)
