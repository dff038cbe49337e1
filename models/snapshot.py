"""Files in the hub's cache layout: blobs by their hash, a folder of links for each commit, and what names stand for.

Writes below the repository's folder and nowhere else, whatever links lie in it already. That folder itself, and the
cache, may be links: they are the user's. Any thread.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from mlxkv.errors import ModelDownloadError
from mlxkv.system.regular_file import read_text


def path_below(folder: Path, *names: str) -> Path:
    """`folder`/names, which with all links resolved lies in a folder below `folder`; nothing is made.

    Raises:
        ModelDownloadError: a link leads out of it.
    """
    path = folder.joinpath(*names)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ModelDownloadError(f"{path.parent} leads out of {folder} by a link; remove the link and try again.")
    return path


def snapshot_path(storage: Path, commit: str, name: str) -> Path:
    return path_below(storage, "snapshots", commit, *name.split("/"))


def ref_path(storage: Path, revision: str) -> Path:
    return path_below(storage, "refs", *revision.split("/"))


def has_bytes(path: Path, size: int) -> bool:
    """Whether `path` is a file of so many bytes; one that a crash cut off is none."""
    try:
        info = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_size == size


def link(blob: Path, path: Path) -> None:
    """Make `path` a link to `blob`, also where something is; on a disk without links, the blob itself."""
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
    """Note which commit the branch or tag of `ref_path` stands for, for the next time there is no network."""
    with suppress(OSError, UnicodeDecodeError):
        if read_text(path, len(commit), follow=False) == commit:
            return  # a cache that cannot be written to is no reason to fail
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".mlxkv-{os.getpid()}")
    new.unlink(missing_ok=True)
    new.write_text(commit)
    os.replace(new, path)
