"""Links, anchors and pictures of the documentation lead somewhere; the reference has every public name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mlxkv
from bench.ring_figure import IMAGES, THEMES, svg
from tests.docs.pages import DOCS, PAGES, ROOT, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """A file of this repository with that heading; addresses elsewhere are only well-formed: no test has a network."""
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme or link.startswith("//"):
            assert parts.scheme == "https", link
            assert re.fullmatch(r"(\w[\w-]*\.)+\w+", parts.netloc), link
            assert not re.search(r"\s", link), link
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{link}: no such file"
        assert not parts.fragment or parts.fragment in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "docs/architecture.md"])
def test_pages_name_files_that_exist(page: str) -> None:
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", (ROOT / page).read_text(encoding="utf-8")))
    assert not [path for path in named if not any((root / path).exists() for root in (ROOT, ROOT / "mlxkv"))]


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = {*re.findall(r"^\.\. (?:auto|py:)\w+:: mlxkv\.(\w+)\b", page, re.MULTILINE)}
    assert documented - {"stats", "store", "chat"} == {*mlxkv.__all__}


@pytest.mark.parametrize("name", ["Chat", "Completion", "Estimate", "Model"])
def test_what_a_public_class_offers_has_a_docstring(name: str) -> None:
    """autodoc leaves out what has none."""
    public = [(n, member) for n, member in vars(getattr(mlxkv, name)).items() if not n.startswith("_")]
    offered = [(n, m) for n, m in public if inspect.isfunction(m) or isinstance(m, property)]
    assert not [n for n, member in offered if not inspect.getdoc(member)]


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_of_the_ring_is_drawn_from_its_arithmetic(theme: str) -> None:
    """To renew it: `python -m bench.ring_figure`."""
    assert (IMAGES / f"ring-{theme}.svg").read_text(encoding="utf-8") == svg(THEMES[theme])
