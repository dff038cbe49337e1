"""One model's real text under several caches: `Study`, and what may be compared.

Each cache is compared with another on the same tokens; an error is the standard error over the stretches. mlx-lm's
RotatingKVCache is measured twice, since what a token sees there depends on the call: one of several tokens, as prompts
are prefilled, masks the first tokens that the cache keeps; one of a single token does not.

`continuations.py` makes the log-probabilities, `perplexity.py` the tables and their goals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache

from bench.continuations import MOST_ROWS, Layers, move_on, native, ring, scores, stretches, window_scores
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.models.loading.load import LoadedModel

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


class Study:
    """One model and its text, and the log-probabilities under each cache: `found[name]` (stretches, tokens - 1)."""

    def __init__(self, name: str, loaded: LoadedModel, size: Size, keep: Path | None = None) -> None:
        """`keep`: a folder for log-probabilities, so that a run that was stopped continues where it was."""
        self.name, self.size, self.keep = name, size, keep
        self.model: nn.Module = loaded.model
        self.model.set_dtype(mx.float32)
        self.plan = plan_cache(self.model, CacheConfig(window=size.window, sinks=SINKS))
        encode = partial(loaded.tokenizer.encode, add_special_tokens=False, verbose=False)
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
    """A window of tokens soon after the first eviction, as the ring scores them there, against the same tokens under
    mlx-lm's cache, and under both after so many more evicted tokens that the model was never trained that far."""
    size, geometry = study.size, study.geometry
    turn = geometry.block * geometry.slots * geometry.undo
    away, start = (int(FAR_FROM * (study.trained or 0)) // turn + 1) * turn, geometry.capacity + geometry.block
    rotation = next(leaf.rotation for leaf in leaves(study.ring()) if leaf.rotation is not None)

    def found(make: Callable[[], Layers], chunk: int, by: int) -> mx.array:
        caches = make()
        # mlx-lm's keeps its first tokens in sight of a call of several tokens only until it is full.
        first = geometry.capacity - 1 if chunk == 1 else start
        scores(study.model, caches, study.ids[:, : first + 1])
        scores(study.model, caches, study.ids[:, first : start + 1], chunk)
        if by:
            move_on(caches, by, rotation)
        return scores(study.model, caches, study.ids[:, start : start + size.window + 1], chunk)

    here = study.found[RING][:, start : start + size.window]
    cases = ((RING, study.ring, MOST_ROWS, away), (ROTATING, study.rotating, 1, 0), (ROTATING, study.rotating, 1, away))
    for name, make, chunk, by in cases:
        what = f"{name}, {by} further on" if by else f"{name}, here"
        theirs = study.once(what, partial(found, make, chunk, by))
        means = [mx.mean(x, axis=1).tolist() for x in (theirs, here)]
        place = f"{by:,} tokens further on" if by else "in the same place"
        yield f"{name}, {place}, to {RING}", ratio(*means)  # type: ignore[arg-type]
