"""Bring a repository from the hub into its cache: what it weighs, whether there is room, the bytes, with progress.

Fetches nothing but data files (see hub.ALLOW and hub.NEVER). Blocks the calling thread; `progress` is called on it.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from mlxkv.errors import ModelDownloadError, ModelFileError
from mlxkv.models.blob import fetch_blob, partial_path
from mlxkv.models.hub import ALLOW, NEVER, UNREAD, WEIGHTS, Hub, explain, find_local
from mlxkv.stats import bytes_text

Progress = Callable[[int, int], None]  # bytes there, bytes in all

_REPORT = 1 << 20  # bytes between two calls of `progress`: the network gives them in far smaller pieces
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One file to have: `sha256` for large files (the name of its blob), None for small ones."""

    path: str
    size: int
    sha256: str | None
    is_cached: bool


@dataclass(frozen=True)
class Plan:
    """What a download would do. Sizes are bytes."""

    repo: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]
    partial_bytes: int  # of the missing files, already here

    @property
    def weight_bytes(self) -> int:
        return sum(f.size for f in self.files if fnmatchcase(f.path, WEIGHTS))

    @property
    def total_bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def missing_bytes(self) -> int:
        """Still to come over the network."""
        return sum(f.size for f in self.files if not f.is_cached) - self.partial_bytes


def plan_download(
    repo: str, revision: str | None = None, *, hub: Hub | None = None, allow: Sequence[str] = ALLOW
) -> Plan:
    """Ask the hub what `repo` holds; downloads nothing. Two requests.

    Raises:
        ModelNotFoundError: no such repository or revision, or it is private.
        ModelDownloadError: gated, offline, no answer.
        ModelFileError: there is no model in it that mlx-lm reads.
    """
    hub = hub or Hub()
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    try:
        api = HfApi(endpoint=hub.endpoint)
        commit = api.model_info(repo, revision=revision).sha or ""
        entries = [e for e in api.list_repo_tree(repo, recursive=True, revision=commit) if isinstance(e, RepoFile)]
    except Exception as error:
        raise explain(error, repo, revision) from error
    wanted = filter_repo_objects(
        entries, allow_patterns=list(allow), ignore_patterns=[*NEVER, *UNREAD], key=lambda e: e.path
    )
    storage = hub.storage(repo)
    files, partial_bytes = [], 0
    for entry in wanted:
        sha = entry.lfs.sha256 if entry.lfs else None
        if sha is not None and not _SHA256.fullmatch(sha):
            raise ModelFileError(f"The hub gives {entry.path!r} of {repo} a hash that is none; use another repository.")
        is_cached = (storage / "snapshots" / commit / entry.path).is_file()
        if sha is not None and not is_cached:
            is_cached = (storage / "blobs" / sha).is_file()
            rest = partial_path(storage / "blobs" / sha)
            partial_bytes += min(rest.stat().st_size, entry.size) if not is_cached and rest.is_file() else 0
        files.append(RemoteFile(entry.path, entry.size, sha, is_cached))
    if not any(f.path == "config.json" for f in files):
        raise ModelFileError(f"{repo} has no config.json, so it is no model mlx-lm can load; use another repository.")
    if WEIGHTS in allow or "*.safetensors" in allow:
        _require_weights(repo, [f.path for f in files], [e.path for e in entries])
    return Plan(repo, revision, commit, tuple(files), partial_bytes)


def download(
    repo: str,
    revision: str | None = None,
    *,
    hub: Hub | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    allow: Sequence[str] = ALLOW,
    check: Callable[[Plan], None] | None = None,
) -> Path:
    """Make the snapshot of `repo` whole in the cache and return its folder.

    `progress` gets (bytes there, bytes in all); what it raises ends the download, as setting `cancel` does. What has
    arrived is kept, and the next call fetches only the rest. `check` sees the plan before anything is fetched and may
    refuse it by raising.

    Raises:
        ModelDownloadError: offline, gated, the disk is too small, broken off, damaged, cancelled.
        ModelNotFoundError, ModelFileError: see `plan_download`.
    """
    hub = hub or Hub()
    plan = plan_download(repo, revision, hub=hub, allow=allow)
    if check is not None:
        check(plan)
    _check_disk(plan, hub.cache())
    meter = _Meter(plan, progress, cancel)
    try:
        return _fetch(plan, hub, allow, meter)
    except Exception as error:
        if error is meter.raised:
            raise
        raise explain(error, repo, revision) from error


