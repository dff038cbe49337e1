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

from bench.continuations import MOST_ROWS, Layers, move_on, native, ring, scores, stretches, window_scores
from bench.measure import header
from bench.real_weights import folder
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.geometry import Geometry
from mlxkv.cache.plan import plan_cache
from mlxkv.cache.probe import leaves
from mlxkv.cli.bench.report import Environment, Goal, Part, Row, Unit, command_line, write_report
from mlxkv.models.load import LoadedModel, load_model

SINKS = 4
FAR_FROM = 2.5  # times the trained length
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
    is_far: bool = False  # also measured far beyond the trained length
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
    "smollm2": Size(window=256, segment=256, tokens=2048, stretches=8, positions=128, is_far=True),
    "gemma3": Size(window=512, segment=512, tokens=2048, stretches=4, positions=32, prefix=(2,)),
}
SHORT_SIZES = {"smollm2": Size(window=256, segment=256, tokens=1024, stretches=1, positions=0, is_far=False)}
# The first measurements, of one stretch.
WINDOW_GOALS = {3: 1.04, 4: 1.19}  # in the third and fourth window of tokens
GOALS: dict[str, float | None] = {
    f"{RING}, 8 bits": 1.005, f"{RING}, 8/4 bits": 1.015, f"{RING}, 4/8 bits": None, f"{RING}, 4 bits": 1.19
}  # fmt: skip


