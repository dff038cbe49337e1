"""The suggestions: plausible, and honest about what fits. And importing mlxkv.models costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlxkv.models import catalogue, resolve, suggestions


def test_catalogue() -> None:
    entries = catalogue()
    assert len(entries) >= 14
    assert len({entry.id for entry in entries}) == len(entries)
    assert entries[0].size_bytes < 400_000_000
    assert 35e9 < entries[-1].size_bytes < 45e9
    assert [e.size_bytes for e in entries] == sorted(e.size_bytes for e in entries)


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.id)
def test_entry(entry: object) -> None:
    from mlxkv.models import CatalogueEntry

    assert isinstance(entry, CatalogueEntry)
    assert resolve(entry.id).repo == entry.id
    assert entry.title
    assert entry.licence
    assert entry.note.endswith(".")
    assert 8192 <= entry.context <= 1 << 20
    bits = entry.size_bytes * 8 / (entry.params * 1e9)
    assert entry.bits <= bits <= entry.bits * 1.7  # scales, embeddings and vision parts come on top


def test_fits_leaves_room() -> None:
    entry = catalogue()[0]
    assert entry.fits(entry.size_bytes * 2)
    assert not entry.fits(entry.size_bytes)


@pytest.mark.slow
def test_importing_costs_nothing() -> None:
    code = "import sys, mlxkv.models; sys.exit(any(m in sys.modules for m in ('mlx', 'mlx_lm', 'huggingface_hub')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_three_suggestions_fit_and_differ() -> None:
    for limit in (1_000_000_000, 5_000_000_000, 21_000_000_000, 90_000_000_000):
        chosen = suggestions(limit)
        assert 1 <= len(chosen) <= 3
        assert len({entry.id for entry in chosen}) == len(chosen)
        assert all(entry.fits(limit) for entry in chosen)
    assert suggestions(1000) == ()
