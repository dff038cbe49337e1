"""Disk usage of mlxkv's cache folder: rows of chats (`kv`), named prompt caches (`prompts`), orphaned files in both.

Counts and lists files; quota.py decides which are removed. Any thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxkv.store.files import Files, disk_usage
from mlxkv.store.kv.chunk_files import STALE, ChunkFiles

ANY_AGE = -STALE  # nothing is written under the KV lock: a temporary file of any age is orphaned
KV = "kv"  # the folders in mlxkv's cache folder: of the chunks,
PROMPTS = "prompts"  # and of the named prompt caches
DAMAGED = "damaged"  # the folder of damaged prompt caches, in the one of the named ones
_TEMPORARY = ".mlxkv-"  # prefix of files that are being written

BLOCK = 4096  # bytes; file systems allocate such pieces

CheckSize = Callable[[int], object]
"""Called with the size of a file before its first byte is written; raises if it does not fit."""


def no_limit(size: int) -> None:
    """A CheckSize that allows every size."""


def on_disk(size: int) -> int:
    """Bytes that a file of `size` bytes takes on the disk."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class CacheFolder:
    """The chunks and the named prompt caches; the folder `prompts` need not exist."""

    chunks: ChunkFiles
    prompts: Path

    @classmethod
    def at(cls, cache: Path, files: Files | None = None) -> CacheFolder:
        """The cache folder at `cache`, which need not exist."""
        return cls(ChunkFiles(cache / KV, files or Files()), cache / PROMPTS)

    def used(self) -> int:
        """Bytes of everything in both folders and of their parent, as `du` counts them."""
        return disk_usage(self.chunks.root) + disk_usage(self.prompts) + _own_size(self.chunks.root.parent)

    def used_quickly(self) -> int:
        """`used`, listing only the chunk folders that have changed: called for every chunk that is written. A file that
        something else changed in place keeps its old size."""
        return self.chunks.listing.refresh() + disk_usage(self.prompts) + _own_size(self.chunks.root.parent)

    def growth(self, waiting: Mapping[str, int]) -> int:
        """Bytes that writing these chunks (sizes by digest) and the folders they need adds to `used`."""
        new = {digest: size for digest, size in waiting.items() if not self.chunks.has(digest, size)}
        folders = {folder for digest in new if not (folder := self.chunks.path(digest).parent).exists()}
        return sum(map(on_disk, new.values())) + len(folders) * _own_size(self.chunks.root)

    def named(self) -> int:
        """Bytes of the named prompt caches."""
        others = [*prompt_temporaries(self.prompts, ANY_AGE), *self.damaged()]
        return disk_usage(self.prompts) - sum(map(disk_usage, others))

    def permanent(self) -> int:
        """Bytes that removing chunks does not free: the named prompt caches, and the folders."""
        return self.named() + sum(_own_size(folder) for folder in (self.chunks.root, self.chunks.root.parent))

    def used_without(self, paths: Collection[Path]) -> int:
        """`used` without these files, and without the chunk folders that would be empty then."""
        used, folders = self.used() - sum(map(disk_usage, paths)), {path.parent for path in paths}
        for folder in folders:
            if folder.parent == self.chunks.root and len(folder.name) == 2 and {*entries(folder)} <= {*paths}:
                used -= _own_size(folder)
        return used

    def holds(self, path: Path) -> bool:
        """Whether `path` is, or would be, a file in the folder of the named prompt caches."""
        return path.resolve().is_relative_to(self.prompts.resolve())

    def orphans(self, known: Collection[str]) -> list[Path]:
        """Orphaned files; call while holding the KV lock. `known`: the digests of chunks that the database has."""
        return [*self.chunks.stale(known, ANY_AGE), *prompt_temporaries(self.prompts, ANY_AGE)]

    def damaged(self) -> list[Path]:
        """Damaged named prompt caches, which `mlxkv cache gc` and the disk limit remove."""
        return list(entries(self.prompts / DAMAGED))


def prompt_temporaries(prompts: Path, seconds: float = STALE) -> list[Path]:
    """Unfinished files that a crash left `seconds` ago or earlier, or while the clock was ahead."""
    out, now = [], time.time()
    for path in entries(prompts):
        with contextlib.suppress(OSError):
            if path.name.startswith(_TEMPORARY) and abs(now - path.lstat().st_mtime) > seconds:
                out.append(path)
    return out


def entries(folder: Path) -> Iterator[Path]:
    """The files and folders in `folder`, which need not exist."""
    with contextlib.suppress(OSError):
        yield from list(folder.iterdir())


def _own_size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(folder).st_blocks * 512
    return 0
