"""Version, changelog and what PyPI shows: each is said once, and nothing breaks away from the repository."""

from __future__ import annotations

import re
import tomllib
from contextlib import chdir
from pathlib import Path

import changelog
import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from trove_classifiers import classifiers

import mlxkv

ROOT = Path(__file__).resolve().parents[2]
RELATIVE = re.compile(  # targets of links and pictures, in Markdown and HTML, that mean a file of the repository
    r'(?:\]\(|\b(?:href|src|srcset)="|^\[[^\]]+\]: +)(?![a-z]+:|#)([^)\s"]+)', re.MULTILINE
)
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def described(root: Path) -> str:
    """The text that PyPI gets for the project in `root`."""
    with chdir(root):  # where a build runs: the plugin opens README.md
        return ProjectMetadata(str(root), PluginManager()).core.readme


def project_with(readme: str, folder: Path) -> Path:
    """A folder with this project's pyproject.toml and version, and another README."""
    (folder / "mlxkv").mkdir()
    for name in ("pyproject.toml", "LICENSE", "mlxkv/__init__.py"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


def test_the_version_is_said_once() -> None:
    """pyproject.toml takes it from the package, and the script that reads it without importing finds the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert ProjectMetadata(str(ROOT), PluginManager()).version == changelog.version() == mlxkv.__version__


def test_the_changelog_begins_with_this_version() -> None:
    heading = re.search(r"^## .*\n", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading
    assert changelog.HEADING.fullmatch(heading[0]), f"{heading[0]!r} is no heading of a release"
    assert heading[0].startswith(f"## [{mlxkv.__version__}] - ")


def test_each_release_in_the_changelog_links_to_its_tag() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for found in changelog.HEADING.finditer(text):
        version = found["version"]
        assert f"\n[{version}]: https://github.com/mlxkv/mlxkv/releases/tag/v{version}\n" in text


TWO = """# Changelog

## [0.2.0] - 2027-01-31

### Added

* Something.

## [0.1.0] - 2026-12-01

* The first.

[0.2.0]: https://example.org/v0.2.0
[0.1.0]: https://example.org/v0.1.0
"""


def test_the_notes_of_a_release_are_its_part_of_the_changelog() -> None:
    assert changelog.notes("v0.2.0", TWO, "0.2.0") == "### Added\n\n* Something."
    assert changelog.notes("v0.1.0", TWO[TWO.index("## [0.1") :], "0.1.0") == "* The first."


@pytest.mark.parametrize(
    ("tag", "text", "message"),
    [
        ("v0.2.1", TWO, "The tag 'v0.2.1' is not 'v0.2.0', the version in mlxkv/__init__.py."),
        ("0.2.0", TWO, "The tag '0.2.0' is not 'v0.2.0'"),
        (
            "v0.2.0",
            TWO.replace("[0.2.0] -", "[0.3.0] -"),
            "The first heading of CHANGELOG.md is not '## [0.2.0] - DATE'",
        ),
        ("v0.2.0", TWO.replace("2027-01-31", "unreleased"), "CHANGELOG.md calls 0.2.0 unreleased"),
    ],
)
def test_a_tag_that_is_not_ready_is_refused(tag: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        changelog.notes(tag, text, "0.2.0")


def test_pypi_knows_the_classifiers() -> None:
    assert set(ProjectMetadata(str(ROOT), PluginManager()).core.classifiers) <= set(classifiers)


def test_the_classifiers_name_the_pythons_that_make_looks_for() -> None:
    found = ProjectMetadata(str(ROOT), PluginManager()).core.classifiers
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"Python :: (3\.\d+)", "\n".join(found)) == re.findall(r"\bpython(3\.\d+)\b(?=.*; do)", makefile)


def test_the_addresses_are_of_one_project() -> None:
    urls = ProjectMetadata(str(ROOT), PluginManager()).core.urls
    assert urls["Repository"] == "https://github.com/mlxkv/mlxkv"
    assert all(url.startswith((urls["Repository"], urls["Homepage"])) for url in urls.values())


def test_the_description_leads_to_the_files_of_this_version() -> None:
    """Each relative link of the README is absolute on PyPI and names the same file; code is untouched."""
    readme, text = (ROOT / "README.md").read_text(encoding="utf-8"), described(ROOT)
    targets = RELATIVE.findall(CODE.sub("", readme))
    assert targets
    assert RELATIVE.findall(CODE.sub("", text)) == []
    assert CODE.findall(text) == CODE.findall(readme)
    places = f"https://(?:github.com/mlxkv/mlxkv/blob|raw.githubusercontent.com/mlxkv/mlxkv)/v{mlxkv.__version__}/"
    assert re.findall(places + r'([^)\s"]+)', text) == targets


BLOB = f"https://github.com/mlxkv/mlxkv/blob/v{mlxkv.__version__}"
RAW = f"https://raw.githubusercontent.com/mlxkv/mlxkv/v{mlxkv.__version__}"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](docs/chat.md#keys)", f"[a]({BLOB}/docs/chat.md#keys)"),
        ("[a](LICENSE)", f"[a]({BLOB}/LICENSE)"),
        ("[a](https://x.org/y) [b](#speed)", "[a](https://x.org/y) [b](#speed)"),
        ('![a](docs/images/a.svg "title")', f'![a]({RAW}/docs/images/a.svg "title")'),
        ("[![a](docs/a.svg)](docs/a.md)", f"[![a]({RAW}/docs/a.svg)]({BLOB}/docs/a.md)"),
        ("[![a](https://x.org/a.svg)](docs/a.md)", f"[![a](https://x.org/a.svg)]({BLOB}/docs/a.md)"),
        ('<img alt="a"\n     src="docs/a.svg">', f'<img alt="a"\n     src="{RAW}/docs/a.svg">'),
        ('<source media="(x: dark)" srcset="docs/a.svg">', f'<source media="(x: dark)" srcset="{RAW}/docs/a.svg">'),
        ('<a href="docs/a.md"><img src="https://x.org/a.svg"></a>', f'<a href="{BLOB}/docs/a.md"><img src="https://x.org/a.svg"></a>'),
        ("[a][b]\n\n[b]: docs/a.md", f"[a][b]\n\n[b]: {BLOB}/docs/a.md"),
        ("[b]: https://x.org", "[b]: https://x.org"),
    ],
)  # fmt: skip
def test_any_way_to_write_a_link_becomes_absolute(written: str, shown: str, tmp_path: Path) -> None:
    assert described(project_with(f"# Title\n\n{written}\n", tmp_path)) == f"# Title\n\n{shown}\n"
