"""The models on this machine, by where they are: used lately, built in, downloaded, of LM Studio, of `model_dirs`.

Puts together what `local.py` and `folders.py` list; the picker and `mlxkv models ls` show it. Reads no weights and no
database. Any thread may call it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxkv.errors import MlxkvError, ModelNotFoundError
from mlxkv.models.folders import inspect, list_folder, lm_studio_folders
from mlxkv.models.hub.hub import Hub
from mlxkv.models.local import LocalModel, list_local
from mlxkv.models.resolve import BUILT_IN, resolve
from mlxkv.settings.schema import folders_of
from mlxkv.system.regular_file import reason

RECENT, BUILT_IN_GROUP, DOWNLOADED, LM_STUDIO, INCOMPLETE = (
    "Used lately", "Built in", "Downloaded", "LM Studio", "Incomplete or not supported"
)  # fmt: skip
MOST_RECENT = 6


@dataclass(frozen=True)
class ModelGroup:
    """Models that are listed together. `path`: the folder they are in, if it is one. `note`: what was left out."""

    name: str
    models: tuple[LocalModel, ...]
    path: Path | None = None
    note: str = ""


def model_groups(
    used: Sequence[str],
    dirs: str | None = None,
    *,
    home: Path | None = None,
    hub: Hub | None = None,
    current: str | None = None,
) -> tuple[ModelGroup, ...]:
    """Every model on this machine, each in the first group it belongs to; groups without models only with a note.

    Args:
        used: names of models, the latest first: those that are here are the group RECENT, of at most MOST_RECENT.
        dirs: the setting `model_dirs`.
        home: of LM Studio's folders; None: the user's.
        current: the loaded model, which is listed first, and even if it is no longer on the disk.
    """
    groups = [ModelGroup(BUILT_IN_GROUP, tuple(_built_in())), _downloaded(hub)]
    folders = [(folder, LM_STUDIO) for folder in lm_studio_folders(home or Path.home())]
    folders += [(path, _short(path, home)) for path in map(Path, folders_of(dirs) if dirs else ())]
    places: dict[str, None] = {}
    for path, name in folders:
        if (place := os.path.realpath(path)) not in places:
            places[place] = None
            found = list_folder(path, name)
            groups.append(ModelGroup(name, found.models, path, found.note))
    return _without_duplicates([_recent(groups, used, current), *groups])


def full_name(name: str, dirs: str | None = None, *, home: Path | None = None, hub: Hub | None = None) -> str:
    """`name` if it is a model's, else the id of the one on this machine that has it as the last part of its name.

    Raises:
        ModelNotFoundError: there is none, or several.
    """
    try:
        return resolve(name).name
    except ModelNotFoundError:
        if not name or os.sep in name:
            raise
        models = [model for group in model_groups([], dirs, home=home, hub=hub) for model in group.models]
        found = [m.id for m in models if name.casefold() in _last_names(m) and not m.problem]
        if not found:
            raise
    if len(found) > 1:
        raise ModelNotFoundError(f"Several models here are called {name}: {', '.join(found[:3])}; name one of these.")
    return found[0]


def _last_names(model: LocalModel) -> tuple[str, str]:
    return os.path.basename(model.id).casefold(), model.path.name.casefold()


def _built_in() -> Iterable[LocalModel]:
    for name in BUILT_IN:
        try:
            folder = resolve(name).path
        except MlxkvError:
            continue  # not part of this installation
        if folder is not None and (model := inspect(folder)) is not None:
            yield replace(model, id=name)


def _downloaded(hub: Hub | None) -> ModelGroup:
    try:
        return ModelGroup(DOWNLOADED, list_local(hub, with_broken=True))
    except (MlxkvError, OSError) as error:
        why = f"cannot be read ({reason(error)})" if isinstance(error, OSError) else str(error).rstrip(".")
        return ModelGroup(DOWNLOADED, (), note=why)


def _recent(groups: Sequence[ModelGroup], used: Sequence[str], current: str | None) -> ModelGroup:
    known = {model.id: model for group in groups for model in group.models if not model.problem}
    recent: list[LocalModel] = []
    names = used if current is None else [current, *used]
    for name in dict.fromkeys(names):
        if len(recent) == MOST_RECENT:
            break
        model = known.get(name) or _folder(name)
        if model is None and name == current:
            gone = "the folder is missing" if os.path.isabs(name) else ""
            model = LocalModel(name, "", 0, 0.0, Path(name), gone)
        if model is not None:
            recent.append(model)
    return ModelGroup(RECENT, tuple(recent))


def _folder(name: str) -> LocalModel | None:
    """The model in a folder that was used, if it is still there."""
    try:
        model = inspect(Path(name)) if os.path.isabs(name) else None
    except (OSError, ValueError):
        return None
    return None if model is None else replace(model, id=name)


def _without_duplicates(groups: Sequence[ModelGroup]) -> tuple[ModelGroup, ...]:
    """Each model once, and those that cannot be loaded in a group of their own, the last one."""
    seen: set[str] = set()
    out, broken = [], []
    for group in groups:
        new = [model for model in group.models if model.id not in seen]
        seen.update(model.id for model in new)
        ready = tuple(model for model in new if group.name == RECENT or not model.problem)
        broken += [model for model in new if model not in ready]
        if ready or group.note:
            out.append(replace(group, models=ready))
    return (*out, *([ModelGroup(INCOMPLETE, tuple(broken))] if broken else []))


def _short(path: Path, home: Path | None) -> str:
    """`path` with `~` for the home folder."""
    home = home or Path.home()
    return f"~/{path.relative_to(home)}" if path != home and path.is_relative_to(home) else str(path)
