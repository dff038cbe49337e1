"""Perplexity of real text inside, at and far past the window: `python -m bench.perplexity [MODEL ...] [--json FILE]`.

On real weights in float32 (`make real-models`), in stretches of Python's own reference; a part of the suite (`python -m
bench --only perplexity`), alone with more options. Calls end at the ring's block boundaries, as the product's do.

The full set takes hours, since MLX's wheel for Linux multiplies matrices with the reference BLAS; `--keep` continues a
run that was stopped, `--caches` runs a part of it. `cache_study.py` has what is measured; this module owns the
sets, the tables and their goals.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from bench.cache_study import FULL, RING, ROTATING, ROTATING_CALLS, Size, Study, far_ratios, window_ratio
from bench.measure import header, make_part, real_model, show, writable_report
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.cli.bench.report_file import write_report
from mlxkv.models.loading.load import load_model

FULL_SIZES = {
    "smollm2": Size(window=256, segment=256, tokens=2048, stretches=8, positions=128, is_far=True),
    "gemma3": Size(window=512, segment=512, tokens=2048, stretches=4, positions=32, prefix=(2,)),
}
SHORT_SIZES = {"smollm2": Size(window=64, segment=64, tokens=256, stretches=1, positions=0)}  # two minutes
# The first measurements, of one stretch; those of SmolLM2 in the third and fourth window of tokens.
WINDOW_GOALS = {("smollm2", 256, 768): 1.04, ("smollm2", 256, 1024): 1.19}
GOALS: dict[str, float | None] = {
    f"{RING}, 8 bits": 1.005, f"{RING}, 8/4 bits": 1.015, f"{RING}, 4/8 bits": None, f"{RING}, 4 bits": 1.19
}  # fmt: skip


def curve(study: Study) -> Part:
    """Perplexity by segment, a column for each cache."""
    columns = {"tokens": Unit.COUNT, **dict.fromkeys(study.found, Unit.PERPLEXITY)}
    rows = []
    for end, where in study.size.segments:
        means = {name: mx.mean(found[:, where]).item() for name, found in study.found.items()}
        values = {name: math.exp(-mean) for name, mean in means.items()}  # type: ignore[operator]
        rows.append(Row(f"{end - study.size.segment:,} to {end:,}", {"tokens": end, **values}))
    title = f"Perplexity, {study.title}"
    return make_part(f"perplexity-{study.name}", title, study.title, study.settings, columns, rows)


def ratios(study: Study) -> Part:
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
                goal = WINDOW_GOALS.get((study.name, size.window, end)) if name == RING else None
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
    title = f"Perplexity as a ratio, {study.title}"
    notes = ["± is the standard error over the stretches, or over the positions of a pure window."]
    if ROTATING_CALLS in study.found:
        notes.append(
            "mlx-lm's rotating cache hides its first tokens from a call of several tokens, as prompts are prefilled; a "
            "call of 1 token, as replies are decoded, sees them."
        )
    return make_part(f"perplexity-ratios-{study.name}", title, study.title, study.settings, columns, rows, *notes)


def study_parts(
    name: str, size: Size, full: bool, keep: Path | None = None, names: Sequence[str] = ()
) -> Iterator[Part]:
    """The tables of one model; none where it is missing, or where only some caches were asked for."""
    if (path := real_model(name)) is None:
        return
    begun, study = time.perf_counter(), Study(name, load_model(str(path)), size, keep)
    for cache in study.measure(full, names):
        print(f"- {name}, {cache}: {time.perf_counter() - begun:.0f} s", flush=True)
    for make in (curve, ratios):
        yield replace(make(study), seconds=round(time.perf_counter() - begun, 1))


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
    parser.add_argument("--json", type=writable_report, metavar="FILE", help="add the tables to this file")
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
            show(part)
            if args.json is not None:
                write_report(args.json, [part])


if __name__ == "__main__":
    main()
