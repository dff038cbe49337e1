"""Draw the figures of the documentation from benchmark reports: `python -m bench.figures [FILE ...]`, or make figures.

Each figure is an SVG for light and one for dark pages, below docs/images/figures. Text stays text; the same reports
give the same bytes. Without a file: those of bench/results, a later one in place of an earlier.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cache_study import FULL, RING, ROTATING_CALLS
from bench.measure import ROOT
from mlxkv.cli.bench.report import Part
from mlxkv.cli.bench.report_file import read_report

RESULTS = [ROOT / "bench" / "results" / f"{name}.json" for name in ("short", "full", "quality")]
FOLDER = ROOT / "docs" / "images" / "figures"
_FONT = (
    "DejaVu Sans"  # comes with matplotlib, so that positions are the same everywhere; the SVG names sans-serif alone
)
_SIZE = (4.6, 2.9)  # inches: readable at 400 pixels
_APART = 0.085  # of the height: the least distance of two labels


@dataclass(frozen=True)
class Look:
    """Colours of one page: text, lines between, and the sides, which differ in lightness too (after Okabe and Ito)."""

    name: str
    text: str
    faint: str
    ours: str
    theirs: str
    third: str


LOOKS = (
    Look("light", "#24292f", "#d0d7de", "#0072b2", "#d55e00", "#767676"),
    Look("dark", "#e6edf3", "#3d444d", "#56b4e9", "#e69f00", "#9198a1"),
)

Parts = Mapping[str, Part]


@contextmanager
def axes(look: Look, title: str) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in this look, with a title at its top left."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "mlxkv", "font.family": "sans-serif", "font.sans-serif": [_FONT],
        "font.size": 10, "text.color": look.text, "axes.edgecolor": look.faint, "axes.labelcolor": look.text,
        "xtick.color": look.text, "ytick.color": look.text, "axes.spines.top": False, "axes.spines.right": False,
        "axes.spines.left": False, "xtick.minor.size": 0, "ytick.minor.size": 0, "ytick.major.size": 0,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": look.faint, "grid.linewidth": 0.6,
        "lines.linewidth": 2, "lines.markersize": 5, "axes.axisbelow": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        found = figure.add_subplot()
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=look.text)
        yield figure, found


def draw(figure: Any) -> bytes:
    """The figure as SVG, with nothing that changes from day to day."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue().replace(f"'{_FONT}', sans-serif", "sans-serif")
    return "\n".join(line.rstrip() for line in text.splitlines()).encode() + b"\n"


def number(part: Part, row: int, column: str) -> float:
    """A number of the part."""
    value = part.rows[row].values[column]
    assert isinstance(value, int | float), f"{part.name}: {column} of {part.rows[row].what} is {value!r}"
    return value


def column(part: Part, title: str) -> list[float]:
    return [number(part, i, title) for i in range(len(part.rows))]


