"""Print what a chat costs on real models, by their configurations alone: `python -m bench.shapes [--write | NAME ...]`.

No weights: a model is built from its config.json as for an estimate, and every number comes from the cache plan and the
state shapes that the product uses. Names choose models; --write replaces their section of docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from bench.real_models import REAL_MODELS, RealModel
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.cache.recurrent.state import keeps_state
from mlxkv.memory import Budget
from mlxkv.models import skeleton
from mlxkv.store.kv.state_saves import MIN_TURN
from tests.cache.architecture_table import CATALOGUE_TITLE, DOCS, REAL_MODELS_TITLE

_START = 8192  # the turn that is measured begins here


@dataclass(frozen=True)
class Row:
    """A row of the table; the field names, with spaces, are its head."""

    model: str
    layers: str
    a_token: str
    one_state: str
    checkpoints: str
    written_by_50: str
    written_by_2000: str
    memory_at_8k: str
    memory_at_32k: str

    def __str__(self) -> str:
        return f"| {' | '.join(astuple(self))} |"


def written_bytes(plan: CachePlan, state: int, tokens: int, start: int = _START) -> int:
    """Bytes of rows and states that a turn of `tokens` after `start` adds to a chat on disk, once it has ended."""
    rows, end = 0, start + tokens
    for leaf in plan.leaves:
        if (g := leaf.geometry) is not None:
            oldest = g.first_kept(end, min(g.flushes(end), g.undo))  # a sliding window holds no older rows
            rows += leaf.row_bytes * (end - max(start, oldest))
    return rows + (state if tokens >= MIN_TURN else 0)


def without_weights(config: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The settings and the model of this config.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return skeleton(folder)


def make_row(real: RealModel) -> Row:
    """Compute one row."""
    settings, model = without_weights(real.config())
    budget = Budget(model, 0, trained_length(settings))
    default, at_8k, at_32k = (
        budget.plan(CacheConfig(window=window), 0, is_loaded=False) for window in (None, 8192, 32768)
    )
    state = budget.state_bytes(default)
    return Row(
        f"{real.name} (`{real.module}`)",
        _layers(default, len(model.layers)),
        _token(default),
        _bytes(state),
        _bytes(budget.checkpoint_bytes(default)),
        _bytes(written_bytes(default, state, 50)),
        _bytes(written_bytes(default, state, 2000)),
        _bytes(budget.cache_bytes(at_8k)),
        _bytes(budget.cache_bytes(at_32k)),
    )


def _layers(plan: CachePlan, total: int) -> str:
    """How many layers keep what, e.g. `24 state, 8 full`."""
    counts = Counter(
        "full" if leaf.native_window is None else f"of {leaf.native_window:,}" for leaf in plan.leaves if leaf.geometry
    )
    counts["state"] = sum(keeps_state(leaf) for leaf in plan.leaves)
    counts["none"] = total - counts.total()
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


def _token(plan: CachePlan) -> str:
    """Bytes of a token in all layers, and in those that keep it."""
    full = sum(leaf.row_bytes for leaf in plan.leaves if leaf.geometry and leaf.native_window is None)
    every = _bytes(plan.bytes_per_token)
    return every if full == plan.bytes_per_token else f"{every}, {_bytes(full)} full"


def _bytes(n: int) -> str:
    """Three digits, in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size * 0.9995:
            return f"{n / size:.3g} {unit}"
    return f"{n} B" if n else "-"


_TEXT = """
What a chat costs on the models that people with Macs choose in November 2026, by their configurations alone, in 16-bit
rows and with the window that is the default where memory allows, 32,768 tokens. `python -m bench.shapes --write` makes
this section by the product's own arithmetic; the configurations and their sources are in `bench/real_models.py`.

* **layers**: full: rows of all attended tokens; of n: rows of a sliding window of n tokens; state: a recurrent state;
  none: nothing, or the rows of another layer.
* **a token**: its rows in all layers; sliding windows drop it later, full layers keep it. **one state**: of all
  recurrent layers, of constant size.
* **checkpoints**: the most that earlier states take beside the one in use: a quarter of the rings, at least 6 states,
  at most 64.
* **written by 50, by 2000**: bytes that a turn of so many tokens adds to a chat of 8,192 tokens on disk: its rows, and
  a state if 1,024 tokens came since the last one.
* **memory at 8k, at 32k**: of a full cache with a window of 8,192 or 32,768 tokens: rings, state and checkpoints.
"""


def section(models: Sequence[RealModel]) -> Iterator[str]:
    """The lines of the section in the document."""
    yield from (REAL_MODELS_TITLE, _TEXT)
    head = [field.name.replace("_", " ") for field in fields(Row)]
    yield from (f"| {' | '.join(head)} |", "|" + " --- |" * len(head))
    yield from (str(make_row(real)) for real in models)
    yield from ("", "The same shape:", "")
    yield from (f"* {real.name}: also {real.same}." for real in models if real.same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    if unknown := {*args.names} - {real.name for real in REAL_MODELS}:
        parser.error(f"{', '.join(sorted(unknown))}: not in bench/real_models.py")
    lines = []
    for line in section([real for real in REAL_MODELS if not args.names or real.name in args.names]):
        print(line, flush=True)
        lines.append(line)
    if args.write:
        before, _, rest = DOCS.read_text().partition(REAL_MODELS_TITLE)
        after = CATALOGUE_TITLE + rest.partition(CATALOGUE_TITLE)[2]
        DOCS.write_text(before + "\n".join([*lines, "", after]))


if __name__ == "__main__":
    main()