class Study:
    """One model and its text, and the log-probabilities under each cache: `found[name]` (stretches, tokens - 1)."""

    def __init__(self, name: str, loaded: LoadedModel, size: Size, keep: Path | None = None) -> None:
        """`keep`: a folder for log-probabilities, so that a run that was stopped continues where it was."""
        self.name, self.size, self.keep = name, size, keep
        self.model: nn.Module = loaded.model
        self.model.set_dtype(mx.float32)
        self.plan = plan_cache(self.model, CacheConfig(window=size.window, sinks=SINKS))
        encode = partial(loaded.tokenizer.encode, add_special_tokens=False)
        self.ids = stretches(encode, list(size.prefix), size.stretches, size.tokens)
        self.found: dict[str, mx.array] = {}
        self.trained = loaded.trained_length

    @property
    def geometry(self) -> Geometry:
        assert self.plan.geometry is not None
        return self.plan.geometry

    @property
    def title(self) -> str:
        return {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}[self.name]

    @property
    def settings(self) -> str:
        size, geometry = self.size, self.geometry
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

    def measure(self, full: bool, names: Sequence[str] = ()) -> Iterator[str]:
        """Run every cache, or those of these names; yields the name of each when it is measured."""
        for name, make, chunk in self.caches(full):
            if names and name not in names:
                continue
            found = self.once(name, lambda make=make, chunk=chunk: scores(self.model, make(), self.ids, chunk))
            self.found[name] = found
            yield name

    def once(self, name: str, make: Callable[[], mx.array]) -> mx.array:
        """What `make` returns, or what an earlier run kept of it."""
        if self.keep is None:
            return make()
        parts = (self.name, self.size.window, self.size.stretches, self.size.tokens, name.replace("/", "-"))
        file = self.keep / f"{' '.join(map(str, parts))}.npy"
        if not file.exists():
            mx.save(str(file), make())
        return mx.load(str(file))  # type: ignore[return-value]

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

    def compare(ours: str, theirs: str, tokens: tuple[int, int], where: str, most: float | None = None) -> None:
        if ours != theirs and {ours, theirs} <= {*study.found}:
            add(f"{ours} to {theirs}, {where}", study.ratio(ours, theirs, *tokens), most)

    inside, past = (0, size.window), (size.window, size.tokens)
    for name in (RING, ROTATING, ROTATING_CALLS):
        for end, _ in size.segments:
            if end > size.window:
                goal = WINDOW_GOALS.get(end // size.window) if name == RING and end % size.window == 0 else None
                start = end - size.segment
                compare(name, FULL, (start, end), f"tokens {start:,} to {end:,}", goal)
        compare(name, FULL, past, "all past the window")
    for name, goal in GOALS.items():
        compare(name, RING, inside, "inside the window", goal)
        compare(name, RING, past, "past the window", goal)
    for name in (name for name in study.found if name.startswith("mlx-lm, all")):
        compare(name, FULL, (0, size.tokens), "everywhere")
    if size.positions and RING in study.found:
        add(f"{RING} to a pure window of as many tokens, {size.positions} positions", window_ratio(study))
    if size.is_far and RING in study.found:
        for what, value in far_ratios(study):
            add(what, value, 1.05 if what.startswith(RING) else None)
    columns = {"ratio": Unit.RATIO, "±": Unit.RATIO}
    name, heading = f"perplexity-ratios-{study.name}", f"Perplexity as a ratio, {study.title}"
    return Part(name, heading, study.title, study.settings, columns, rows, environment)


def window_ratio(study: Study) -> tuple[float, float | None]:
    """The ring against a window of the same number of tokens, prefilled anew at each position: the most that a window
    can know."""
    size, geometry = study.size, study.geometry
    first, count = 2 * size.window, size.positions // size.stretches
    at = [first + n * (size.tokens - 1 - first) // count for n in range(count)]
    lengths = [geometry.live(p) for p in at]
    make = partial(window_scores, study.model, study.ids, at, lengths, len(size.prefix))
    theirs = study.once(f"pure window at {len(at)}", make)
    ours = study.found[RING][:, mx.array(at) - 1]
    return ratio(ours.reshape(-1).tolist(), theirs.reshape(-1).tolist())  # type: ignore[arg-type]


def far_ratios(study: Study) -> Iterator[tuple[str, tuple[float, float | None]]]:
    """The next window of tokens after so many more evicted ones, against the same tokens near the beginning."""
    size, geometry = study.size, study.geometry
    turn = geometry.block * geometry.slots * geometry.undo
    by, start = (int(FAR_FROM * (study.trained or 0)) // turn + 1) * turn, geometry.capacity + geometry.block
    rotation = next(leaf.rotation for leaf in leaves(study.ring()) if leaf.rotation is not None)
    for name, make, chunk in ((RING, study.ring, MOST_ROWS), (ROTATING, study.rotating, 1)):

        def far(make: Callable[[], Layers] = make, chunk: int = chunk) -> mx.array:
            caches = make()
            first = (
                geometry.capacity - 1 if chunk == 1 else start
            )  # mlx-lm's keeps its first tokens in sight until then
            scores(study.model, caches, study.ids[:, : first + 1])
            scores(study.model, caches, study.ids[:, first : start + 1], chunk)
            move_on(caches, by, rotation)
            return scores(study.model, caches, study.ids[:, start : start + size.window + 1], chunk)

        moved = study.once(f"{name}, {by} further on", far)
        near = study.found[RING][:, start : start + size.window]
        means = [mx.mean(x, axis=1).tolist() for x in (moved, near)]
        yield f"{name}, {by:,} tokens further on, to {RING} here", ratio(*means)  # type: ignore[arg-type]


def study_parts(
    name: str, size: Size, full: bool, keep: Path | None = None, names: Sequence[str] = ()
) -> Iterator[Part]:
    """The tables of one model; none where it is missing, or where only some caches were asked for."""
    if (path := folder(name)) is None:
        print(f"{name} is not here, so its perplexity was left out; `make real-models` makes it.", flush=True)
        return
    begun, study = time.perf_counter(), Study(name, load_model(str(path)), size, keep)
    for cache in study.measure(full, names):
        print(f"- {name}, {cache}: {time.perf_counter() - begun:.0f} s", flush=True)
    environment = Environment.here(command_line())
    for make in (curve, ratios):
        part = make(study, environment)
        yield replace(part, seconds=round(time.perf_counter() - begun, 1))


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
    parser.add_argument("--caches", nargs="*", default=(), metavar="NAME", help="only these, by their columns")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="to continue a run that was stopped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the tables to this file")
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    header("bench.perplexity")
    for name, size in (SHORT_SIZES if args.size == "short" else FULL_SIZES).items():
        if args.models and name not in args.models:
            continue
        given = {key: getattr(args, key) for key in ("window", "segment", "tokens", "stretches", "positions")}
        size = replace(size, **{key: value for key, value in given.items() if value is not None})
        for part in study_parts(name, size, args.size == "full", args.keep, args.caches):
            print(part.markdown(), flush=True)
            if args.json is not None:
                write_report(args.json, [part])


if __name__ == "__main__":
    main()