def _fetch(plan: Plan, hub: Hub, allow: Sequence[str], meter: _Meter) -> Path:
    from huggingface_hub import hf_hub_url, snapshot_download

    meter.add(0)
    for file in plan.files:
        if file.sha256 is not None and not file.is_cached:
            url = hf_hub_url(plan.repo, file.path, revision=plan.commit, endpoint=hub.endpoint)
            blob = hub.storage(plan.repo) / "blobs" / file.sha256
            fetch_blob(url, blob, size=file.size, label=f"{file.path} of {plan.repo}", on_bytes=meter.add)
    # The hub's own download then links the blobs and fetches the small files. By name, not by commit: it notes which
    # commit the name means, for the next time there is no network.
    folder = snapshot_download(
        plan.repo,
        revision=plan.revision,
        endpoint=hub.endpoint,
        cache_dir=hub.cache(),
        allow_patterns=list(allow),
        ignore_patterns=[*NEVER, *UNREAD],
        tqdm_class=partial(_Bar, meter),  # type: ignore[arg-type]  # anything that makes a bar will do
    )
    meter.finish()
    return Path(folder)


def ensure(
    repo: str,
    revision: str | None = None,
    *,
    hub: Hub | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    check: Callable[[Plan], None] | None = None,
) -> Path:
    """The snapshot folder of `repo`: from the cache without asking the network when it is whole there, else downloaded.

    Raises:
        ModelDownloadError, ModelNotFoundError, ModelFileError: see `download`.
    """
    hub = hub or Hub()
    found = find_local(hub, repo, revision)
    return found or download(repo, revision, hub=hub, progress=progress, cancel=cancel, check=check)


def _require_weights(repo: str, wanted: list[str], all_paths: list[str]) -> None:
    if any(fnmatchcase(path, WEIGHTS) for path in wanted):
        return
    other = next((p for p in all_paths if p.endswith((".gguf", ".bin", ".pt", ".pth", ".npz", ".safetensors"))), None)
    found = f"only files such as {other!r}" if other else "no weights at all"
    raise ModelFileError(
        f"{repo} has no {WEIGHTS}, {found}; use a repository in MLX or Hugging Face format, such as mlx-community's."
    )


def _check_disk(plan: Plan, cache: Path) -> None:
    folder = cache
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if plan.missing_bytes > free:
        raise ModelDownloadError(
            f"{plan.repo} needs {bytes_text(plan.missing_bytes)} more and {folder} has {bytes_text(free)} free; "
            "make room, or set HF_HOME to a folder on a larger disk."
        )


class _Meter:
    """Counts bytes for the callback, and is where a download is cancelled. Safe from the hub's threads."""

    def __init__(self, plan: Plan, progress: Progress | None, cancel: threading.Event | None) -> None:
        self.raised: Exception | None = None  # what ended the download on purpose
        self._repo, self._progress, self._cancel = plan.repo, progress, cancel
        self._total = plan.total_bytes
        self._done = sum(f.size for f in plan.files if f.is_cached)
        self._reported = -_REPORT
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            try:
                self.look()
                self._done += count
                is_due = abs(self._done - self._reported) >= _REPORT or self._done == self._total
                if self._progress is not None and is_due:
                    self._reported = self._done
                    self._progress(min(self._done, self._total), self._total)
            except Exception as error:
                self.raised = error
                raise

    def look(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            self.raised = ModelDownloadError(
                f"The download of {self._repo} was stopped; what has arrived is kept and it goes on from there."
            )
            raise self.raised

    def finish(self) -> None:
        self._done = self._total
        self.add(0)


class _Bar:
    """What huggingface_hub needs of a tqdm bar, and nothing on the screen.

    Not a tqdm: making one takes a multiprocessing lock, which fails under Textual (`bad value(s) in fds_to_keep`).
    The small files are done in one chunk each, so it only serves to stop between two of them.
    """

    def __init__(self, meter: _Meter, *_: Any, total: float | None = None, **__: Any) -> None:
        self._meter = meter
        self.total, self.n = total, 0.0
        self.format_dict: dict[str, Any] = {"rate": None}

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0
        self._meter.look()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    close = refresh = set_description = set_description_str = set_postfix_str = _nothing
