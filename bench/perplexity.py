"""Perplexity of real text inside, at and past the window: `python -m bench.perplexity [MODEL ...] [--json FILE]`.

On real weights in float32 (`make real-models`), in stretches of Python's own reference. Each cache is compared with
another on the same tokens; an error is the standard error over the stretches. Calls end at the ring's block boundaries,
as the product's do. mlx-lm's RotatingKVCache is measured twice, since what a token sees there depends on the call: one
of several tokens masks the first tokens that the cache keeps, one of a single token does not.

`bench.continuations` makes the log-probabilities; this module owns what is compared, the tables and their goals.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache

from bench.continuations import MOST_ROWS, Layers, native, ring, scores, stretches, window_scores
from bench.measure import header
from bench.real_weights import folder
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.plan import plan_cache
from mlxkv.cli.bench.report import Environment, Goal, Part, Row, Unit, command_line, write_report
from mlxkv.models.load import LoadedModel, load_model

SINKS = 4
FULL, RING = "full cache", "ring"
ROTATING, ROTATING_CALLS = "mlx-lm rotating, calls of 1", "mlx-lm rotating, calls of 64"


@dataclass(frozen=True)
class Size:
    """How much of one model is measured, in tokens. A figure is about a segment of every stretch."""

    window: int
    segment: int
    tokens: int  # of a stretch
    stretches: int
    positions: int  # compared with a pure window, in all
    prefix: tuple[int, ...] = ()  # token ids that the model was trained to see first

    @property
    def segments(self) -> list[tuple[int, slice]]:
        """Each segment's end, and its scores. The first token of a stretch has none."""
        return [
            (end, self.scores(end - self.segment, end)) for end in range(self.segment, self.tokens + 1, self.segment)
        ]

    def scores(self, start: int, end: int) -> slice:
        """The scores of tokens start to end - 1."""
        return slice(max(start - 1, 0), end - 1)


FULL_SIZES = {
    "smollm2": Size(window=256, segment=256, tokens=2048, stretches=8, positions=128),
    "gemma3": Size(window=512, segment=512, tokens=2048, stretches=4, positions=32, prefix=(2,)),
}
SHORT_SIZES = {"smollm2": Size(window=256, segment=256, tokens=1024, stretches=1, positions=0)}
# The first measurements, of one stretch.
WINDOW_GOALS = {3: 1.04, 4: 1.19}  # in the third and fourth window of tokens; segments as long as it
GOALS = {f"{RING}, 8 bits": 1.005, f"{RING}, 8/4 bits": 1.015, f"{RING}, 4 bits": 1.19}


class Study:
    """One model and its text, and the log-probabilities under each cache: `found[name]` (stretches, tokens - 1)."""

    def __init__(self, name: str, loaded: LoadedModel, size: Size) -> None:
        self.name, self.size = name, size
        self.model: nn.Module = loaded.model
        self.model.set_dtype(mx.float32)
        self.plan = plan_cache(self.model, CacheConfig(window=size.window, sinks=SINKS))
        encode = partial(loaded.tokenizer.encode, add_special_tokens=False)
        self.ids = stretches(encode, list(size.prefix), size.stretches, size.tokens)
        self.found: dict[str, mx.array] = {}
        self.window: tuple[float, float | None] | None = None  # the ring against a pure window, see `window_ratio`

    @property
    def title(self) -> str:
        return {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}[self.name]

    @property
    def settings(self) -> str:
        size, geometry = self.size, self.plan.geometry
        assert geometry is not None
        return (
            f"window {geometry.window:,}, {geometry.sinks} sinks, blocks of {geometry.block}; "
            f"{size.stretches} x {size.tokens:,} tokens of Python's reference; float32"
        )

    def ring(self, bits: int | tuple[int, int] | None = None) -> Layers:
        return ring(self.model, replace(self.plan.config, bits=bits))

    def rotating(self) -> Layers:
        """mlx-lm's, with as many tokens as the ring has at its fullest."""
        return native(self.model, lambda: RotatingKVCache(max_size=self.size.window + SINKS, keep=SINKS))

    def quantized(self, bits: int) -> Layers:
        return native(self.model, lambda: QuantizedKVCache(group_size=64, bits=bits))

    def caches(self, full: bool) -> Iterator[tuple[str, Callable[[], Layers], int]]:
        """Name, caches, and the most tokens of a call."""
        yield FULL, lambda: native(self.model), MOST_ROWS
        yield RING, self.ring, MOST_ROWS
        yield ROTATING_CALLS, self.rotating, 64
        if full:
            for name, bits in (("8/4", (8, 4)), ("4", 4), ("8", 8), ("4/8", (4, 8))):
                yield f"{RING}, {name} bits", partial(self.ring, bits), MOST_ROWS
            yield ROTATING, self.rotating, 1
            for bits in (8, 4):
                yield f"mlx-lm, all tokens, {bits} bits", partial(self.quantized, bits), MOST_ROWS

    def measure(self, full: bool) -> Iterator[str]:
        """Run every cache; yields the name of each when it is measured."""
        for name, make, chunk in self.caches(full):
            self.found[name] = scores(self.model, make(), self.ids, chunk)
            if name == RING and self.size.positions:
                self.window = window_ratio(self)
            yield name

    def ratio(self, ours: str, theirs: str, start: int, end: int) -> tuple[float, float | None]:
        """Perplexity under one cache over that under the other, of tokens start to end - 1 of all stretches."""
        where = self.size.scores(start, end)
        means = [mx.mean(self.found[name][:, where], axis=1).tolist() for name in (ours, theirs)]
        return ratio(*means)  # type: ignore[arg-type]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None]:
    """One perplexity over another, from pairs of (mean) log-probabilities, and its standard error; of one pair None."""
    gaps = [b - a for a, b in zip(ours, theirs, strict=True)]
    value = math.exp(statistics.fmean(gaps))
    return value, value * statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None


