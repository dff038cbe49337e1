"""The memory that each suggested model takes with a chat of 8,192 tokens, and their tables in docs/models.md.

`python -m bench.catalogue` checks models/catalogue.toml and docs/models.md and fails if they differ; `--write` writes
them. No weights: the cache is that of the model's configuration in bench/real_models.py, by the rules of
`mlxkv models estimate` on a Mac; the weights are the download, a vision part included.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.real_models import REAL_MODELS, RealModel
from bench.shapes import without_weights
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.memory import CHUNKS, Budget
from mlxkv.memory.prefill_peak import prefill_bytes
from mlxkv.models import CatalogueEntry, catalogue
from mlxkv.models.catalogue import memory_sizes, tables
from mlxkv.stats import bytes_text
from tests.cache.architecture_table import CACHES_TITLE, CATALOGUE_TITLE, CHOICE_TITLE, DOCS

CATALOGUE = Path(__file__).parents[1] / "models" / "catalogue.toml"
WINDOW = 8192  # tokens
_STEP = 10_000_000  # bytes to which a figure is rounded up

_TEXT = """
What is suggested for a Mac by its memory: the default, and a smaller one that answers sooner. `mlxkv models ls` lists
them first. [All suggested models](#all-suggested-models) has the others, with licence and advice.
"""
_RULE = """
**usable**: what macOS lets a GPU use of that memory, unless you raise it: two thirds, above 32 GB three quarters. A Mac
with 64 GB has 64 GiB, which are 69 GB in the decimal units of this page, and three quarters of these are 52 GB.
**memory at 8k**: the model with a chat of 8,192 tokens. A model fits, and `mlxkv models ls` marks it with `*`, if that
is within what is usable and the download takes at most 85 % of it; the rest is for longer chats and other programs.
"""
_ALL = """
By size. **memory at 8k**: the download, a full KV cache of 8,192 tokens in 16 bits with its states, and the peak of a
prefill, by the rules of `mlxkv models estimate` (`python -m bench.catalogue --write`); less where the download has a
vision part, which is not loaded. **reasoning**: toggle: `--think` and `--no-think` switch it. Id, size, licence and
context were read in public sources in November 2026, which `models/catalogue.toml` names, and not on the hub;
`mlxkv models check [ID ...]` compares them with it: a line each with `ok`, `changed`, `missing` or `not reachable`, or
`--json`; exit code 1: one changed or is missing, 3: the hub (`HF_ENDPOINT`, `HF_TOKEN`) could not be asked about all.
mlx-lm 0.32.2 runs all of these architectures.
"""


def shape_of(entry: CatalogueEntry) -> RealModel:
    """The model of bench/real_models.py that has the entry's configuration: the one whose name its id contains."""
    found = {
        name: real
        for real in REAL_MODELS
        for name in (real.name, *real.same.split(", "))
        if name and re.search(rf"{re.escape(name)}(-|$)", entry.id, re.I)
    }
    return found[max(found, key=len)]


def memory_8k(entry: CatalogueEntry) -> int:
    """Bytes of the entry's download, of a full cache of 8,192 tokens, and of its prefill on Metal, rounded up."""
    settings, model = without_weights(shape_of(entry).config())
    budget = Budget(model, 0, trained_length(settings))
    plan = budget.plan(CacheConfig(window=WINDOW), 0, is_loaded=False)
    prefill = prefill_bytes(model, plan, CHUNKS[0], has_kernel=True)
    return -(-(entry.size_bytes + budget.cache_bytes(plan) + prefill) // _STEP) * _STEP


def choice() -> str:
    """The section of the document on what to choose, which is its first."""
    return "\n".join([CHOICE_TITLE, _TEXT, *_suggested(), _RULE, ""])


def everything() -> str:
    """The section with all models, which is the document's last."""
    return "\n".join([CATALOGUE_TITLE, _ALL, *_all(), ""])


def _suggested() -> Iterator[str]:
    yield from ("| memory | usable | default | memory at 8k | quick | memory at 8k |", "|" + " --- |" * 6)
    for size in memory_sizes():
        models = " | ".join(f"`{e.id}` | {bytes_text(e.memory_8k)}" for e in (size.default, size.quick))
        yield f"| {size.gigabytes} GB | {bytes_text(size.limit)} | {models} |"


def _all() -> Iterator[str]:
    yield "| model | download | memory at 8k | context | reasoning | licence | advice |"
    yield "|" + " --- |" * 7
    for e in catalogue():
        sizes = f"{bytes_text(e.size_bytes)} | {bytes_text(e.memory_8k)} | {e.context:,}"
        yield f"| `{e.id}` | {sizes} | {e.reasoning} | {e.licence} | {e.note} |"


def with_memory(text: str, entry: CatalogueEntry, memory: int) -> str:
    """catalogue.toml with this figure in the entry's table."""
    table = re.compile(rf'(id = "{re.escape(entry.id)}"\n(?:\w+ = .*\n)*?memory_8k = )[\d_]+')
    return table.sub(rf"\g<1>{memory:_}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    text, entries = CATALOGUE.read_text(), []
    for entry in catalogue():
        entries.append(replace(entry, memory_8k=memory_8k(entry)))
        beside = "" if entries[-1] == entry else f", not {bytes_text(entry.memory_8k)}"
        print(f"{bytes_text(entries[-1].memory_8k):>7}  {entry.id}{beside}", flush=True)
        text = with_memory(text, entry, entries[-1].memory_8k)
    if args.write:
        CATALOGUE.write_text(text)
        tables.cache_clear()
        before, _, rest = DOCS.read_text().partition(CHOICE_TITLE)
        others = CACHES_TITLE + rest.partition(CACHES_TITLE)[2].partition(CATALOGUE_TITLE)[0]
        DOCS.write_text(before + choice() + others + everything())
    elif text != CATALOGUE.read_text() or any(part not in DOCS.read_text() for part in (choice(), everything())):
        sys.exit("models/catalogue.toml or docs/models.md is outdated; run `python -m bench.catalogue --write`.")


if __name__ == "__main__":
    main()
