"""What mlxkv's cache folder takes on the disk: rows of chats (`kv`), named prompt caches (`prompts`), and what in both
is nobody's. Counts and names files; what goes when there is no room is quota.py's. Any thread.
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

ANY_AGE = -STALE  # under the KV lock nobody is writing, so whatever lies about was left behind
KV = "kv"  # the folders in mlxkv's cache folder: of the chunks,
PROMPTS = "prompts"  # and of the named prompt caches
DAMAGED = "damaged"  # the folder, in that of the named ones, for what was set aside
_TEMPORARY = ".mlxkv-"  # how files begin that are being written

BLOCK = 4096  # bytes; file systems give space in such pieces

Room = Callable[[int], object]
"""Told how many bytes a file will have before the first one is written; raises where they may not be."""


def any_room(size: int) -> None:
    """Nobody counts there."""


def on_disk(size: int) -> int:
    """What a file of `size` bytes takes."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Space:
    """`prompts`: the folder of the named prompt caches, which need not be there."""

    chunks: ChunkFiles
    prompts: Path

    @classmethod
    def at(cls, cache: Path, files: Files | None = None) -> Space:
        """In mlxkv's cache folder; it need not be there."""
        return cls(ChunkFiles(cache / KV, files or Files()), cache / PROMPTS)

    def used(self) -> int:
        """Bytes of everything in both folders and of the folder they lie in, as `du` counts them."""
        return disk_usage(self.chunks.root) + disk_usage(self.prompts) + _own_size(self.chunks.root.parent)

    def used_as_listed(self) -> int:
        """`used`, but of chunks only those folders are listed that have changed: what is asked for every chunk that is
        written. Files that somebody changes in place are counted as they were."""
        return self.chunks.listing.refresh() + disk_usage(self.prompts) + _own_size(self.chunks.root.parent)

    def to_come(self, waiting: Mapping[str, int]) -> int:
        """What `used` will grow by when these chunks (sizes by digest) are written, with the folders they need."""
        new = {digest: size for digest, size in waiting.items() if not self.chunks.has(digest, size)}
        folders = {folder for digest in new if not (folder := self.chunks.path(digest).parent).exists()}
        return sum(map(on_disk, new.values())) + len(folders) * _own_size(self.chunks.root)

    def named(self) -> int:
        """Bytes of the named prompt caches."""
        gone = [*prompt_temporaries(self.prompts, ANY_AGE), *self.set_aside()]
        return disk_usage(self.prompts) - sum(map(disk_usage, gone))

    def lasting(self) -> int:
        """Bytes that stay whatever is removed to make room: the named prompt caches, and the folders."""
        return self.named() + sum(_own_size(folder) for folder in (self.chunks.root, self.chunks.root.parent))

    def used_without(self, paths: Collection[Path]) -> int:
        """`used`, were these files removed, and the folders of chunks that would be empty then."""
        used, folders = self.used() - sum(map(disk_usage, paths)), {path.parent for path in paths}
        for folder in folders:
            if folder.parent == self.chunks.root and len(folder.name) == 2 and {*_entries(folder)} <= {*paths}:
                used -= _own_size(folder)
        return used

    def holds(self, path: Path) -> bool:
        """Whether `path` is, or would be, a file in the folder of the named prompt caches."""
        return path.resolve().is_relative_to(self.prompts.resolve())

    def leftovers(self, known: Collection[str]) -> list[Path]:
        """What is nobody's while nobody writes: `known` are the digests of chunks that the database has."""
        return [*self.chunks.stale(known, ANY_AGE), *prompt_temporaries(self.prompts, ANY_AGE)]

    def set_aside(self) -> list[Path]:
        """Named prompt caches that were found damaged; `mlxkv cache gc`, or want of room, removes them."""
        return list(_entries(self.prompts / DAMAGED))


def prompt_temporaries(prompts: Path, seconds: float = STALE) -> list[Path]:
    """What a crash left `seconds` ago or earlier, or while the clock was ahead, while it was being written."""
    out, now = [], time.time()
    for path in _entries(prompts):
        with contextlib.suppress(OSError):
            if path.name.startswith(_TEMPORARY) and abs(now - path.lstat().st_mtime) > seconds:
                out.append(path)
    return out


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from list(folder.iterdir())


def _own_size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(folder).st_blocks * 512
    return 0
