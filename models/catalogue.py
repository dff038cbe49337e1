"""The models mlxkv suggests, read from catalogue.toml. Makes no requests to the hub."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

HEADROOM = 0.85  # of the limit; the rest is for the KV cache and prefill


@dataclass(frozen=True)
class CatalogueEntry:
    """One suggestion. `params` in billions, `bits` per weight, `size_bytes` to download, `context` in tokens."""

    id: str
    title: str
    params: float
    bits: float
    size_bytes: int
    licence: str
    context: int
    note: str = ""

    def fits(self, limit: int) -> bool:
        """Whether the weights leave room for a KV cache within `limit` bytes (`Device.memory_limit`)."""
        return self.size_bytes <= limit * HEADROOM


def suggestions(limit: int) -> tuple[CatalogueEntry, ...]:
    """Three models for a machine with `limit` bytes: quick, balanced, and the largest that fits."""
    fitting = [entry for entry in catalogue() if entry.fits(limit)]
    if len(fitting) <= 3:
        return tuple(fitting)
    largest = fitting[-1]
    balanced = min(fitting[1:-1], key=lambda entry: abs(entry.size_bytes - largest.size_bytes / 2))
    return (fitting[0], balanced, largest)


def catalogue() -> tuple[CatalogueEntry, ...]:
    """Every suggestion, smallest first."""
    text = Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    entries = (CatalogueEntry(**table) for table in tomllib.loads(text)["model"])
    return tuple(sorted(entries, key=lambda entry: entry.size_bytes))
