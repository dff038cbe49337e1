"""Fetches a repository's commit, file list and config.json from a hub, and validates every value before it is used.

A commit and the ids of files become names in the cache, so they must be hexadecimal digits; paths must stay below the
snapshot's folder on every file system; lists and answers are limited in size. Writes nothing. Any thread.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlxkv.errors import ModelDownloadError, ModelFileError, escaped, first_line
from mlxkv.models.hub.fetch import get
from mlxkv.models.resolve import is_repo
from mlxkv.stats import bytes_text

MAX_ENTRIES = 100_000  # files and folders
MAX_ANSWER = 32 << 20  # bytes of JSON, all pages of a list together
MAX_OTHER_FILE = 1 << 30  # bytes of one file other than weights

_ID = re.compile(r"[0-9a-f]{40,64}", re.A)
_MAX_PAGES = 200  # of a thousand entries on the hub


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `id` is its sha256 if it `is_large` (stored as LFS), else its git hash."""

    path: str
    size: int
    id: str
    is_large: bool
    is_cached: bool = False


@dataclass(frozen=True)
class RemoteInfo:
    """What the hub says of a repository. `id` differs from the name asked for if it was renamed. `licence` is the hub's
    identifier ("apache-2.0"), or the name that the authors give theirs; "" if none is stated."""

    id: str
    commit: str
    licence: str


def is_id(value: object) -> bool:
    """Whether `value` is a commit or blob id, which is safe as a file name."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def fetch_info(
    endpoint: str, repo: str, revision: str | None, *, poll: Callable[[], None] = lambda: None
) -> RemoteInfo:
    """The commit of `revision` (None: the default branch), and what else is said of the repository."""
    url = f"{endpoint}/api/models/{repo}"
    found, _, _ = _get_json(
        f"{url}/revision/{quote(revision, safe='')}" if revision else url, endpoint, repo, poll=poll
    )
    found = found if isinstance(found, dict) else {}
    commit, name = found.get("sha"), found.get("id")
    if not is_id(commit):
        raise _wrong(repo, f"the commit {escaped(commit)}, which is invalid")
    return RemoteInfo(name if isinstance(name, str) and is_repo(name) else repo, str(commit), _licence(found))


def fetch_config(endpoint: str, repo: str, commit: str) -> dict[str, Any]:
    """The repository's config.json, unchecked; {} if it is not an object."""
    found, _, _ = _get_json(f"{endpoint}/{repo}/resolve/{commit}/config.json", endpoint, repo, poll=lambda: None)
    return found if isinstance(found, dict) else {}


def _licence(info: dict[str, Any]) -> str:
    card = info.get("cardData")
    card = card if isinstance(card, dict) else {}
    tags = info.get("tags")
    tagged = (tag for tag in (tags if isinstance(tags, list) else ()) if isinstance(tag, str))
    found = card.get("license") or next((t.removeprefix("license:") for t in tagged if t.startswith("license:")), "")
    found = found[0] if isinstance(found, list) and found else found
    if found == "other":
        found = card.get("license_name") or ""
    return found if isinstance(found, str) else ""


def fetch_file_list(
    endpoint: str,
    repo: str,
    commit: str,
    is_wanted: Callable[[str], bool],
    *,
    poll: Callable[[], None] = lambda: None,
) -> tuple[list[RemoteFile], list[str]]:
    """The wanted files of `repo`, and the paths of all files.

    Raises:
        ModelDownloadError: the answer is not a list, or an endless one.
        ModelFileError: a wanted file has an invalid id, size or path.
    """
    url: str | None = f"{endpoint}/api/models/{repo}/tree/{commit}?recursive=true"
    paths, wanted, left, seen = [], [], MAX_ANSWER, 0
    for _ in range(_MAX_PAGES):
        page, size, url = _get_json(url, endpoint, repo, limit=left, poll=poll)
        if not isinstance(page, list):
            raise _wrong(repo, f"{escaped(page)} instead of a list of files")
        left, seen = left - size, seen + len(page)
        if seen > MAX_ENTRIES or (url and not page):
            break
        for item in page:
            if not isinstance(item, dict) or not isinstance(item.get("path"), str):
                raise _wrong(repo, f"the file {escaped(item)}, which has no path")
            if item.get("type", "file") == "file":
                paths.append(item["path"])
                wanted += [_remote_file(item, repo)] if is_wanted(item["path"]) else []
        if url is None:
            _refuse_collisions([file.path for file in wanted], repo)
            return wanted, paths
    raise _wrong(repo, f"a list of more than {MAX_ENTRIES:,} files, or an endless one")


def _remote_file(item: dict[str, Any], repo: str) -> RemoteFile:
    path, size, lfs = item["path"], item.get("size"), item.get("lfs")
    ident = lfs.get("oid") if isinstance(lfs, dict) else item.get("oid")
    if not is_id(ident) or (lfs and len(str(ident)) != 64) or len(str(ident)) not in (40, 64):
        raise _wrong(repo, f"{escaped(path)} with the invalid hash {escaped(ident)}", ModelFileError)
    if type(size) is not int or size < 0:
        raise _wrong(repo, f"{escaped(path)} with the invalid size {escaped(size)}", ModelFileError)
    if size > MAX_OTHER_FILE and not path.endswith(".safetensors"):
        raise _wrong(repo, f"{escaped(path)} with {bytes_text(size)}, too large for such a file", ModelFileError)
    parts = path.split("/")
    is_odd = any(c in "\\:" or unicodedata.category(c) in ("Cc", "Cs") for c in path)
    if is_odd or any(part in ("", ".", "..") or len(part.encode()) > 200 for part in parts) or len(parts) > 16:
        raise _wrong(repo, f"the file {escaped(path)}, which would be outside its folder", ModelFileError)
    return RemoteFile(path, size, str(ident), bool(lfs))


def _refuse_collisions(paths: Iterable[str], repo: str) -> None:
    """Refuse names that are equal on a Mac's file system (one would replace the other), and files used as folders."""
    keys = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path.casefold())
        if key in keys:
            raise _wrong(
                repo, f"both {escaped(keys[key])} and {escaped(path)}, which are the same name on a Mac", ModelFileError
            )
        keys[key] = path
    for key in keys:
        for end in (at for at, letter in enumerate(key) if letter == "/"):
            if key[:end] in keys:
                raise _wrong(repo, f"{escaped(keys[key])} below a file", ModelFileError)


def _get_json(
    url: str | None, endpoint: str, repo: str, *, limit: int = MAX_ANSWER, poll: Callable[[], None]
) -> tuple[Any, int, str | None]:
    """GET a JSON answer; return it, its size in bytes and the URL of the next page."""
    body = bytearray()
    with get(url or "", endpoint=endpoint, poll=poll) as answer:
        for part in answer.parts:
            body += part
            if len(body) > limit:
                raise _wrong(repo, f"an answer of more than {bytes_text(limit)}")
    try:
        return json.loads(body), len(body), answer.next_url
    except (ValueError, RecursionError, MemoryError) as error:
        raise _wrong(repo, f"invalid JSON ({first_line(error)})") from error


def _wrong(repo: str, found: str, kind: type[ModelDownloadError | ModelFileError] = ModelDownloadError) -> Exception:
    return kind(f"The hub answered with {found} when asked for {repo}; use another repository or hub.")
