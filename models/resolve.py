"""Resolves a model name: a built-in model, a folder, or a repository on the hub.

Reads only the file system; download.py downloads and load.py loads. Any thread may call it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mlxkv.errors import ModelNotFoundError, quoted

BUILT_IN = ("tutor",)

_REPO = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,128}))?", re.A)
_PAGE = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/(?P<id>[^/@]+/[^/@]+)(?:/tree/(?P<revision>.+?))?/?")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a local `path`, or `repo` with its `revision` (None: the default)."""

    name: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None


def is_repo(name: str) -> bool:
    """Whether `name` can be a repository id, with or without a revision."""
    match = _REPO.fullmatch(name)
    return match is not None and ".." not in name and "--" not in match["id"]


def resolve(name: str, *, built_in_folder: Path | None = None) -> Source:
    """Resolve a built-in name, a folder (it wins over a repository of the same name), or `org/name[@revision]`,
    also as the address of its page on the hub.

    Raises:
        ModelNotFoundError: it is none of these.
    """
    if page := _PAGE.fullmatch(name):
        name = page["id"] + (f"@{page['revision']}" if page["revision"] else "")
    if name in BUILT_IN:
        path = (built_in_folder or Path(__file__).parent) / name
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"The built-in model {name} is not part of this installation; "
                "name a folder or a Hugging Face repository such as mlx-community/Qwen3.5-2B-4bit instead."
            )
        return Source(name, path=path)
    try:
        path = Path(name).expanduser() if name.startswith("~") else Path(name)
        if name and path.is_dir():
            return Source(name, path=path.resolve())
        if name and path.exists():
            raise ModelNotFoundError(f"{name!r} is a file; name the folder that holds config.json and the weights.")
    except PermissionError as error:
        raise ModelNotFoundError(f"The folder {quoted(name)} cannot be read; check its permissions.") from error
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, an unknown user after `~`: not a folder
        pass
    if name.startswith(("/", "./", "../", "~")):
        raise ModelNotFoundError(f"There is no folder {quoted(name)}; check the path.")
    match = _REPO.fullmatch(name)
    if match is None or not is_repo(name):
        raise ModelNotFoundError(
            f"{quoted(name)} is not a model: name a built-in one ({', '.join(BUILT_IN)}), a folder, "
            "or a Hugging Face repository as org/name or org/name@revision."
        )
    return Source(name, repo=match["id"], revision=match["revision"])
