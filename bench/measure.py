"""How benchmarks measure: two ways of doing the same thing, in turns, in one process; the ratio of their medians.

Absolute times on a shared machine are noise; both sides of a ratio see the same noise.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

ROUNDS = 5


@dataclass(frozen=True)
class Ratio:
    """mlxkv's speed over mlx-lm's: above 1 is faster. `worst` is the smallest ratio of one pair of rounds."""

    ours: float  # seconds, median
    theirs: float  # seconds, median
    worst: float

    @property
    def median(self) -> float:
        return self.theirs / self.ours


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int = ROUNDS) -> Ratio:
    """Run both in turns, `rounds` times after one warm-up each. Each returns the seconds it took."""
    ours()
    theirs()
    pairs = []
    for i in range(rounds):
        # Whoever goes second finds warm caches: take turns.
        if i % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        pairs.append((a, b))
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(a, b, min(b / a for a, b in pairs))


def header(title: str) -> None:
    """Machine, versions and command, as every benchmark prints first."""
    import mlx.core as mx

    print(f"# {title}")
    print(f"{platform.machine()} {mx.device_info().get('device_name', '')} · {mx.default_device()}")
    versions = ", ".join(f"{p} {version(p)}" for p in ("mlxkv", "mlx", "mlx-lm"))
    print(f"{versions} · Python {platform.python_version()}")
    module = sys.modules["__main__"].__spec__
    print(f"command: python -m {module.name if module else title}\n")
