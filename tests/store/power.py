"""Lost power: a file layer that knows what was synced, and takes away what was not.

A file whose bytes were not synced comes back zeroed, cut, empty or not at all; a name whose folder was not synced is
gone. The database is SQLite's own business (`synchronous=FULL`): it stays as it was when the power went.
"""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

LOSSES = ("zeros", "half", "empty", "gone")


class PowerCut(BaseException):
    """Everything stops."""


class Disk:
    """What a disk would still have. Install `sync` in the place of the real one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: set[int] = set()  # inodes
        self.names: dict[int, set[str]] = {}  # inode of a folder -> names that are durable

    def sync(self, fd: int) -> None:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            self.names[info.st_ino] = set(os.listdir(fd))
        else:
            self.synced.add(info.st_ino)

    def lose_power(self, rng: random.Random) -> int:
        """Take away what was not durable; how many files were hit."""
        hit = 0
        for folder in sorted(path for path in self.root.rglob("*") if path.is_dir()):
            if not folder.is_dir() or folder.name in ("tmp", "locks"):
                continue
            durable = self.names.get(folder.stat().st_ino, set())
            for path in sorted(folder.iterdir()):
                if path.is_dir() or path.name.startswith("mlxkv.db"):
                    continue
                loss = rng.choice(LOSSES) if path.lstat().st_ino not in self.synced else None
                if path.name not in durable:
                    loss = rng.choice(["gone", loss])
                hit += loss is not None
                match loss:
                    case "zeros":
                        path.write_bytes(bytes(path.stat().st_size))
                    case "half":
                        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                    case "empty":
                        path.write_bytes(b"")
                    case "gone":
                        path.unlink()
        return hit
