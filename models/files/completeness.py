"""Checks that a model folder has every file that loading needs.

Lists must not offer an incomplete model as ready, and loading should name the missing file rather than a number of
parameters. Reads small files and headers; imports no MLX. Any thread.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from mlxkv.errors import MlxkvError, ModelFileError, escaped
from mlxkv.models.files.architecture import is_known, read_config, read_json
from mlxkv.safetensors.header import MAX_HEADER, check_weights
from mlxkv.system.regular_file import opened

WEIGHTS = "model*.safetensors"  # what mlx-lm reads
INDEX = "model.safetensors.index.json"

_NUMBERED = re.compile(r"(model.*-)(\d{5})-of-(\d{5})\.safetensors", re.A)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def missing_files(folder: Path) -> tuple[str, ...]:
    """Names of the missing files that loading needs and a download would add.

    Shards by the index and by their numbers; links to missing blobs; config.json, weights and a tokenizer.
    An unreadable index names none: downloading again would not help, and `check_complete` reports it.
    """
    try:
        named = _indexed(folder)
    except ModelFileError:
        named = set()
    found = {path.name for path in folder.glob(WEIGHTS) if path.is_file()}
    missing = {name for name in named | _numbered(found) if not (folder / name).is_file()}
    missing |= {path.name for path in folder.glob("*") if path.is_symlink() and not path.exists() and _is_read(path)}
    if not (folder / "config.json").is_file():
        missing.add("config.json")
    if not found and not any(name.endswith(".safetensors") for name in missing):
        missing.add("model.safetensors")
    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        missing.add("tokenizer.json")
    return tuple(sorted(missing))


def is_complete(folder: Path) -> bool:
    """Whether no file is missing and no weights file is truncated."""
    return not missing_files(folder) and not any(map(_is_truncated, folder.glob(WEIGHTS)))


def check_complete(folder: Path, name: str) -> None:
    """Refuse an incomplete model.

    Raises:
        ModelFileError: files are missing, or the index is invalid.
    """
    _indexed(folder)
    if missing := missing_files(folder):
        other = " or convert it with mlx_lm" if "model.safetensors" in missing else ""
        raise ModelFileError(f"{name} lacks {first_three(missing)}; download it again{other}.")


def problem(folder: Path, name: str) -> str:
    """Why the model in `folder` cannot be loaded, as a clause; "" if no problem is found."""
    if missing := missing_files(folder):
        return f"lacks {first_three(missing)}"
    try:
        config = read_config(folder, name)
        if not is_known(config):
            return f"has the model_type {config['model_type']}, which this mlx-lm does not support"
        check_complete(folder, name)
        for path in sorted(folder.glob(WEIGHTS)):
            check_weights(path)
    except MlxkvError as error:
        return "is damaged: " + str(error).rstrip(".").rsplit("; ", 1)[0].replace(f"{folder}/", "")
    return ""


def first_three(names: tuple[str, ...]) -> str:
    """The first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _indexed(folder: Path) -> set[str]:
    """The weights files that the index names.

    Raises:
        ModelFileError: it is not a table of names, or names a file in another folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return set()
    table = (read_json(path) or {}).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ModelFileError(f"{path} must map tensors to files as weight_map; download the model again.")
    for name in table.values():
        if not name.isprintable() or Path(name).name != name or name in ("", "..") or len(name) > 200:
            raise ModelFileError(f"{path} names {escaped(name)}, which is outside its folder; use another model.")
    return set(table.values())


def _numbered(found: set[str]) -> set[str]:
    """All shards, by the total in the names of the found ones."""
    names: set[str] = set()
    for match in filter(None, map(_NUMBERED.fullmatch, found)):
        names |= {f"{match[1]}{number:05}-of-{match[3]}.safetensors" for number in range(1, int(match[3]) + 1)}
    return names


def _is_truncated(path: Path) -> bool:
    """Whether the file is shorter than its header says; the header is validated only on loading."""
    try:
        with opened(path) as file:
            size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
            if size < 8 + length:
                return True
            table = json.loads(file.read(length if length <= MAX_HEADER else 0))
        return size < 8 + length + max(entry["data_offsets"][1] for name, entry in table.items() if name[:2] != "__")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def _is_read(path: Path) -> bool:
    return path.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken") or path.match(WEIGHTS)
