"""A cached listing of the KV folder: a folder is listed again only after it has changed.

A folder's modification time shows that a name was added or removed. Changes inside a file do not show; reading it or
`verify` finds them. Any thread.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxkv.store.files import disk_usage

_SETTLED_NS = 2_000_000_000  # a folder changed more recently may change again within the same timestamp


@dataclass(frozen=True)
class _Folder:
    """`sizes` of its regular files by name; `used`: bytes on the disk of its contents, without its own."""

    mtime_ns: int
    is_settled: bool
    sizes: Mapping[str, int]
    used: int


_NO_FOLDER = _Folder(0, False, {}, 0)


class Listing:
    """The folder `root`, which need not exist, and its subfolders."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._folders: dict[str, _Folder] = {}

    def refresh(self) -> int:
        """List the folders that have changed, and return the bytes of `root` on the disk, as `du` counts them."""
        with self._lock:
            known, self._folders, used = self._folders, {}, 0
            root = str(self._root)
            for name in ("", *_subfolders(root)):
                try:
                    info = os.lstat(f"{root}/{name}" if name else root)
                    used += info.st_blocks * 512
                    found = known.get(name, _NO_FOLDER)
                    if not found.is_settled or found.mtime_ns != info.st_mtime_ns:
                        found = _listed(f"{root}/{name}", info.st_mtime_ns, deep=bool(name))
                except OSError:  # it was just removed
                    continue
                self._folders[name] = found
                used += found.used
            return used

    def folder(self, name: str) -> Mapping[str, int]:
        """Sizes of the regular files of a subfolder by name, as of the last `refresh`; the same object until it is
        listed again."""
        return self._folders.get(name, _NO_FOLDER).sizes


def _subfolders(root: str) -> list[str]:
    with suppress(OSError), os.scandir(root) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _listed(path: str, mtime_ns: int, deep: bool) -> _Folder:
    """List a folder. `deep`: count its subfolders' contents too; a folder that has any is never settled."""
    is_settled = abs(time.time_ns() - mtime_ns) > _SETTLED_NS  # in the future: the clock was ahead
    sizes, used = {}, 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(info.st_mode):
                    sizes[entry.name] = info.st_size
                    used += info.st_blocks * 512
                elif not stat.S_ISDIR(info.st_mode):
                    used += info.st_blocks * 512
                elif deep:
                    used += disk_usage(Path(entry.path))
                    is_settled = False
    return _Folder(mtime_ns, is_settled, sizes, used)
