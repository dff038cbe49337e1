"""The header that every benchmark prints. `mlxkv.cli.bench` measures."""

from __future__ import annotations

import sys

from mlxkv.cli.bench import about


def header(title: str) -> None:
    """Machine, versions and command."""
    print(f"# {title}")
    for line in about():
        print(line)
    module = sys.modules["__main__"].__spec__
    print(f"command: python -m {module.name if module else title}\n")
