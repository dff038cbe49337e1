"""What a hub says that a repository holds, each value checked before anything is named after it or made for it.

A commit and the ids of files become names in the cache, so they have to be hexadecimal digits; paths have to stay below
the snapshot's folder on every file system; lists and answers have an end. Asks the hub, writes nothing. Any thread.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlxkv.errors import ModelDownloadError, ModelFileError, first_line
from mlxkv.models.fetch import get
from mlxkv.stats import bytes_text

MAX_ENTRIES = 100_000  # files and folders
MAX_ANSWER = 32 << 20  # bytes of JSON, all pages of a list together
MAX_OTHER_FILE = 1 << 30  # bytes of one file that is no weights

_ID = re.compile(r"[0-9a-f]{40,64}", re.A)
_MAX_PAGES = 200  # the hub's have a thousand entries


@dataclass(frozen=True)
class Entry:
    """A file. `id` is the sha256 of its content if it `is_large` (kept as LFS), else git's name for it."""

    path: str
    size: int
    id: str
    is_large: bool


def is_id(value: object) -> bool:
    """Whether `value` can be a commit or a blob, and thereby a file's name."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def fetch_commit(endpoint: str, repo: str, revision: str | None, *, poll: Callable[[], None] = lambda: None) -> str:
    """The commit that `revision` (None: the default branch) stands for."""
    url = f"{endpoint}/api/models/{repo}"
    found, _, _ = _ask(f"{url}/revision/{quote(revision, safe='')}" if revision else url, endpoint, repo, poll=poll)
    commit = found.get("sha") if isinstance(found, dict) else None
    if not is_id(commit):
        raise _wrong(repo, f"the commit {_short(commit)}, which is none")
    return str(commit)


def fetch_file_list(
    endpoint: str,
    repo: str,
    commit: str,
    is_wanted: Callable[[str], bool],
    *,
    poll: Callable[[], None] = lambda: None,
) -> tuple[list[Entry], list[str]]:
    """The files of `repo` that are wanted, and the paths of all.

    Raises:
        ModelDownloadError: the list has no end, or is none.
        ModelFileError: a wanted file has an id, a size or a path that it cannot have.
    """
    url: str | None = f"{endpoint}/api/models/{repo}/tree/{commit}?recursive=true"
    paths, wanted, left, seen = [], [], MAX_ANSWER, 0
    for _ in range(_MAX_PAGES):
        page, size, url = _ask(url, endpoint, repo, limit=left, poll=poll)
        if not isinstance(page, list):
            raise _wrong(repo, f"{_short(page)} instead of a list of files")
        left, seen = left - size, seen + len(page)
        if seen > MAX_ENTRIES or (url and not page):
            break
        for item in page:
            if not isinstance(item, dict) or not isinstance(item.get("path"), str):
                raise _wrong(repo, f"the file {_short(item)}, which has no path")
            if item.get("type", "file") == "file":
                paths.append(item["path"])
                wanted += [_entry(item, repo)] if is_wanted(item["path"]) else []
        if url is None:
            _refuse_collisions([entry.path for entry in wanted], repo)
            return wanted, paths
    raise _wrong(repo, f"a list of more than {MAX_ENTRIES:,} files, or without an end")


def _entry(item: dict[str, Any], repo: str) -> Entry:
    path, size, lfs = item["path"], item.get("size"), item.get("lfs")
    ident = lfs.get("oid") if isinstance(lfs, dict) else item.get("oid")
    if not is_id(ident) or (lfs and len(str(ident)) != 64) or len(str(ident)) not in (40, 64):
        raise _wrong(repo, f"{_short(path)} with the hash {_short(ident)}, which is none", ModelFileError)
    if type(size) is not int or size < 0:
        raise _wrong(repo, f"{_short(path)} with the size {_short(size)}, which is none", ModelFileError)
    if size > MAX_OTHER_FILE and not path.endswith(".safetensors"):
        raise _wrong(repo, f"{_short(path)} with {bytes_text(size)}, more than such a file has", ModelFileError)
    parts = path.split("/")
    is_odd = any(c in "\\:" or unicodedata.category(c) in ("Cc", "Cs") for c in path)
    if is_odd or any(part in ("", ".", "..") or len(part.encode()) > 200 for part in parts) or len(parts) > 16:
        raise _wrong(repo, f"a file called {_short(path)}, which would not lie below its folder", ModelFileError)
    return Entry(path, size, str(ident), bool(lfs))


def _refuse_collisions(paths: Iterable[str], repo: str) -> None:
    """Names that a Mac's file system takes for one (the second would replace the first), and files that are folders."""
    keys = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path.casefold())
        if key in keys:
            raise _wrong(repo, f"both {_short(keys[key])} and {_short(path)}, one name on this disk", ModelFileError)
        keys[key] = path
    for key in keys:
        for end in (at for at, letter in enumerate(key) if letter == "/"):
            if key[:end] in keys:
                raise _wrong(repo, f"{_short(keys[key])} below a file, which is no folder", ModelFileError)


def _ask(
    url: str | None, endpoint: str, repo: str, *, limit: int = MAX_ANSWER, poll: Callable[[], None]
) -> tuple[Any, int, str | None]:
    """(JSON of an answer, its bytes, the next page)."""
    body = bytearray()
    with get(url or "", endpoint=endpoint, poll=poll) as answer:
        for part in answer.parts:
            body += part
            if len(body) > limit:
                raise _wrong(repo, f"an answer of more than {bytes_text(limit)}")
    try:
        return json.loads(body), len(body), answer.next_url
    except (ValueError, RecursionError, MemoryError) as error:
        raise _wrong(repo, f"what cannot be read as JSON ({first_line(error)})") from error


def _wrong(repo: str, found: str, kind: type[ModelDownloadError | ModelFileError] = ModelDownloadError) -> Exception:
    return kind(f"The hub gives {found}, when asked for {repo}; use another repository or hub.")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
