"""Files in the hub's cache layout: blobs by hash, a folder of links per commit, and refs.

Writes only below the repository's folder, whatever links it contains. That folder and the cache may be links made by
the user. Any thread.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from mlxkv.errors import ModelDownloadError
from mlxkv.system.regular_file import read_text


def path_below(folder: Path, *names: str) -> Path:
    """Join `folder` and `names`, and check that the result stays below `folder` with all links resolved.

    Raises:
        ModelDownloadError: a link leads out of it.
    """
    path = folder.joinpath(*names)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ModelDownloadError(f"{path.parent} leads out of {folder} by a link; remove the link and try again.")
    return path


def has_bytes(path: Path, size: int) -> bool:
    """Whether `path` is a file of exactly `size` bytes; not so if a crash truncated it."""
    try:
        info = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_size == size


def link(blob: Path, path: Path) -> None:
    """Make `path` a link to `blob`, replacing any file; on a disk without links, move the blob there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".mlxkv-{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        os.symlink(os.path.relpath(blob.parent.resolve() / blob.name, path.parent.resolve()), new)
    except OSError:
        os.replace(blob, path)
    else:
        os.replace(new, path)


def set_ref(path: Path, commit: str) -> None:
    """Save the commit of a branch or tag at `path`, for use without network."""
    with suppress(OSError, UnicodeDecodeError):
        if read_text(path, len(commit), follow=False) == commit:
            return  # a read-only cache must not fail here
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".mlxkv-{os.getpid()}")
    new.unlink(missing_ok=True)
    new.write_text(commit)
    os.replace(new, path)
