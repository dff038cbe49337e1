"""Fetch one large file of a repository into the hub's cache: resumable, cancellable, and checked against its sha256.

huggingface_hub 2.x starts a broken file again from zero and cannot be cancelled while its Rust part downloads, so the
large files come through here first; its own `snapshot_download` then finds the blob and links it. Runs on the caller's
thread, makes no other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlxkv.errors import ModelDownloadError


def partial_path(blob: Path) -> Path:
    """Where the bytes of a file that is not whole yet lie."""
    return blob.with_name(f"{blob.name}.mlxkv-partial")


def fetch_blob(url: str, blob: Path, *, size: int, label: str, on_bytes: Callable[[int], None]) -> None:
    """Make `blob` (its name is the sha256 of its content) from `url`, going on where a partial file ends.

    `on_bytes` gets how many more bytes are on disk (the resumed part first; less than 0 when they had to be dropped);
    what it raises ends the fetch and keeps the partial file. `label` is what messages call the file.

    Raises:
        ModelDownloadError: another process is fetching it, or what arrived has another hash.
        Exception: what huggingface_hub or the network raised, once a try has brought no new byte.
    """
    blob.parent.mkdir(parents=True, exist_ok=True)
    path = partial_path(blob)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ModelDownloadError(f"Another process is downloading {label}; wait until it is done.") from error
        digest, have = _read_partial(file, size)
        on_bytes(have)
        while have < size:
            before = have
            try:
                have = _fetch_rest(url, file, have, digest, size, on_bytes)
            except Exception as error:
                have = file.tell()
                if not _is_broken_off(error) or have == before:
                    raise
            if have == before:
                raise ModelDownloadError(f"{label} breaks off at byte {have} of {size}; try again later.")
        if digest.hexdigest() != blob.name:
            path.unlink()
            raise ModelDownloadError(f"{label} arrived damaged (its sha256 is not {blob.name[:12]}...); try again.")
        file.flush()
        os.fsync(file.fileno())
        os.replace(path, blob)


def _read_partial(file: BinaryIO, size: int) -> tuple[_Digest, int]:
    digest = _Digest()
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    while part := file.read(1 << 22):
        digest.update(part)
    return digest, file.tell()


def _fetch_rest(
    url: str, file: BinaryIO, have: int, digest: _Digest, size: int, on_bytes: Callable[[int], None]
) -> int:
    """One request for the bytes from `have` on; returns how many there are then."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the server does not do ranges: it sends everything
            file.seek(0)
            file.truncate()
            digest.reset()
            on_bytes(-have)
            have = 0
        for part in response.iter_bytes():  # as they arrive: a larger chunk would be lost when the connection breaks
            if have + len(part) > size:
                raise ModelDownloadError("The hub sends more bytes than it announced; try again later.")
            file.write(part)
            digest.update(part)
            have += len(part)
            on_bytes(len(part))
    return have


def _is_broken_off(error: Exception) -> bool:
    import httpx2

    return isinstance(error, httpx2.TransportError)


class _Digest:
    """A sha256 that can start again."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.update = self._sha.update

    def reset(self) -> None:
        self.__init__()

    def hexdigest(self) -> str:
        return self._sha.hexdigest()