def curve(study: Study, environment: Environment) -> Part:
    """Perplexity by segment, a column for each cache."""
    columns = {"tokens": Unit.COUNT, **dict.fromkeys(study.found, Unit.PERPLEXITY)}
    rows = []
    for end, where in study.size.segments:
        means = {name: mx.mean(found[:, where]).item() for name, found in study.found.items()}
        values = {name: math.exp(-mean) for name, mean in means.items()}  # type: ignore[operator]
        rows.append(Row(f"{end - study.size.segment:,} to {end:,}", {"tokens": end, **values}))
    name, title = f"perplexity-{study.name}", f"Perplexity, {study.title}"
    return Part(name, title, study.title, study.settings, columns, rows, environment)


def ratios(study: Study, environment: Environment) -> Part:
    """What each cache costs, as ratios."""
    size, rows = study.size, []

    def add(what: str, value: tuple[float, float | None], most: float | None = None) -> None:
        goal = None if most is None else Goal("ratio", at_most=most)
        rows.append(Row(what, {"ratio": value[0], "±": value[1]}, goal))

    bounded = [name for name in study.found if name.startswith(RING) or "rotating" in name]
    for name in [name for name in bounded if "bits" not in name]:
        for end, _ in size.segments:
            if end > size.window:
                what = f"{name} to {FULL}, tokens {end - size.segment:,} to {end:,}"
                goal = WINDOW_GOALS.get(end // size.window) if name == RING and end % size.window == 0 else None
                add(what, study.ratio(name, FULL, end - size.segment, end), goal)
        add(f"{name} to {FULL}, all past the window", study.ratio(name, FULL, size.window, size.tokens))
    for name in [name for name in bounded if "bits" in name]:
        add(f"{name}, to 16, inside the window", study.ratio(name, RING, 0, size.window), GOALS.get(name))
        add(f"{name}, to 16, past the window", study.ratio(name, RING, size.window, size.tokens), GOALS.get(name))
    for name in [name for name in study.found if "all tokens" in name]:
        add(f"{name}, to {FULL}", study.ratio(name, FULL, 0, size.tokens))
    if study.window is not None:
        add(f"{RING} to a pure window of as many tokens, {size.positions} positions", study.window)
    columns = {"ratio": Unit.RATIO, "±": Unit.RATIO}
    name, heading = f"perplexity-ratios-{study.name}", f"Perplexity as a ratio, {study.title}"
    return Part(name, heading, study.title, study.settings, columns, rows, environment)


def window_ratio(study: Study) -> tuple[float, float | None]:
    """The ring against a window of the same number of tokens, prefilled anew at each position: what no cache that
    evicts tokens one by one can do, and what any window may hope for."""
    size, geometry = study.size, study.plan.geometry
    assert geometry is not None
    first, count = 2 * size.window, size.positions // size.stretches
    at = [first + n * (size.tokens - 1 - first) // count for n in range(count)]
    lengths = [geometry.live(p) for p in at]
    theirs = window_scores(study.model, study.ids, at, lengths, keep=len(size.prefix))
    ours = study.found[RING][:, mx.array(at) - 1]
    return ratio(ours.reshape(-1).tolist(), theirs.reshape(-1).tolist())  # type: ignore[arg-type]


def study_parts(name: str, size: Size, full: bool, json: Path | None = None) -> Iterator[Part]:
    """The tables of one model; none where it is missing. `json` gets them after every cache, too."""
    if (path := folder(name)) is None:
        print(f"{name} is not here, so its perplexity was left out; `make real-models` makes it.", flush=True)
        return
    begun, study = time.perf_counter(), Study(name, load_model(str(path)), size)
    environment = Environment.here(command_line())

    def tables() -> list[Part]:
        seconds = round(time.perf_counter() - begun, 1)
        return [replace(make(study, environment), seconds=seconds) for make in (curve, ratios)]

    for cache in study.measure(full):
        print(f"- {name}, {cache}: {time.perf_counter() - begun:.0f} s", flush=True)
        if json is not None:
            write_report(json, tables())
    yield from tables()


def parts(full: bool) -> Iterator[Part]:
    """The tables of all models of a set."""
    for name, size in (FULL_SIZES if full else SHORT_SIZES).items():
        yield from study_parts(name, size, full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=" or ".join(FULL_SIZES))
    parser.add_argument("--set", choices=("short", "full"), default="full", dest="size")
    for option in ("--window", "--segment", "--tokens", "--stretches", "--positions"):
        parser.add_argument(option, type=int, metavar="N", help="instead of the set's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the tables to this file")
    args = parser.parse_args()
    header("bench.perplexity")
    for name, size in (SHORT_SIZES if args.size == "short" else FULL_SIZES).items():
        if args.models and name not in args.models:
            continue
        given = {key: getattr(args, key) for key in ("window", "segment", "tokens", "stretches", "positions")}
        size = replace(size, **{key: value for key, value in given.items() if value is not None})
        for part in study_parts(name, size, args.size == "full", args.json):
            print(part.markdown(), flush=True)
            if args.json is not None:
                write_report(args.json, [part])


if __name__ == "__main__":
    main()
