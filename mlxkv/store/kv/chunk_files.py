"""The KV folder: immutable chunk files named by their content. Disposable: it may be deleted at any moment.

Owns paths, deduplication, quarantine and stale files; references to chunks are in the database (commits.py). Engine
and writer thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from mlxkv.errors import CorruptError
from mlxkv.store.db.database import ADVICE
from mlxkv.store.files import Files, disk_usage, regular_size
from mlxkv.store.kv.chunk_format import EncodedChunk
from mlxkv.store.kv.folder_listing import Listing
from mlxkv.store.records import is_digest
from mlxkv.store.ulid import random_name

_FOLDER = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"([0-9a-f]{32})\.safetensors")
STALE = 3600.0  # seconds after which a file without a reference was left by a crash


class ChunkFiles:
    """`<root>/<aa>/<xxh3-128>.safetensors`, and the folders `tmp` and `quarantine`."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root, self.files, self.listing = root, files, Listing(root)

    def path(self, digest: str) -> Path:
        """The path of a chunk. Raises CorruptError if `digest` is not one: it could be any path."""
        if not is_digest(digest):
            raise CorruptError(f"The chat database names a chunk {digest!r:.80}, which is no checksum; {ADVICE}.")
        return self.root / digest[:2] / f"{digest}.safetensors"

    def has(self, digest: str, size: int) -> bool:
        return regular_size(f"{self.root}/{digest[:2]}/{digest}.safetensors") == size  # asked for every chunk of a chat

    def put(self, chunk: EncodedChunk) -> int:
        """Write the chunk unless it exists, and return the bytes written.

        Raises:
            OSError: the write failed, and left nothing behind.
        """
        path = self.path(chunk.digest)
        if self.has(chunk.digest, chunk.size):
            for folder in (path.parent, self.root):  # a process that wrote it may have been killed before this
                self.files.sync_folder(folder)
            return 0
        return self.files.write(path, [chunk.data], self.root / "tmp")

    def quarantine(self, digest: str) -> None:
        """Move a bad chunk to the quarantine, so that its name is free again; a link is moved, not followed."""
        with contextlib.suppress(OSError):
            self.files.move(self.path(digest), self.root / "quarantine" / f"{digest}.{random_name()}")

    def discard(self, path: Path) -> int:
        """Remove a file, or a folder that was put in its place, and return the bytes freed on the disk."""
        with contextlib.suppress(OSError):
            used = disk_usage(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                self.files.remove(path)
            return used
        return 0

    def drop_empty_folders(self) -> None:
        """Remove empty chunk folders; call while holding the KV lock, so that no process is about to write into one."""
        for folder in self._folders():
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def stale(self, known: Collection[str], seconds: float = STALE) -> list[Path]:
        """Files that a crash left `seconds` ago or earlier, or while the clock was ahead: temporary and quarantined
        files, and chunks other than `known`."""
        now = time.time()
        out: list[Path] = []
        for path, digest in self._all():
            with contextlib.suppress(OSError):
                if digest not in known and abs(now - path.lstat().st_mtime) > seconds:
                    out.append(path)
        return out

    def empty_quarantine(self) -> None:
        """Remove all quarantined files: a deleted chat must not leave its rows there."""
        with contextlib.suppress(OSError):
            for path in list((self.root / "quarantine").iterdir()):
                self.files.remove(path)

    def _all(self) -> Iterator[tuple[Path, str]]:
        for name in ("tmp", "quarantine"):
            with contextlib.suppress(OSError):
                yield from [(path, "") for path in (self.root / name).iterdir()]
        for folder in self._folders():
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    if found := _NAME.fullmatch(name):
                        yield folder / name, found[1]

    def _folders(self) -> list[Path]:
        """Those that hold chunks: a small store has a few of the 256."""
        with contextlib.suppress(OSError):
            return [self.root / name for name in sorted(os.listdir(self.root)) if _FOLDER.fullmatch(name)]
        return []
