"""Downloads one file of a repository into the hub's cache: resumable, cancellable, checked against its hash.

huggingface_hub restarts a broken download from zero, cannot be cancelled while its Rust part downloads, and trusts the
server's name and size of a small file. Runs on the caller's thread; `fetch` has the request's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlxkv.errors import ModelDownloadError
from mlxkv.models.hub.fetch import Answer, HubTimeoutError, get


def partial_path(blob: Path) -> Path:
    """The file for the bytes of an incomplete download."""
    return blob.with_name(f"{blob.name}.mlxkv-partial")


def fetch_blob(
    url: str,
    blob: Path,
    *,
    endpoint: str,
    size: int,
    is_large: bool,
    label: str,
    on_bytes: Callable[[int], None],
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Download `url` to `blob`, continuing a partial file. `blob` is named by its sha256, or by its git hash if not
    `is_large`; its folder exists.

    `on_bytes` receives the number of bytes added on disk (first the resumed part; negative when they are dropped). An
    exception from it or from `poll` ends the download and keeps the partial file. `label` names the file in messages.

    Raises:
        ModelDownloadError: another process is downloading it, or the size or the hash is wrong.
        Exception: from `fetch.get`, once an attempt added no new byte.
    """
    path = partial_path(blob)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ModelDownloadError(f"Another process is downloading {label}; wait until it is done.") from error
        digest = _Digest(size, None if is_large else len(blob.name))
        resumed = have = _read_partial(file, digest, size)
        on_bytes(have)
        while True:
            while have < size:
                before = have
                try:
                    with get(url, endpoint=endpoint, start=have, poll=poll) as answer:
                        have = _write_parts(answer, file, have, digest, size, on_bytes)
                except Exception as error:
                    have = file.tell()
                    if not _is_interrupted(error) or have <= before:
                        raise
                if have <= before:
                    raise ModelDownloadError(f"{label} breaks off at byte {have} of {size}; try again later.")
            if digest.hexdigest() == blob.name:
                break
            if not resumed:
                path.unlink()
                raise ModelDownloadError(f"{label} arrived damaged (its hash is not {blob.name[:12]}...); try again.")
            _restart(file, digest, have, on_bytes)  # the resumed part may be damaged
            resumed = have = 0
        file.flush()
        os.fsync(file.fileno())
        os.replace(path, blob)


def _read_partial(file: BinaryIO, digest: _Digest, size: int) -> int:
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    while part := file.read(1 << 22):
        digest.update(part)
    return file.tell()


def _restart(file: BinaryIO, digest: _Digest, have: int, on_bytes: Callable[[int], None]) -> None:
    file.seek(0)
    file.truncate()
    digest.reset()
    on_bytes(-have)


def _write_parts(
    answer: Answer, file: BinaryIO, have: int, digest: _Digest, size: int, on_bytes: Callable[[int], None]
) -> int:
    """Write the bytes from `have` on; return the new total."""
    if have and answer.status != 206:  # the server does not support ranges: it sends everything
        _restart(file, digest, have, on_bytes)
        have = 0
    for part in answer.parts:  # as they arrive: a larger piece would be lost when the connection breaks
        if have + len(part) > size:
            raise ModelDownloadError("The hub sent more bytes than it announced; try again later.")
        file.write(part)
        digest.update(part)
        have += len(part)
        on_bytes(len(part))
    return have


def _is_interrupted(error: Exception) -> bool:
    import httpx2

    return isinstance(error, (httpx2.TransportError, HubTimeoutError))


class _Digest:
    """A file's sha256, or git's hash of it with this many digits; can be reset."""

    def __init__(self, size: int, git_digits: int | None) -> None:
        self._size, self._git_digits = size, git_digits
        self.reset()

    def reset(self) -> None:
        header = b"" if self._git_digits is None else b"blob %d\0" % self._size
        self._hash = hashlib.sha1(header) if self._git_digits == 40 else hashlib.sha256(header)

    def update(self, part: bytes) -> None:
        self._hash.update(part)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
