"""The Python of the documentation, and the examples, under mypy's strict rules: `make lint` runs this.

Each page becomes one file in build/typed with its code on the page's own lines, so that mypy names lines of the page.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docs.pages import PAGES, ROOT, blocks, name_of

FOLDER = ROOT / "build" / "typed"


def code_of(page: Path) -> str:
    """The Python of a page, on the lines it has there; "" if it has none."""
    lines: list[str] = []
    for block in blocks(page):
        if block.kind == "python":
            lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "".join(f"{line}\n" for line in lines)


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = []
    for page in PAGES:
        if code := code_of(page):
            names.append(FOLDER / f"{name_of(page).removesuffix('.md').replace('/', '_').replace('-', '_')}.py")
            names[-1].write_text(code, encoding="utf-8")
    names += sorted((ROOT / "examples").glob("*.py"))
    return subprocess.run([sys.executable, "-m", "mypy", *names], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
