"""Draw the ring of `docs/how-it-works.md` from its arithmetic: `python -m bench.ring_figure`.

Writes docs/images/ring-light.svg and ring-dark.svg: the rows of a small ring at three moments of a chat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxkv.cache.rings.geometry import Geometry

IMAGES = Path(__file__).parents[1] / "docs" / "images"
GEOMETRY = Geometry(sinks=4, window=64, block=16, undo=2)
MOMENTS = {44: "filling", 68: "full: the next token evicts a block", 92: "later: two blocks have been evicted"}

_SCALE, _LEFT, _STRIP, _GAP = 8.5, 10, 44, 46  # pixels: a row, the margin, a strip and the space below it
_WIDTH = round(_LEFT * 2 + GEOMETRY.rows * _SCALE)


@dataclass(frozen=True)
class Colours:
    text: str
    faint: str
    empty: str
    sinks: str
    block: str
    current: str
    undo: str


THEMES = {
    "light": Colours("#1f2328", "#59636e", "#f3f4f6", "#f2cc60", "#b6d4fe", "#7ee2a8", "#d8dee4"),
    "dark": Colours("#e6edf3", "#9198a1", "#1b1f24", "#7d5e00", "#1f4b86", "#1a6b41", "#3d444d"),
}


@dataclass(frozen=True)
class Region:
    """Rows `first` to `end`, with the positions `a` to `b` in them (none if equal)."""

    name: str
    first: int
    end: int
    a: int = 0
    b: int = 0


def regions(offset: int, g: Geometry = GEOMETRY) -> Iterator[Region]:
    """The parts of the ring after `offset` tokens, in the order of the buffer."""
    undo = min(g.flushes(offset), g.undo)
    kept = [*range(g.sinks), *range(g.first_kept(offset, undo), offset)]
    position = {segment.row: p for p in kept for segment in g.segments(p, p + 1, offset)}
    starts = [0, *range(g.sinks, g.rows, g.block)]
    for first, end in zip(starts, [*starts[1:], g.rows], strict=True):
        held = [position[row] for row in range(first, end) if row in position]
        name = "sinks" if not first else "undo" if first >= g.capacity else "current" if first == g.current else "block"
        yield Region(name, first, end, *((held[0], held[-1] + 1) if held else ()))


def svg(colours: Colours) -> str:
    parts, y = [], 8
    for offset, title in MOMENTS.items():
        parts.append(_text(_LEFT, y + 12, f"{offset} tokens, {title}", colours.text, 13, "start"))
        for region in regions(offset):
            parts += _strip(region, y + 20, colours)
        y += 20 + _STRIP + _GAP - 26
    g = GEOMETRY
    spans = [(0, g.sinks, "sinks"), (g.sinks, g.current, "blocks"), (g.current, g.capacity, "in progress")]
    for first, end, name in [*spans, (g.capacity, g.rows, "undo area")]:
        parts.append(_text((first + end) / 2 * _SCALE + _LEFT, y + 4, name, colours.faint, 12))
    height = y + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _strip(region: Region, y: float, colours: Colours) -> Iterator[str]:
    x, width = _LEFT + region.first * _SCALE, (region.end - region.first) * _SCALE - 2
    yield _box(x, y, width, colours.empty)
    held = region.b - region.a
    if held:
        yield _box(x, y, held * _SCALE - 2, getattr(colours, region.name))
        yield _text(x + (held * _SCALE - 2) / 2, y + 26, f"{region.a}–{region.b - 1}", colours.text, 12)


def _box(x: float, y: float, width: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{_STRIP}" rx="3" fill="{fill}"/>'


def _text(x: float, y: float, text: str, fill: str, size: int, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{text}</text>'


def main() -> None:
    for theme, colours in THEMES.items():
        (IMAGES / f"ring-{theme}.svg").write_text(svg(colours), encoding="utf-8")


if __name__ == "__main__":
    main()
