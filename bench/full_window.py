"""A chat whose window is full, beside mlx-lm's caches: `python -m bench --only full_window`.

The cache's update in a turn, a whole turn, and the memory that a long chat holds. mlx-lm has two caches to choose from:
KVCache grows with the chat, RotatingKVCache is bounded and copies itself whenever several tokens come at once.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, RotatingKVCache

from bench.measure import make_part, seconds
from bench.rows import SMOLLM2, Pair, Shape, feed_theirs
from bench.speed import NAME, VOCAB, few_layers
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.sink_rotation import SinkRotation
from mlxkv.cli.bench.measure import ROUNDS, Speeds, compare, peak_of, random_ids, their_bytes, timed
from mlxkv.cli.bench.parts import rows_of, speed_row
from mlxkv.cli.bench.report import Part, Row, Unit
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams

SINKS = 4


def rotating(window: int) -> RotatingKVCache:
    """mlx-lm's bounded cache with the sinks that it keeps by default, and a window of ours."""
    return RotatingKVCache(max_size=window + SINKS, keep=SINKS)


# -- the update of one layer's cache -----------------------------------------------------------------------------------


def updates(window: int = 4096, turn: int = 64, num_turns: int = 40, heads: int = 8, dim: int = 64) -> Part:
    """The update of a turn on a full window, of the cache of one layer alone."""
    rows = mx.random.normal((1, heads, turn, dim))
    mx.eval(rows)
    ring = RingKVCache(Geometry(SINKS, window, min(256, window // 4), 2), SinkRotation(nn.RoPE(dim), dim))
    caches: dict[str, Any] = {"mlxkv": ring, "mlx-lm": rotating(window)}
    for _ in range(window // turn + 2):
        for cache in caches.values():
            _update(cache, rows)
    times: dict[str, list[float]] = {side: [] for side in caches}
    for _ in range(num_turns):
        for side, cache in caches.items():
            times[side].append(seconds(lambda cache=cache: _update(cache, rows)))
    found = [
        Row(f"{name} turn of {num_turns}", _sides({side: of(all_) for side, all_ in times.items()}))
        for name, of in (("median", statistics.median), ("mean", statistics.mean))
    ]
    rises = {side: max(_rise(cache, rows) for _ in range(8)) for side, cache in caches.items()}
    peaks = Row("rise of peak memory, in caches of that layer", {**rises, "ratio": rises["mlx-lm"] / rises["mlxkv"]})
    return make_part(
        "window-update", "The cache's update in a turn on a full window", f"one layer, {heads} heads x {dim}, float32",
        f"{turn} new tokens, window {window:,}; RingKVCache, RotatingKVCache",
        {"mlxkv": Unit.SECONDS, "mlx-lm": Unit.SECONDS, "ratio": Unit.RATIO}, [*found, peaks],
        "The mean counts the turns that move a block: one in four, with the default block.",
    )  # fmt: skip


def _sides(values: dict[str, float]) -> dict[str, float]:
    return {**values, "ratio": values["mlx-lm"] / values["mlxkv"]}


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
    return peak_of(lambda: _update(cache, rows))[1] / cache.nbytes


# -- a turn ------------------------------------------------------------------------------------------------------------


def turns(model: Any, window: int = 4096, message: int = 64, reply: int = 32, rounds: int = ROUNDS) -> Part:
    """A message and a reply on a full window, which stays full: each round is the next turn of the chat."""
    runner, ids = ModelRunner(model), random_ids(message, VOCAB)
    shape = replace(SMOLLM2, layers=len(model.layers))
    pair = Pair(shape, CacheConfig(window=window, sinks=SINKS), model)
    pair.theirs = [rotating(window) for _ in range(shape.layers)]
    pair.feed(window + 512)

    def our_reply(num: int) -> Iterator[int]:
        return runner.decode(pair.ours, ids[-1], SamplingParams(temperature=0.0, max_tokens=num))

    def their_reply(prompt: list[int], num: int) -> Iterator[Any]:
        return generate_step(mx.array(prompt), model, max_tokens=num, prompt_cache=pair.theirs)

    def ours() -> None:
        deque(runner.prefill(pair.ours, ids[:-1]), maxlen=0)
        deque(our_reply(reply), maxlen=0)

    def theirs() -> None:
        deque(their_reply(ids, reply), maxlen=0)

    ratio = compare(lambda: seconds(ours), lambda: seconds(theirs), rounds)
    row = speed_row(f"{message} + {reply} tokens", Speeds("turn", message + reply, ratio), window)
    ratio = compare(lambda: timed(our_reply(reply + 1)), lambda: timed(their_reply(ids[-1:], reply + 1)), rounds)
    decode = speed_row(f"decode, {reply} tokens", Speeds("decode", reply, ratio), window)
    peaks = [peak_of(side)[1] for side in (ours, theirs)]
    held = {"mlxkv": pair.ours.nbytes, "mlx-lm": their_bytes(pair.theirs)}
    rate = Unit.TOKENS_PER_SECOND
    return make_part(
        "window-turn", "A turn on a full window, beside RotatingKVCache", NAME,
        f"message and reply, window {window:,}, greedy; medians of {rounds}, the sides in turns",
        {"mlxkv": rate, "mlx-lm": rate, "ratio": Unit.RATIO, "worst pair": Unit.RATIO}, [row, decode],
        f"Peak memory above the cache in such a turn, attention included: mlxkv {peaks[0] / held['mlxkv']:.1%} of it, "
        f"mlx-lm {peaks[1] / held['mlx-lm']:.1%}.",
    )  # fmt: skip


# -- a long chat -------------------------------------------------------------------------------------------------------


def long_chat(shape: Shape, window: int, message: int, reply: int, every: int, until: int) -> Part:
    """Bytes and rows held as a chat grows, and the highest memory in its turns: the rows alone, without a model."""
    found: dict[str, list[dict[str, int]]] = {
        "mlxkv": _grow(_ring(shape, window), message, reply, every, until),
        "KVCache": _grow(_of_mlx_lm(shape, KVCache), message, reply, every, until),
        "RotatingKVCache": _grow(_of_mlx_lm(shape, lambda: rotating(window)), message, reply, every, until),
    }
    rows, columns = [], {"tokens": Unit.COUNT}
    for i, values in enumerate(found["mlxkv"]):
        row: dict[str, int] = {"tokens": values["tokens"]}
        for side, points in found.items():
            row |= {f"{side} {what}": points[i][what] for what in ("rows", "held", "peak")}
        rows.append(Row(f"{values['tokens']:,} tokens", row))
    for what, unit in (("rows", Unit.COUNT), ("held", Unit.BYTES), ("peak", Unit.BYTES)):
        columns |= {f"{side} {what}": unit for side in found}
    return make_part(
        "long-chat", "KV memory over a long chat", str(shape),
        f"turns of {message} + {reply} tokens, window {window:,}; rows of a layer, bytes of all, highest memory so far",
        columns, rows,
    )  # fmt: skip


def _ring(shape: Shape, window: int) -> tuple[Callable[[int], object], Callable[[], tuple[int, int]]]:
    """How to feed our cache, and its rows per layer and bytes."""
    pair = Pair(shape, CacheConfig(window=window, sinks=SINKS))
    pair.theirs = []
    geometry = pair.plan.geometry
    return pair.feed, lambda: (geometry.rows if geometry else 0, pair.ours.nbytes)


def _of_mlx_lm(shape: Shape, make: Callable[[], Any]) -> tuple[Callable[[int], object], Callable[[], tuple[int, int]]]:
    """The same for a cache of mlx-lm."""
    caches = [make() for _ in range(shape.layers)]

    def feed(num: int) -> None:
        rows = mx.random.uniform(-1, 1, (1, shape.heads, num, shape.dim), mx.bfloat16)
        feed_theirs(caches, lambda _: (rows, rows))

    return feed, lambda: (max(rows_of(cache) for cache in caches), their_bytes(caches))


def _grow(side: Any, message: int, reply: int, every: int, until: int) -> list[dict[str, int]]:
    """Figures at each `every` tokens: those seen, rows, bytes held, and the highest memory beyond what was there."""
    feed, size = side
    mx.clear_cache()
    before, seen, found = mx.get_active_memory(), 0, []
    mx.reset_peak_memory()
    while seen < until:
        feed(message)
        for _ in range(reply):
            feed(1)
        seen += message + reply
        if seen % every < message + reply:
            rows, held = size()
            found.append({"tokens": seen, "rows": rows, "held": held, "peak": mx.get_peak_memory() - before})
    return found


def parts(full: bool) -> Iterator[Part]:
    yield updates()
    yield turns(few_layers())
    yield long_chat(SMOLLM2, 4096, 224, 32, 1024, 32_768 if full else 8192)
