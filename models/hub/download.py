"""Downloads a repository from the hub into its cache: sizes, free disk space, the files, progress.

Only data files (see hub.ALLOW and hub.NEVER). Blocks the calling thread; `progress` is called on it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from mlxkv.errors import ModelDownloadError, ModelFileError, ModelNotFoundError, escaped
from mlxkv.models.files.completeness import WEIGHTS
from mlxkv.models.hub.blob import fetch_blob, partial_path
from mlxkv.models.hub.hub import ALLOW, NEVER, NOT_LOADED, Hub, explain, find_local
from mlxkv.models.hub.repository import RemoteFile, fetch_file_list, fetch_info
from mlxkv.models.hub.snapshot import has_bytes, link, path_below, set_ref
from mlxkv.models.resolve import is_repo
from mlxkv.stats import bytes_text

Progress = Callable[[int, int], None]  # bytes on disk, bytes in total

_REPORT = 1 << 20  # bytes between two calls of `progress`: they arrive in far smaller pieces


@dataclass(frozen=True)
class Plan:
    """What a download would do. Sizes are bytes."""

    repo: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]
    partial_bytes: int  # already downloaded of the missing files

    @property
    def weight_bytes(self) -> int:
        return sum(f.size for f in self.files if fnmatchcase(f.path, WEIGHTS))

    @property
    def total_bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes left to download."""
        return sum(f.size for f in self.files if not f.is_cached) - self.partial_bytes


def plan_download(
    repo: str,
    revision: str | None = None,
    *,
    hub: Hub | None = None,
    allow: Sequence[str] = ALLOW,
    poll: Callable[[], None] = lambda: None,
) -> Plan:
    """List the files of `repo` with two requests to the hub. An exception from `poll` ends them.

    Raises:
        ModelNotFoundError: the repository or revision does not exist, or is private.
        ModelDownloadError: gated, offline, no answer, or an invalid one.
        ModelFileError: it holds no model that mlx-lm can load, or lists an invalid file.
    """
    hub = hub or Hub()
    named = f"{repo}@{revision}" if revision else repo
    if "@" in repo or not is_repo(named):
        raise ModelNotFoundError(f"{escaped(named)} is not a repository id; use org/name or org/name@revision.")
    try:
        commit = fetch_info(hub.url(), repo, revision, poll=poll).commit
        entries, all_paths = fetch_file_list(hub.url(), repo, commit, lambda path: is_wanted(path, allow), poll=poll)
    except Exception as error:
        raise explain(error, hub, repo, revision) from error
    storage = hub.storage(repo)
    files, partial_bytes = [], 0
    for entry in entries:
        blob = storage / "blobs" / entry.id
        linked = storage / "snapshots" / commit / entry.path
        is_cached = has_bytes(linked, entry.size) or has_bytes(blob, entry.size)
        rest = partial_path(blob)
        partial_bytes += min(rest.stat().st_size, entry.size) if not is_cached and rest.is_file() else 0
        files.append(replace(entry, is_cached=is_cached))
    _refuse_folders(repo, all_paths)
    if is_wanted("config.json", allow) and not any(f.path == "config.json" for f in files):
        raise ModelFileError(f"{repo} has no config.json, so mlx-lm cannot load it; use another repository.")
    if WEIGHTS in allow or "*.safetensors" in allow:
        _require_weights(repo, [f.path for f in files], all_paths)
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
    """Download what the cache lacks of `repo` and return its snapshot folder.

    `progress` receives (bytes on disk, bytes in total); its exceptions end the download, as setting `cancel` does.
    Partial files stay, and the next call continues them. `check` may refuse the plan by raising.

    Raises:
        ModelDownloadError: offline, gated, disk too small, interrupted, damaged, cancelled.
        ModelNotFoundError, ModelFileError: see `plan_download`.
    """
    hub = hub or Hub()

    def poll() -> None:
        if cancel is not None and cancel.is_set():
            raise ModelDownloadError(f"The download of {repo} was stopped; start it again to continue.")

    plan = plan_download(repo, revision, hub=hub, allow=allow, poll=poll)
    if check is not None:
        check(plan)
    _check_disk(plan, hub.cache())
    meter = _Meter(plan, progress, poll)
    try:
        return _fetch(plan, hub, meter)
    except Exception as error:
        if error is meter.raised:
            raise
        raise explain(error, hub, repo, revision) from error


