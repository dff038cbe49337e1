"""Index of the files that can be attached: `git ls-files` if possible, else a bounded walk. Any thread."""

from __future__ import annotations

import os
import re
import subprocess
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from mlxkv.text.clean import clean
from mlxkv.tui.state.prompt.fuzzy import best

MAX_FILES = 20_000
SECONDS = 2.0
SKIPPED = frozenset({"node_modules", "__pycache__", "venv", "target", "build", "dist"})


def list_files(base: Path) -> list[str]:
    """Paths below `base`, shortest first. Files that git ignores, hidden ones and caches are left out."""
    try:
        command = ["git", "-C", str(base), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        out = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL).stdout
        found = [os.fsdecode(name) for name in out.split(b"\0")[:MAX_FILES] if name]
    except (OSError, subprocess.SubprocessError):
        found = _walk(base)
    return sorted((path for path in found if clean(path) == path), key=lambda path: (path.count("/"), path))


def _walk(base: Path) -> list[str]:
    until, found = time.monotonic() + SECONDS, []
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        found += [os.path.relpath(os.path.join(folder, n), base) for n in names if not n.startswith(".")]
        if len(found) >= MAX_FILES or time.monotonic() > until:
            break
    return found[:MAX_FILES]


def list_folder(typed: str, base: Path) -> list[str]:
    """Completions of a path within its folder: `~/no`, `/etc/ho`, `../x`, `.en`."""
    head, slash, tail = _folder_of(typed)
    try:
        with os.scandir(_path(base, head + slash)) as entries:
            names = [e.name + ("/" if e.is_dir() else "") for e, _ in zip(entries, range(2000), strict=False)]
    except (OSError, ValueError, RuntimeError):
        return []
    shown = [name for name in names if clean(name) == name and name.startswith(".") == tail.startswith(".")]
    found = best(_composed(tail), sorted(shown), lambda name: (_composed(name),), 50)
    return [f"{head}{slash}{name}" for name in found]


def nothing_found(typed: str, base: Path) -> str:
    """The reason why there is no completion of `typed`, as a sentence."""
    head, slash, tail = _folder_of(typed) if is_path(typed) else ("", "", typed)
    folder = f"the folder {head}{slash}" if slash else "this folder"
    shown = folder[0].upper() + folder[1:]
    try:
        with os.scandir(_path(base, head + slash)) as entries:
            names = [entry.name for entry, _ in zip(entries, range(2000), strict=False)]
    except FileNotFoundError:
        return f"{shown} does not exist."
    except (OSError, ValueError, RuntimeError) as error:
        return f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}."
    if tail and names:
        return f"No file in {folder} matches {tail}: @{typed} is sent as plain text."
    if any(name.startswith(".") for name in names):
        return f"{shown} has hidden files only: @{head}{slash}. lists them."
    return f"{shown} has no files to attach; paths elsewhere begin with @~/ or @/."


def _folder_of(typed: str) -> tuple[str, str, str]:
    """The folder of a typed path, the slash, and the rest."""
    return (typed, "/", "") if typed in ("~", "..") else typed.rpartition("/")


def _path(base: Path, folder: str) -> Path:
    return base / Path(folder).expanduser() if folder else base


def _composed(name: str) -> str:
    """`name` in NFC, as typed; file systems may store NFD."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def matching(typed: str, files: Sequence[str], limit: int = 50) -> list[str]:
    """Paths that match `typed`, best first: by file name, then by the whole path."""
    if not typed:
        return list(files[:limit])
    typed = _composed(typed)
    letters = re.compile(".*?".join(map(re.escape, typed)), re.IGNORECASE | re.DOTALL)
    found = [path for path in files if letters.search(_composed(path))]
    return best(typed, found[:2000], lambda path: (_composed(path.rpartition("/")[2]), _composed(path)), limit)


def is_path(typed: str) -> bool:
    """Whether `typed` is completed from its own folder, because the index lacks it: elsewhere, or hidden."""
    return typed.startswith(("/", "~/", "../", "./")) or typed == "~" or typed.rpartition("/")[2].startswith(".")
