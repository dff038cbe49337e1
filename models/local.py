"""Lists and removes the models in the hub's cache.

Reads and deletes files; imports huggingface_hub lazily and no MLX. Any thread may call it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.errors import MlxkvError, ModelDownloadError, ModelNotFoundError
from mlxkv.models.files.architecture import is_known, quantization, read_config
from mlxkv.models.files.completeness import problem
from mlxkv.models.hub.blob import partial_path
from mlxkv.models.hub.hub import MAX_REF, Hub, find_local
from mlxkv.models.resolve import BUILT_IN, is_repo, resolve
from mlxkv.system.regular_file import check_regular, reason

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo


@dataclass(frozen=True)
class LocalModel:
    """A model in the cache. `size_bytes` on disk; `last_used` in UNIX seconds.

    `problem`: why it cannot be loaded, as a clause ("lacks model.safetensors"); "" for a model that is ready.
    `quantization`: "4-bit", "" if unknown.
    """

    id: str
    model_type: str
    size_bytes: int
    last_used: float
    path: Path
    problem: str = ""
    quantization: str = ""


def list_local(hub: Hub | None = None, *, with_broken: bool = False) -> tuple[LocalModel, ...]:
    """The models in the cache that are ready, last used first; `with_broken` includes the others.

    Repositories that are not language models supported by mlx-lm are not listed.
    """
    hub = hub or Hub()
    models: list[LocalModel] = []
    for storage in hub.cache().glob("models--*"):
        with suppress(OSError):  # an unreadable folder must not hide the others
            if (model := _inspect(hub, storage)) is not None and (with_broken or not model.problem):
                models.append(model)
    return tuple(sorted(models, key=lambda model: (-model.last_used, model.id)))


def remove(name: str, *, hub: Hub | None = None) -> int:
    """Delete a repository (complete or not, all revisions) from the cache; return the bytes freed.

    Raises:
        ModelNotFoundError: it is not in the cache, or is a folder, which only the user may delete.
        ModelDownloadError: the files could not be deleted.
    """
    hub = hub or Hub()
    source = resolve(name)
    if name in BUILT_IN:
        raise ModelNotFoundError(f"{name} is a part of mlxkv and stays; name a downloaded model.")
    if source.repo is None:
        raise ModelNotFoundError(f"{name} is a folder, not a model in the cache; delete the folder yourself.")
    folder = hub.storage(source.repo)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{source.repo} is not in the cache {hub.cache()}; see `mlxkv models ls`.")
    info = _scan(hub)
    repo = next((r for r in info.repos if r.repo_type == "model" and r.repo_id == source.repo), None) if info else None
    freed = sum(p.stat().st_size for p in (folder / "blobs").glob("*") if p.is_file())
    try:
        if info and repo:
            info.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
        if folder.is_dir():  # partial files, which the hub's scan does not list
            shutil.rmtree(folder)
    except OSError as error:
        raise ModelDownloadError(
            f"{folder} could not be deleted ({error.strerror or error}); check its permissions."
        ) from error
    return freed


def _scan(hub: Hub) -> HFCacheInfo | None:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    cache = hub.cache()
    try:
        for ref in cache.glob("*/refs/**/*"):  # the hub's scan would block on a pipe
            if not ref.is_dir():
                check_regular(ref, MAX_REF)
        return scan_cache_dir(cache)
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:  # not a folder, or not readable
        what = getattr(error, "filename", None) or cache
        raise ModelDownloadError(f"{what} cannot be read ({reason(error)}); check the model cache {cache}.") from error


def _inspect(hub: Hub, storage: Path) -> LocalModel | None:
    """The first revision that is ready, beginning with the default one; else a broken one if it has or had weights."""
    repo = storage.name.removeprefix("models--").replace("--", "/")
    if not is_repo(repo):  # a folder with some other name
        return None
    broken = None
    for revision in _revisions(storage):
        folder = find_local(hub, repo, revision, need_weights=False)
        name = f"{repo}@{revision}" if revision else repo
        model = _read(name, folder, storage) if folder else None
        if model is not None and not model.problem:
            return model
        broken = broken or model
    partial = any(storage.glob(str(partial_path(Path("blobs/*")))))
    if broken is None and partial and not any(storage.glob("snapshots/*/config.json")):
        return LocalModel(repo, "", _size(storage), storage.stat().st_mtime, storage, "is not fully downloaded")
    wanted = partial or (
        broken and any(broken.path.glob("*.safetensors*"))
    )  # a configuration alone is not a broken model
    return broken if wanted else None


def _revisions(storage: Path) -> Iterator[str | None]:
    yield None
    refs = storage / "refs"
    yield from sorted(str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file() and path.name != "main")
    yield from sorted(path.name for path in (storage / "snapshots").glob("*"))


def _read(name: str, folder: Path, storage: Path) -> LocalModel | None:
    try:
        config = read_config(folder, name)
    except MlxkvError:
        return None
    if not is_known(config):
        return None
    used = max((path.stat().st_atime for path in folder.rglob("*") if path.is_file()), default=0.0)
    size, bits = _size(storage), quantization(config)
    return LocalModel(name, config["model_type"], size, used, folder, problem(folder, name), bits)


def _size(storage: Path) -> int:
    """Bytes of all revisions; files that they share count once."""
    own = [path for path in storage.glob("snapshots/**/*") if not path.is_symlink()]
    files = [path.stat() for path in (*storage.glob("blobs/*"), *own) if path.is_file()]
    return sum({(info.st_dev, info.st_ino): info.st_size for info in files}.values())
