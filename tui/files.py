"""Which files there are to attach: git's list where there is one, else a walk with limits. Any thread."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from mlxkv.text import clean
from mlxkv.tui.fuzzy import best

MOST = 20_000  # files
SECONDS = 2.0
SKIPPED = frozenset({"node_modules", "__pycache__", "venv", "target", "build", "dist"})


def list_files(base: Path) -> list[str]:
    """Paths below `base`, shortest first. Files that git ignores, hidden ones and caches are left out."""
    try:
        command = ["git", "-C", str(base), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        out = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL).stdout
        found = [os.fsdecode(name) for name in out.split(b"\0")[:MOST] if name]
    except (OSError, subprocess.SubprocessError):
        found = _walk(base)
    return sorted((path for path in found if clean(path) == path), key=lambda path: (path.count("/"), path))


def _walk(base: Path) -> list[str]:
    until, found = time.monotonic() + SECONDS, []
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        found += [os.path.relpath(os.path.join(folder, n), base) for n in names if not n.startswith(".")]
        if len(found) >= MOST or time.monotonic() > until:
            break
    return found[:MOST]


def list_folder(typed: str, base: Path) -> list[str]:
    """What a path outside of `base` that is being typed may become: `~/no`, `/etc/ho`, `../x`."""
    head, _, tail = typed.rpartition("/")
    folder = base / Path(head + "/").expanduser()
    try:
        with os.scandir(folder) as entries:
            names = [e.name + ("/" if e.is_dir() else "") for e, _ in zip(entries, range(2000), strict=False)]
    except (OSError, ValueError, RuntimeError):
        return []
    shown = [name for name in names if clean(name) == name and name.startswith(".") == tail.startswith(".")]
    return [f"{head}/{name}" for name in best(tail, sorted(shown), lambda name: (name,), 50)]


def matching(typed: str, files: Sequence[str], limit: int = 50) -> list[str]:
    """The paths that `typed` may mean, best first: by their last part, then by the whole."""
    if not typed:
        return list(files[:limit])
    letters = re.compile(".*?".join(map(re.escape, typed)), re.IGNORECASE | re.DOTALL)
    found = [path for path in files if letters.search(path)]
    return best(typed, found[:2000], lambda path: (path.rpartition("/")[2], path), limit)


def is_outside(typed: str) -> bool:
    return typed.startswith(("/", "~/", "../", "./"))
