"""The models mlxkv suggests, read from catalogue.toml. Makes no requests to the hub; `check` does."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HEADROOM = 0.85  # of the limit; the rest is for longer chats and other programs

_FILE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True)
class CatalogueEntry:
    """One model. `params` in billions, `bits` per weight, `size_bytes` to download, `context` in tokens.

    `memory_8k`: bytes of the download, of a full KV cache of 8,192 tokens with its states, and of a prefill of 512
    tokens on Metal (`python -m bench.catalogue --write`). `reasoning`: "no", "toggle" or "always". `seen`: where id,
    size and licence were read; they were not checked against the hub.
    """

    id: str
    title: str
    params: float
    bits: float
    size_bytes: int
    memory_8k: int
    context: int
    licence: str
    reasoning: str
    seen: str
    note: str

    def fits(self, limit: int) -> bool:
        """Whether the model and a chat of 8,192 tokens fit within `limit` bytes (`Device.memory_limit`)."""
        return self.memory_8k <= limit and self.size_bytes <= limit * HEADROOM


@dataclass(frozen=True)
class MemorySize:
    """A size of memory that Macs have, `gigabytes`, of which Metal uses `limit` bytes: its default and quick model."""

    gigabytes: int
    limit: int
    default: CatalogueEntry
    quick: CatalogueEntry


@dataclass(frozen=True)
class Suggestion:
    """A model for this machine and the reason: "suggested for 16 GB or more"."""

    entry: CatalogueEntry
    reason: str


def suggestions(limit: int) -> tuple[Suggestion, ...]:
    """The default for a machine with `limit` bytes (`Device.memory_limit`), then a quicker one; () if nothing fits."""
    for size in reversed(memory_sizes()):
        if size.limit <= limit:
            memory = f"for {size.gigabytes} GB or more"
            return Suggestion(size.default, f"suggested {memory}"), Suggestion(size.quick, f"quick choice {memory}")
    fitting = [entry for entry in catalogue() if entry.fits(limit)]
    return (Suggestion(fitting[-1], "the largest that fits here"),) if fitting else ()


def ranked(limit: int) -> tuple[Suggestion, ...]:
    """Every model: those suggested for `limit` bytes first, then the others by size, for which no reason is given."""
    suggested = suggestions(limit)
    chosen = [suggestion.entry for suggestion in suggested]
    return suggested + tuple(Suggestion(entry, "") for entry in catalogue() if entry not in chosen)


def catalogue() -> tuple[CatalogueEntry, ...]:
    """Every model, smallest download first."""
    return tuple(sorted(_entries(), key=lambda entry: entry.size_bytes))


def memory_sizes() -> tuple[MemorySize, ...]:
    """What is suggested for each size of memory, smallest first."""
    entries = {entry.id: entry for entry in _entries()}
    return tuple(
        MemorySize(row["gigabytes"], row["limit"], entries[row["default"]], entries[row["quick"]])
        for row in tables()["memory"]
    )


def _entries() -> Iterator[CatalogueEntry]:
    return (CatalogueEntry(**table) for table in tables()["model"])


@cache
def tables() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
