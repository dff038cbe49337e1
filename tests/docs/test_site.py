"""The site builds without a warning, and its pages load nothing from other hosts. Skipped without the group docs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the group docs is not installed: make docs"),
]

LOADS = re.compile(
    r"<(?:script|img|iframe|source|link(?! rel=\"canonical\"))\b[^>]*\b(?:src|href|srcset)=\"(?:https?:)?//[^\"]*"
)
STYLE_LOADS = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']*")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--doctree-dir", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "html"


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    assert {"index.html", "api.html", "troubleshooting.html"} <= {*pages}
    assert not [(name, found) for name, text in pages.items() for found in LOADS.findall(text)]
    styles = [*site.rglob("*.css"), *site.rglob("*.svg")]
    assert not [
        (path.name, found) for path in styles for found in STYLE_LOADS.findall(path.read_text(encoding="utf-8"))
    ]


def test_pictures_for_light_and_dark_pages_are_both_there(site: Path) -> None:
    page = (site / "how-it-works.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img[^>]*class="[^"]*\bonly-(light|dark)\b[^"]*"[^>]*>', page)
    assert shown.count("light") == shown.count("dark") >= 2
    assert "```" not in page


def test_the_reference_describes_arguments_and_errors(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for anchor in (
        "mlxkv.Chat.send",
        "mlxkv.load",
        "mlxkv.TurnStats",
        "mlxkv.errors.MismatchError",
        "mlxkv.PromptCache.fork",
    ):
        assert f'id="{anchor}"' in page
    assert "MessageTooLongError" in page
