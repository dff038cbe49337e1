"""What a KV cache saves: seconds per token with it, and without: `python -m bench --only recompute`.

Without one every step runs the model on the whole prefix, so that a token costs in proportion to it, and a reply to its
square. With one a step runs the model on one token; the rows it attends are random, since only their number counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model

from bench.measure import make_part, median_seconds, real_model
from bench.rows import SMOLLM2, Pair
from mlxkv.cache.config import CacheConfig
from mlxkv.cli.bench.measure import random_ids
from mlxkv.cli.bench.report import Part, Row, Unit

LENGTHS = (64, 256, 1024)
_STEPS = 5
COLUMNS = {"tokens": Unit.COUNT, "without": Unit.SECONDS, "with": Unit.SECONDS, "ratio": Unit.RATIO}


def by_length(model: Any, name: str, vocab: int, rounds: Sequence[int], lengths: Sequence[int] = LENGTHS) -> Part:
    """Seconds per token after so many tokens, each the median of its number of rounds."""
    ids = random_ids(max(lengths), vocab)
    layers = model.layers
    shape = replace(SMOLLM2, layers=len(layers), heads=layers[0].self_attn.n_kv_heads, dim=layers[0].self_attn.head_dim)

    def recomputed(length: int) -> None:
        mx.eval(mx.argmax(model(mx.array([ids[:length]]))[:, -1], axis=-1))

    recomputed(8)  # compile
    rows = []
    for length, n in zip(lengths, rounds, strict=True):
        pair = Pair(shape, CacheConfig(window=length + _STEPS + 1), model)
        pair.theirs = []
        pair.feed(length)

        def step(cache: list[Any] = pair.ours.layers) -> None:
            mx.eval(mx.argmax(model(mx.array([[5]]), cache=cache)[:, -1], axis=-1))

        step()
        cached, without = median_seconds(step, _STEPS), median_seconds(lambda at=length: recomputed(at), n)
        values = {"tokens": length, "without": without, "with": cached, "ratio": without / cached}
        rows.append(Row(f"{length:,} tokens", values))
    growth = {side: _exponent([(r.values["tokens"], r.values[side]) for r in rows]) for side in ("without", "with")}
    settings = (
        f"seconds per token after so many tokens, greedy; medians of {', '.join(map(str, rounds))} without and "
        f"{_STEPS} with a cache"
    )
    return make_part(
        "recompute", "A token with and without a KV cache", name, settings, COLUMNS, rows,
        f"Without a cache the cost of a token grows as n^{growth['without']:.2f}, with one as n^{growth['with']:.2f}: "
        f"a reply of n tokens costs n times as much.",
    )  # fmt: skip


def _exponent(points: Sequence[tuple[Any, Any]]) -> float:
    """The slope of the line through the points, both axes logarithmic, by least squares."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(side) / len(logs) for side in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def parts(full: bool) -> Iterator[Part]:
    if (path := real_model("smollm2")) is None:
        return
    model, config = load_model(path)
    lengths = (*LENGTHS, 2048) if full else LENGTHS
    rounds = [5] * len(lengths) if full else [1, 1, 1]
    yield by_length(model, "SmolLM2-135M-Instruct, bfloat16", config["vocab_size"], rounds, lengths)