def _fetch(plan: Plan, hub: Hub, meter: _Meter) -> Path:
    from huggingface_hub import hf_hub_url

    meter.add(0)
    storage, revision = hub.storage(plan.repo), plan.revision or "main"
    ref = path_below(storage, "refs", *revision.split("/"))
    blobs = {file: path_below(storage, "blobs", file.id) for file in plan.files}
    links = {file: path_below(storage, "snapshots", plan.commit, *file.path.split("/")) for file in plan.files}
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    for file in plan.files:
        blob = blobs[file]
        if not file.is_cached and has_bytes(blob, file.size):
            meter.add(file.size)  # just downloaded for another file with the same content
        elif not file.is_cached:
            fetch_blob(
                hf_hub_url(plan.repo, file.path, revision=plan.commit, endpoint=hub.url()),
                blob,
                endpoint=hub.url(),
                size=file.size,
                is_large=file.is_large,
                label=f"{file.path} of {plan.repo}",
                on_bytes=meter.add,
                poll=meter.poll,
            )
    # Link when all blobs exist, weights last, then set the ref: until then nothing counts as ready.
    for file in sorted(plan.files, key=lambda file: fnmatchcase(file.path, WEIGHTS)):
        if not has_bytes(links[file], file.size):
            link(blobs[file], links[file])
    if revision != plan.commit:
        set_ref(ref, plan.commit)
    meter.finish()
    return storage / "snapshots" / plan.commit


def is_wanted(path: str, allow: Sequence[str] = ALLOW) -> bool:
    """Whether a download of what `allow` names has this file."""
    return any(fnmatchcase(path, p) for p in allow) and not any(fnmatchcase(path, p) for p in (*NEVER, *NOT_LOADED))


def ensure(
    repo: str,
    revision: str | None = None,
    *,
    hub: Hub | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    check: Callable[[Plan], None] | None = None,
) -> Path:
    """The snapshot folder of `repo`: from the cache, without any request, if it is complete there; else downloaded.

    Raises:
        ModelDownloadError, ModelNotFoundError, ModelFileError: see `download`.
    """
    hub = hub or Hub()
    found = find_local(hub, repo, revision)
    return found or download(repo, revision, hub=hub, progress=progress, cancel=cancel, check=check)


def _refuse_folders(repo: str, all_paths: list[str]) -> None:
    """Refuse a repository whose models, such as several quantizations, are in folders of their own."""
    if any(fnmatchcase(path, WEIGHTS) for path in all_paths if "/" not in path):
        return
    inner = sorted(path.partition("/")[0] for path in all_paths if fnmatchcase(path, f"*/{WEIGHTS}"))
    inner = [name for name in dict.fromkeys(inner) if f"{name}/config.json" in all_paths]
    if inner:
        raise ModelFileError(
            f"{repo} keeps its models in the folders {', '.join(inner)}, of which mlxkv downloads none; run "
            f"`hf download {repo} --include '{inner[0]}/*' --local-dir DIR`, then use -m DIR/{inner[0]}."
        )


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
    """Counts bytes, reports them, and ends a cancelled download."""

    def __init__(self, plan: Plan, progress: Progress | None, poll: Callable[[], None]) -> None:
        self.raised: Exception | None = None  # by `progress`: it ended the download on purpose
        self.poll, self._progress = poll, progress
        self._total = plan.total_bytes
        self._done = sum(f.size for f in plan.files if f.is_cached)
        self._reported = -_REPORT

    def add(self, count: int) -> None:
        self.poll()
        self._done += count
        is_due = abs(self._done - self._reported) >= _REPORT or self._done == self._total
        if self._progress is not None and is_due:
            self._reported = self._done
            try:
                self._progress(min(self._done, self._total), self._total)
            except Exception as error:
                self.raised = error
                raise

    def finish(self) -> None:
        self._done = self._total
        self.add(0)
