"""A chat as one file (`.mlxkv`) that can be shared: write it, and read one without trusting it.

A `.mlxkv` file is a safetensors file: `chat`, the same JSON; `chunk.<n>`, chunk files byte for byte; `xxh3` of every
byte before it. Without paths, links and compression nothing can point outside or expand, and its size bounds its
content. `document.py` validates the chat, `transfer.py` moves it in and out of the store. Any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from mlxkv.errors import CorruptError, StoreError, shortened
from mlxkv.safetensors.header import Header, pread, read_header
from mlxkv.safetensors.writer import encode_header
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.kv.chunk_format import hash_file
from mlxkv.system.regular_file import opened, reason

FORMAT = "chat 1"  # of the file; the document in it has its own format
_NEWER = re.compile(r"chat [0-9]{1,9}")
MAX_TEXT = 256 << 20  # bytes of the JSON
MAX_CHUNKS = 8192


@dataclass(frozen=True)
class ArchiveFile:
    """A file whose checksum matches: its JSON, and the spans of the chunks' bytes."""

    path: Path
    text: bytes
    chunks: tuple[tuple[int, int], ...]

    def chunk(self, n: int) -> bytes:
        """The bytes of chunk `n`. Raises CorruptError: the file shrank."""
        start, end = self.chunks[n]
        with opened(self.path, follow=False) as file:
            data = pread(file.fileno(), end - start, start)
        if len(data) != end - start:
            raise CorruptError(f"{self.path} changed while it was read.")
        return data


def write_archive(
    path: Path, text: bytes, chunks: Sequence[tuple[int, Iterable[bytes]]], before: Step = no_step
) -> int:
    """Write the JSON `text` and chunks, each as its size and its bytes in parts; returns the file's size.

    Raises:
        StoreError: too large, no such folder, or the disk is full or fails.
    """
    if len(text) > MAX_TEXT or len(chunks) > MAX_CHUNKS:
        raise StoreError(f"This chat has {len(text):,} bytes of text and {len(chunks):,} chunks; export it without KV.")
    sized = [("chat", "U8", (len(text),), len(text)), ("xxh3", "U8", (16,), 16)]
    sized += [(f"chunk.{n:05}", "U8", (size,), size) for n, (size, _) in enumerate(chunks)]
    header = encode_header(sized, {"mlxkv": FORMAT})
    return Files(before).overwrite(path, _hashed([[header, text], *(parts for _, parts in chunks)]))


def is_archive(path: Path) -> bool:
    """Whether the file begins like an archive; JSON begins with `{` instead of a length."""
    try:
        with opened(path, follow=False) as file:
            head = file.read(9)
    except OSError as error:
        raise StoreError(f"{shortened(path)} cannot be read ({reason(error)}); check the name.") from error
    return len(head) == 9 and head[8:] == b"{" and head[:1] != b"{"


def read_archive(path: Path) -> ArchiveFile:
    """Verify a whole file; does not keep the chunks' bytes.

    Raises:
        CorruptError: one sentence with the rule that it breaks.
    """
    header = read_header(path, nofollow=True)
    chunks = _check(path, header)
    try:
        with opened(path, follow=False) as file:
            fd, end = file.fileno(), header.file_size - 16
            if pread(fd, 16, end) != hash_file(fd, end).digest():
                raise CorruptError(f"{path.name} was changed or damaged after it was exported; get it again.")
            chat = header.tensors[0]
            text = pread(fd, chat.end - chat.start, header.data_start + chat.start)
    except OSError as error:
        raise CorruptError(f"{path.name} cannot be read ({reason(error)}).") from error
    return ArchiveFile(path, text, chunks)


def _check(path: Path, header: Header) -> tuple[tuple[int, int], ...]:
    """Check the header; returns the chunks' spans in the file."""
    form = header.metadata.get("mlxkv", "")
    if form != FORMAT and _NEWER.fullmatch(form):
        raise CorruptError(f"{path.name} was written by a newer mlxkv ({form}, this one knows {FORMAT}); update mlxkv.")
    if header.metadata != {"mlxkv": FORMAT}:
        raise CorruptError(f"{path.name} is not a chat that this mlxkv exported; `mlxkv chats import` takes those.")
    names = [t.name for t in header.tensors]
    count = len(names) - 2
    if not 0 <= count <= MAX_CHUNKS or names != ["chat", *(f"chunk.{n:05}" for n in range(count)), "xxh3"]:
        raise CorruptError(f"{path.name} must hold a chat, up to {MAX_CHUNKS:,} chunks and a checksum, in this order.")
    if any(t.dtype != "U8" or len(t.shape) != 1 for t in header.tensors) or header.tensors[-1].shape != (16,):
        raise CorruptError(f"{path.name} must hold bytes; it has other tensors.")
    if header.tensors[0].shape[0] > MAX_TEXT:
        raise CorruptError(f"{path.name} has {header.tensors[0].shape[0]:,} bytes of text; {MAX_TEXT:,} can be read.")
    return tuple((header.data_start + t.start, header.data_start + t.end) for t in header.tensors[1:-1])


def _hashed(parts: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    h = xxhash.xxh3_128()
    for data in (data for group in parts for data in group):
        h.update(data)
        yield data
    yield h.digest()