def label_ends(ax: Any, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Text and colour at the right end of each line, at least `_APART` from one another; `ends`: y, text, colour."""
    from matplotlib.transforms import blended_transform_factory

    ax.figure.canvas.draw()
    place = ax.transData + ax.transAxes.inverted()
    heights = [(place.transform((x, y))[1], text, colour) for y, text, colour in ends]
    lowest = -1.0
    for height, text, colour in sorted(heights):
        lowest = max(height, lowest + _APART)
        ax.annotate(text, (x, lowest), xycoords=blended_transform_factory(ax.transData, ax.transAxes), va="center",
                    xytext=(7, 0), textcoords="offset points", color=colour, annotation_clip=False)  # fmt: skip


def tokens_axis(ax: Any, ticks: Sequence[float], label: str) -> None:
    in_k = all(tick % 512 == 0 for tick in ticks) and max(ticks) > 1024
    ax.set_xticks(ticks, [f"{tick / 1024:g}k" if in_k and tick else f"{tick:,.0f}" for tick in ticks])
    ax.set_xlabel(label)


# -- the figures -------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds with two digits, or all of them from 100 on."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.2g} s"


def recompute(parts: Parts, look: Look) -> bytes:
    """Seconds per token with and without a cache."""
    part = parts["recompute"]
    lengths = column(part, "tokens")
    with axes(look, "Seconds per token, SmolLM2 on a CPU") as (figure, ax):
        ax.set(xscale="log", yscale="log")
        ends = []
        for side, name, colour in (("without", "without a cache", look.theirs), ("with", "with a cache", look.ours)):
            values = column(part, side)
            ax.plot(lengths, values, marker="o", color=colour)
            for x, y in zip(lengths[:-1], values[:-1], strict=True):
                ax.annotate(duration(y), (x, y), xytext=(0, 7), textcoords="offset points", ha="center", color=colour)
            ends.append((values[-1], f"{duration(values[-1])} {name}", colour))
        tokens_axis(ax, lengths, "tokens before it")
        ax.set_ylim(min(column(part, "with")) / 2, max(column(part, "without")) * 2.5)
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        label_ends(ax, lengths[-1], ends)
        return draw(figure)


def memory(parts: Parts, look: Look) -> bytes:
    """The highest memory over a long chat."""
    part = parts["long-chat"]
    tokens = column(part, "tokens")
    sides = (
        ("KVCache", "mlx-lm", look.theirs, "-"),
        ("RotatingKVCache", "mlx-lm, bounded", look.third, "--"),
        ("mlxkv", "mlxkv", look.ours, "-"),
    )  # fmt: skip
    with axes(look, "KV memory of a growing chat, MB") as (figure, ax):
        ends = []
        for side, name, colour, line in sides:
            values = [value / 1e6 for value in column(part, f"{side} peak")]
            ax.plot(tokens, values, color=colour, linestyle=line)
            ends.append((values[-1], name, colour))
        ax.set_ylim(0)
        ax.set_xlim(0, tokens[-1])
        tokens_axis(ax, [tokens[-1] * i / 4 for i in range(5)], "tokens of the chat")
        label_ends(ax, tokens[-1], ends)
        return draw(figure)


def first_token(parts: Parts, look: Look) -> bytes:
    """Cold against resumed, after the longest history."""
    part = parts["first-token"]
    longest = max(column(part, "history"))
    found = [i for i, row in enumerate(part.rows) if row.values["history"] == longest]
    names = [part.rows[i].what.partition(": ")[2].replace(", ", ",\n") for i in found]
    values = [number(part, i, "first token") for i in found]
    with axes(look, f"Seconds to the first token after {longest:,.0f} tokens") as (figure, ax):
        ax.grid(False)
        ax.barh(names, values, height=0.62, color=[look.theirs, *[look.ours] * (len(values) - 1)])
        for i, value in enumerate(values):
            ax.annotate(duration(value), (value, i), xytext=(5, 0), textcoords="offset points",
                        va="center")  # fmt: skip
        ax.invert_yaxis()
        ax.set_xlim(0, max(values) * 1.15)
        ax.xaxis.set_visible(False)
        ax.spines["bottom"].set_visible(False)
        return draw(figure)


def perplexity(parts: Parts, look: Look) -> bytes:
    """What a bounded cache costs past the window: its perplexity over that of a full cache."""
    part = parts["perplexity-smollm2"]
    tokens, whole = column(part, "tokens"), column(part, FULL)
    sides = (
        (ROTATING_CALLS, "mlx-lm, 64 a call", look.third, "--"),
        (RING, "mlxkv", look.ours, "-"),
    )
    with axes(look, "Perplexity over that of a full cache") as (figure, ax):
        ends = []
        for side, name, colour, line in sides:
            if side not in part.rows[0].values:
                continue  # the short set
            values = [a / b for a, b in zip(column(part, side), whole, strict=True)]
            ax.plot(tokens, values, color=colour, linestyle=line)
            ends.append((values[-1], name, colour))
        ax.plot(tokens, [1] * len(tokens), color=look.text, linewidth=1)
        ends.append((1, "full cache", look.text))
        ax.set_xlim(0, tokens[-1])
        tokens_axis(ax, [tokens[-1] * i / 4 for i in range(5)], "tokens of the text")
        label_ends(ax, tokens[-1], ends)
        return draw(figure)


@dataclass(frozen=True)
class Figure:
    """How a figure is drawn, and the part and the column without which it is not."""

    part: str
    column: str
    make: Callable[[Parts, Look], bytes]

    def is_in(self, parts: Parts) -> bool:
        return self.part in parts and self.column in parts[self.part].rows[0].values


FIGURES = {
    "recompute": Figure("recompute", "without", recompute),
    "memory": Figure("long-chat", "mlxkv peak", memory),
    "first-token": Figure("first-token", "first token", first_token),
    "perplexity": Figure("perplexity-smollm2", RING, perplexity),
}


def figures(parts: Parts) -> Iterator[tuple[str, bytes]]:
    """File names and contents of the figures whose parts are there."""
    for name, figure in FIGURES.items():
        if figure.is_in(parts):
            yield from ((f"{name}-{look.name}.svg", figure.make(parts, look)) for look in LOOKS)


def read_parts(files: Sequence[Path]) -> dict[str, Part]:
    """All parts of these files, by name."""
    return {part.name: part for file in files for part in read_report(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    parts = read_parts(args.files or RESULTS)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, content in figures(parts):
        (args.folder / name).write_bytes(content)
        print(name)
    for name, figure in FIGURES.items():
        if not figure.is_in(parts):
            print(f"{name} was left out: no file has the part `{figure.part}` with the column `{figure.column}`.")


if __name__ == "__main__":
    main()
