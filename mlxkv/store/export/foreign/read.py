"""Reads exports of ChatGPT, Claude and LM Studio without trusting them: finds out which one a file is.

A zip, a folder or a JSON file. Nothing is unpacked to disk; sizes are limited before anything is read, and one chat at
a time becomes objects. Names inside a zip are only compared. Any thread.
"""

from __future__ import annotations

import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxkv.errors import CorruptError, StoreError, shortened
from mlxkv.store.export.foreign import chatgpt, claude, lm_studio
from mlxkv.store.export.foreign.branches import ForeignFamily, family_of
from mlxkv.store.export.foreign.chat import ForeignChat
from mlxkv.system.regular_file import opened, parse_integer, read_bytes, reason

MAX_TEXT = 512 << 20  # bytes of JSON, all files of an export together
MAX_FILES = 20_000  # of a folder
MAX_ENTRIES = 200_000  # of a zip
MAX_CHATS = 100_000
_EXPORT = re.compile(r"(?:[^/\\]+/)?conversations(?:-\d{1,4})?\.json")
_LM_STUDIO = ".conversation.json"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PIECE = 1 << 20
_BLANKS = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class ForeignExport:
    """What an export holds: its program, its chats with messages, and how many have none."""

    program: str
    families: tuple[ForeignFamily, ...]
    num_empty: int


def read_export(path: Path) -> ForeignExport | None:
    """The chats in an export; None if `path` is a file that may be one of mlxkv's own.

    Raises:
        CorruptError: it is none, or breaks a rule; one sentence. StoreError: it cannot be read.
    """
    families, programs, num_chats, now = [], [], 0, time.time()
    try:
        texts = _texts(path)
        if texts is None:
            return None
        for name, text in texts:
            for found in _chats(text, path.name):
                num_chats += 1
                if num_chats > MAX_CHATS:
                    raise CorruptError(f"{path.name} cannot be imported: it has over {MAX_CHATS:,} chats.")
                if (chat := _read(found, name)) is None:
                    if not families and _is_own(found):
                        return None
                    raise CorruptError(
                        f"{path.name} is not an export that can be imported: chat {num_chats} is none of ChatGPT's, "
                        "Claude's, LM Studio's or mlxkv's own."
                    )
                programs.append(chat.program)
                families.append(family_of(chat, path.name, now))
    except RecursionError as error:
        raise CorruptError(f"{path.name} cannot be imported: {reason(error)}.") from error
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is damaged, encrypted or no zip; export it again"
        raise StoreError(f"{shortened(path)} cannot be read ({why}); check it.") from error
    if not programs:
        raise CorruptError(f"{path.name} holds no chats.")
    whole = tuple(family for family in families if family is not None)
    return ForeignExport(programs[0], whole, len(families) - len(whole))


def _read(found: Any, name: str) -> ForeignChat | None:
    if chatgpt.is_chat(found):
        return chatgpt.read(found)
    if claude.is_chat(found):
        return claude.read(found)
    return lm_studio.read(found, name) if lm_studio.is_chat(found) else None


def _is_own(found: Any) -> bool:
    return not isinstance(found, dict) or "format" in found or not found


# -- texts -----------------------------------------------------------------------------------------------------------


def _texts(path: Path) -> Iterator[tuple[str, bytes]] | None:
    """Name and content of each JSON file; None if `path` is no JSON and no zip."""
    if path.is_dir():
        return _of_folder(path)
    with opened(path, follow=False) as file:
        head = file.read(64)
    if head.startswith(_ZIP):
        return _of_zip(path)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
        return None
    return iter([(path.name.removesuffix(_LM_STUDIO), read_bytes(path, MAX_TEXT, follow=False))])


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The exports in an unpacked folder, or LM Studio's chats in it and below."""
    names = sorted(name for name in os.listdir(folder) if _EXPORT.fullmatch(name))
    files = [folder / name for name in names]
    if not files:
        for place, folders, found in os.walk(folder):
            folders.sort()
            files += [Path(place, name) for name in sorted(found) if name.endswith(_LM_STUDIO)]
            if len(files) > MAX_FILES:
                raise CorruptError(f"{folder} has over {MAX_FILES:,} chats; import a folder in it.")
    if not files:
        raise CorruptError(
            f"{shortened(folder)} has no chats to import: neither conversations.json nor *{_LM_STUDIO}; name another."
        )
    left = MAX_TEXT
    for file in files:
        data = read_bytes(file, left, follow=False)
        left -= len(data)
        yield file.name.removesuffix(_LM_STUDIO), data


def _of_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """`conversations.json` in a zip, and its further parts. What a header says of sizes is not believed."""
    with opened(path, follow=False) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise CorruptError(f"{path.name} has {len(entries):,} files; an export has at most {MAX_ENTRIES:,}.")
        found = sorted((e for e in entries if _EXPORT.fullmatch(e.filename)), key=lambda e: e.filename)
        found = found or [e for e in entries if e.filename.endswith(_LM_STUDIO)][: MAX_FILES + 1]
        if not found:
            raise CorruptError(f"{path.name} has no conversations.json, so it is no export of ChatGPT or Claude.")
        if len(found) > MAX_FILES or len({entry.filename for entry in found}) < len(found):
            raise CorruptError(f"{path.name} names one file twice, or over {MAX_FILES:,} chats.")
        left = MAX_TEXT
        for entry in found:
            with archive.open(entry) as stream:
                pieces = []
                while piece := stream.read(_PIECE):
                    pieces.append(piece)
                    left -= len(piece)
                    if left < 0:
                        raise CorruptError(
                            f"{path.name} has over {MAX_TEXT >> 20} MiB of text; it is no export, or one too large."
                        )
            yield os.path.basename(entry.filename).removesuffix(_LM_STUDIO), b"".join(pieces)


def _chats(data: bytes, file: str) -> Iterator[Any]:
    """The entries of a JSON list, one at a time; or the one object.

    Raises:
        CorruptError: it is not JSON.
    """

    def refuse(why: str) -> CorruptError:
        return CorruptError(f"{file} is not an export that can be imported: it must be JSON in UTF-8, and {why}.")

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    decoder = json.JSONDecoder(parse_int=parse_integer, parse_constant=constant)
    try:
        text = data.decode("utf-8-sig")
        at = len(text) - len(text.lstrip())
        if text[at : at + 1] != "[":
            found, end = decoder.raw_decode(text, at)
            if text[end:].strip():
                raise refuse(f"there is more text after the {end:,} characters of the first value")
            yield found
            return
        at = _BLANKS.match(text, at + 1).end()  # type: ignore[union-attr]  # it matches anything
        while text[at : at + 1] != "]":
            found, at = decoder.raw_decode(text, at)
            yield found
            at = _BLANKS.match(text, at).end()  # type: ignore[union-attr]
        if text[at + 1 :].strip():
            raise refuse("there is more text after the list")
    except ValueError as error:
        raise refuse(reason(error)) from error
