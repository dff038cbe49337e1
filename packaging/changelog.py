"""Print a release's notes from CHANGELOG.md, and refuse a tag that is not ready: python packaging/changelog.py v0.1.0

Three things must agree: the version in mlxkv/__init__.py; the tag, `v` and the version; and the topmost heading of
CHANGELOG.md, `## [VERSION] - unreleased` until the day of the release, then `## [VERSION] - 2026-12-01`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>unreleased|\d{4}-\d\d-\d\d)\n", re.MULTILINE)
LINKS = re.compile(r"^\[[^\]]+\]: \S+\n", re.MULTILINE)


def version() -> str:
    """The version in mlxkv/__init__.py, the one place that has it; the package need not be installed."""
    text = (ROOT / "mlxkv" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert found, "mlxkv/__init__.py has no line __version__"
    return found[1]


def notes(tag: str, changelog: str, version: str) -> str:
    """The part of `changelog` about the release `tag`, without its heading.

    Raises:
        ValueError: one sentence that says what keeps this tag from being a release.
    """
    if tag != f"v{version}":
        raise ValueError(f"The tag {tag!r} is not 'v{version}', the version in mlxkv/__init__.py.")
    heading = HEADING.search(changelog)
    if heading is None or heading["version"] != version:
        raise ValueError(f"The first heading of CHANGELOG.md is not '## [{version}] - DATE'; add that one.")
    if heading["date"] == "unreleased":
        raise ValueError(f"CHANGELOG.md calls {version} unreleased; write the date of the release there.")
    following = HEADING.search(changelog, heading.end())
    return LINKS.sub("", changelog[heading.end() : following.start() if following else len(changelog)]).strip()


if __name__ == "__main__":
    try:
        (tag,) = sys.argv[1:] or [""]
        print(notes(tag, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version()))
    except ValueError as error:
        sys.exit(str(error))
