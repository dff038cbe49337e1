"""The suggestions: plausible, and honest about what fits. And importing mlxkv.models costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.catalogue import DOCS, WINDOW, choice, everything, memory_8k, shape_of, with_memory
from bench.shapes import without_weights
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.memory import CHUNKS, Budget
from mlxkv.models import CatalogueEntry, catalogue, resolve, suggestions
from mlxkv.models.catalogue import HEADROOM, MemorySize, memory_sizes
from mlxkv.models.files.architecture import _INSTEAD, is_known

# What Metal lets a process use by default, in GiB: two thirds up to 32 GB, three quarters above.
OTHER_MACS = {24: 16, 36: 27, 48: 36, 96: 72}
LIMITS = {gigabytes: usable << 30 for gigabytes, usable in OTHER_MACS.items()} | {
    size.gigabytes: size.limit for size in memory_sizes()
}

entries = pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.id)
sizes = pytest.mark.parametrize("size", memory_sizes(), ids=lambda size: f"{size.gigabytes} GB")


def test_catalogue() -> None:
    entries = catalogue()
    assert 25 <= len(entries) <= 30
    assert len({entry.id for entry in entries}) == len(entries)
    assert 600_000_000 < entries[0].size_bytes < 700_000_000
    assert 65e9 < entries[-1].size_bytes < 75e9
    assert [e.size_bytes for e in entries] == sorted(e.size_bytes for e in entries)


@entries
def test_entry(entry: CatalogueEntry) -> None:
    assert resolve(entry.id).repo == entry.id
    assert entry.title
    assert entry.licence
    assert entry.seen  # nobody has asked the hub
    assert entry.reasoning in ("no", "toggle", "always")
    assert re.fullmatch(r"[A-Z].{10,120}\.", entry.note)
    bits = entry.size_bytes * 8 / (entry.params * 1e9)
    # Scales and vision parts come on top; conversions of QAT models leave much in 8 and 16 bits.
    assert entry.bits <= bits <= entry.bits * 2


@entries
def test_context_and_architecture_are_those_of_the_configuration(entry: CatalogueEntry) -> None:
    config = shape_of(entry).config()
    assert trained_length(config) == entry.context
    assert is_known(config)


@entries
def test_the_memory_that_an_advice_names_is_enough(entry: CatalogueEntry) -> None:
    if named := re.search(r"(\d+)(?: or \d+)? GB", entry.note):
        assert entry.fits(LIMITS[int(named[1])])


@pytest.mark.slow
@entries
def test_memory_is_what_the_command_computes(entry: CatalogueEntry) -> None:
    assert entry.memory_8k == memory_8k(entry)


def test_the_documentation_shows_the_catalogue() -> None:
    text = DOCS.read_text()
    assert choice() in text
    assert text.endswith(everything())


def test_the_command_writes_one_figure() -> None:
    tables = [f'id = "{entry.id}"\nbits = 4\nmemory_8k = 0\ncontext = 5\n' for entry in catalogue()[:2]]
    assert with_memory("".join(tables), catalogue()[1], 123_000) == tables[0] + tables[1].replace("= 0", "= 123_000")


@sizes
def test_what_is_suggested_for_a_memory_size_fits_it(size: MemorySize) -> None:
    """By the rules of `mlxkv models estimate` with a window of 8,192 tokens, anew from the configurations."""
    for entry in (size.default, size.quick):
        assert entry.size_bytes <= size.limit * HEADROOM
        settings, model = without_weights(shape_of(entry).config())
        budget = Budget(model, size.limit, trained_length(settings))
        plan = budget.plan(CacheConfig(window=WINDOW), entry.size_bytes, is_loaded=False)
        assert budget.fits(plan, entry.size_bytes, CHUNKS[0])
        assert entry.memory_8k <= size.limit
    assert size.quick.memory_8k < size.default.memory_8k
    assert [s.entry for s in suggestions(size.limit)] == [size.default, size.quick]
    assert f"suggested for {size.gigabytes} GB or more" == suggestions(size.limit)[0].reason


def test_every_machine_gets_the_largest_suggestion_that_fits() -> None:
    defaults = [suggestions(LIMITS[gigabytes])[0].entry for gigabytes in sorted(LIMITS)]
    assert [entry.memory_8k for entry in defaults] == sorted(entry.memory_8k for entry in defaults)
    assert suggestions(LIMITS[24])[0].entry == suggestions(LIMITS[16])[0].entry
    assert suggestions(LIMITS[48])[0].entry == suggestions(LIMITS[32])[0].entry
    small = suggestions(1_000_000_000)
    assert [s.reason for s in small] == ["the largest that fits here"]
    assert small[0].entry.fits(1_000_000_000)
    assert suggestions(1000) == ()


def test_what_a_64_gb_mac_lets_its_gpu_use_is_not_filled_by_weights_alone() -> None:
    coder = next(entry for entry in catalogue() if "Coder-Next" in entry.id)
    assert coder.memory_8k <= LIMITS[64]
    assert not coder.fits(LIMITS[64])
    assert f"{coder.size_bytes / LIMITS[64]:.0%}".replace("%", " %") in coder.note


def test_fits_leaves_room() -> None:
    entry = replace(catalogue()[0], size_bytes=1000, memory_8k=1100)
    assert entry.fits(1200)
    assert not entry.fits(1099)
    assert not entry.fits(1150)  # the weights alone are 87 % of it


def test_a_repository_named_in_an_error_is_one_of_the_catalogue() -> None:
    assert {*_INSTEAD.values()} <= {entry.id for entry in catalogue()}


@pytest.mark.slow
def test_importing_costs_nothing() -> None:
    code = "import sys, mlxkv.models; sys.exit(any(m in sys.modules for m in ('mlx', 'mlx_lm', 'huggingface_hub')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
