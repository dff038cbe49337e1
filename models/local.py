"""The models in the hub's cache: which can be loaded, how large they are, when they were last used, and removing one.

Reads and deletes files; imports huggingface_hub lazily and no MLX. Any thread may call it.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.errors import MlxkvError, ModelDownloadError, ModelNotFoundError
from mlxkv.models.architecture import read_config
from mlxkv.models.hub import Hub, is_whole
from mlxkv.models.resolve import is_repo, resolve
from mlxkv.regular_file import reason

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, HFCacheInfo


@dataclass(frozen=True)
class LocalModel:
    """A model in the cache that is whole. `size_bytes` is what it takes on disk, `last_used` UNIX seconds."""

    id: str
    model_type: str
    size_bytes: int
    last_used: float
    path: Path


def list_local(hub: Hub | None = None) -> tuple[LocalModel, ...]:
    """The loadable models in the cache, last used first. Whether mlx-lm has the architecture is left to loading."""
    info = _scan(hub or Hub())
    models = []
    for repo in info.repos if info else ():
        path = _whole_snapshot(repo)
        if path is None or not is_repo(repo.repo_id):  # a folder of any name may lie there
            continue
        try:
            model_type = read_config(path, repo.repo_id)["model_type"]
        except MlxkvError:
            continue
        models.append(LocalModel(repo.repo_id, model_type, repo.size_on_disk, repo.last_accessed, path))
    return tuple(sorted(models, key=lambda model: (-model.last_used, model.id)))


def remove(name: str, *, hub: Hub | None = None) -> int:
    """Delete a repository (whole or not, all revisions) from the cache; returns the bytes that frees.

    Raises:
        ModelNotFoundError: it is not in the cache, or is a folder of the user's, which is theirs to delete.
        ModelDownloadError: the files could not be deleted.
    """
    hub = hub or Hub()
    source = resolve(name)
    if source.repo is None:
        raise ModelNotFoundError(f"{name} is a folder, not a model in the cache; delete the folder yourself.")
    folder = hub.storage(source.repo)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{source.repo} is not in the cache {hub.cache()}; `mlxkv models ls` lists what is.")
    info = _scan(hub)
    repo = next((r for r in info.repos if r.repo_type == "model" and r.repo_id == source.repo), None) if info else None
    freed = sum(p.stat().st_size for p in (folder / "blobs").glob("*") if p.is_file())
    try:
        if info and repo:
            info.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
        if folder.is_dir():  # partial files, which the hub's scan does not know
            shutil.rmtree(folder)
    except OSError as error:
        raise ModelDownloadError(
            f"{folder} could not be deleted ({error.strerror or error}); check its permissions."
        ) from error
    return freed


def _scan(hub: Hub) -> HFCacheInfo | None:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return scan_cache_dir(hub.cache())
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:  # a file in its place, or it may not be read
        raise ModelDownloadError(f"The cache {hub.cache()} cannot be read ({reason(error)}); check it.") from error


def _whole_snapshot(repo: CachedRepoInfo) -> Path | None:
    if repo.repo_type != "model":
        return None
    newest_first = sorted(repo.revisions, key=lambda revision: -revision.last_modified)
    with suppress(OSError):
        return next((r.snapshot_path for r in newest_first if is_whole(r.snapshot_path)), None)
    return None
