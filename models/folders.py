"""Lists the models in folders of other programs and of the user: LM Studio's, and those of the setting `model_dirs`.

Reads folders and small files, never weights; imports no MLX. Any thread may call it. A folder may hold anything: links
in a circle, thousands of entries, pipes, folders that cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlxkv.errors import MlxkvError
from mlxkv.models.files.architecture import is_known, quantization, read_config
from mlxkv.models.files.completeness import WEIGHTS, first_three, missing_files
from mlxkv.models.local import LocalModel
from mlxkv.stats import plural
from mlxkv.system.regular_file import read_text, reason

DEPTH = 3  # of a model below its folder: LM Studio has organization/name
MOST_ENTRIES, MOST_MODELS = 20_000, 500  # looked at, and listed, below one folder
_MOST_PATH = 4096  # bytes of LM Studio's file with the path of its folder


@dataclass(frozen=True)
class ModelFolder:
    """The models below `path`, sorted by name. `note`: what was left out and why, as clauses; "" if nothing was."""

    name: str
    path: Path
    models: tuple[LocalModel, ...]
    note: str = ""


def lm_studio_folders(home: Path) -> tuple[Path, ...]:
    """Where LM Studio keeps models: the folder that it was told to use, today's and the one of older versions."""
    places = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    with suppress(OSError, ValueError):
        chosen = read_text(home / ".lmstudio-home-pointer", _MOST_PATH).strip()
        places[:0] = [Path(chosen)] if chosen.startswith("/") else []
    found: dict[str, Path] = {}
    for place in places:
        with suppress(OSError, ValueError):
            if (folder := place / "models").is_dir():
                found.setdefault(os.path.realpath(folder), folder)
    return tuple(found.values())


def list_folder(path: Path, name: str) -> ModelFolder:
    """The models in `path` and in the folders below it."""
    search = _Search()
    try:
        folders = list(search.folders(path, DEPTH))
    except (OSError, ValueError) as error:
        return ModelFolder(name, path, (), f"cannot be read ({reason(error)})")
    models: list[LocalModel] = []
    for folder in sorted(folders):
        if len(models) == MOST_MODELS:
            search.is_cut = True
            break
        with suppress(OSError, ValueError):  # removed meanwhile
            if (model := inspect(folder)) is not None:
                models.append(model)
            elif any(folder.glob("*.gguf")):
                search.num_gguf += 1
    return ModelFolder(name, path, tuple(models), search.note)


def inspect(folder: Path) -> LocalModel | None:
    """The model in `folder`, whose id is its resolved path; None if it holds no weights that mlx-lm reads.

    Raises:
        OSError: it cannot be read.
    """
    weights = [path.stat() for path in folder.glob(WEIGHTS) if path.is_file()]
    if not weights:
        return None
    try:
        config = read_config(folder, folder.name)
    except MlxkvError:
        return None
    missing = missing_files(folder)
    problem = f"lacks {first_three(missing)}" if missing else ""
    if not is_known(config):
        problem = f"has the model_type {config['model_type']}, which this mlx-lm does not support"
    size, used = sum(info.st_size for info in weights), max(info.st_atime for info in weights)
    name = os.path.realpath(folder)
    return LocalModel(name, config["model_type"], size, used, folder, problem, quantization(config))


@dataclass
class _Search:
    """One walk: what it has seen, and what it left out."""

    num_entries: int = 0
    num_gguf: int = 0
    num_unreadable: int = 0
    is_cut: bool = False
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def folders(self, path: Path, depth: int) -> Iterator[Path]:
        """`path` if it may be a model, else those of the folders below it. Each folder once, whatever links to it.

        Raises:
            OSError: `path` cannot be read.
        """
        info = path.stat()
        if (info.st_dev, info.st_ino) in self._seen:
            return
        self._seen.add((info.st_dev, info.st_ino))
        below: list[tuple[bool, Path]] = []  # links last, so that a folder has its own name
        is_model = False
        with os.scandir(path) as entries:
            for entry in entries:
                self.num_entries += 1
                if self.num_entries > MOST_ENTRIES:
                    self.is_cut = True
                    break
                is_model = is_model or entry.name == "config.json" or entry.name.endswith(".gguf")
                with suppress(OSError):  # a link in a circle
                    if depth and not entry.name.startswith(".") and entry.is_dir():
                        below.append((entry.is_symlink(), Path(entry.path)))
        if is_model:
            yield path
            return
        for _, folder in sorted(below):
            try:
                yield from self.folders(folder, depth - 1)
            except OSError:
                self.num_unreadable += 1

    @property
    def note(self) -> str:
        clauses = []
        if self.num_gguf:
            clauses.append(f"{plural(self.num_gguf, 'GGUF model')} left out: MLX reads safetensors")
        if self.num_unreadable:
            clauses.append(f"{plural(self.num_unreadable, 'folder')} cannot be read")
        if self.is_cut:
            clauses.append("too many entries to list all")
        return "; ".join(clauses)
