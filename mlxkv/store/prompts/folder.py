"""Named prompt caches: one file each in `<cache>/prompts`: `<name>.kv`, or `<name>.safetensors` for an imported one.

A file needs no database and can be copied; names follow a rule that no path matches. Damaged files are moved to the
folder `damaged`. Needs no MLX. Any thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxkv.config import Folders, private_folder
from mlxkv.errors import ConfigError, CorruptError, StoreError, quoted
from mlxkv.safetensors.header import read_header
from mlxkv.store.files import Files, disk_usage, pieces, regular_size
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.kv.disk_usage import DAMAGED, PROMPTS, CacheFolder, CheckSize, entries, prompt_temporaries
from mlxkv.store.prompts.kv_file import describe_prompt_file, verify_prompt_file
from mlxkv.store.prompts.mlx_lm_file import describe_mlx_lm, made_with
from mlxkv.system.regular_file import opened, reason

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUFFIXES = (".kv", ".safetensors")


@dataclass(frozen=True)
class NamedCache:
    """One entry of a list. `num_tokens` None: unknown without reading the rows. `head` is the beginning of the text.

    `error` is a sentence if the file cannot be used, `is_imported` true if mlx-lm made it, `made` is in UNIX seconds.
    `row_bytes` and `state_bytes` (recurrent layers) are parts of `size`, 0 in an imported one.
    """

    name: str
    path: Path
    size: int
    made: float
    model: str = ""
    num_tokens: int | None = None
    system: str | None = None
    head: str | None = None
    config: dict[str, Any] | None = None
    is_imported: bool = False
    error: str | None = None
    row_bytes: int = 0
    state_bytes: int = 0
    adapter: str | None = None


class PromptFolder:
    """The named prompt caches of this user. Raises ConfigError if the folder cannot be made private."""

    def __init__(self, folders: Folders) -> None:
        self.path = folders.cache / PROMPTS

    def new(self, name: str, *, imported: bool = False, replace: bool = False) -> Path:
        """The path to write a cache of this name to; makes the folder.

        Raises:
            ConfigError: the name is not allowed. StoreError: it exists, and `replace` is False.
        """
        _check_name(name)
        private_folder(self.path)
        if not replace and (found := self._find(name)) is not None:
            raise StoreError(f"There is a prompt cache {name!r} already ({found}); give --force to replace it.")
        return self.path / f"{name}{_SUFFIXES[imported]}"

    def rename(self, old: str, new: str) -> None:
        """Raises ConfigError: the new name is not allowed. StoreError: there is no `old`, or there is a `new` one."""
        path = self.find(old)
        _check_name(new)
        if (found := self._find(new)) is not None:
            raise StoreError(f"There is a prompt cache {new!r} already ({found}); choose another name.")
        with _changing(path, "renamed"):
            Files().move(path, path.with_name(f"{new}{path.suffix}"))

    def remove_replaced(self, path: Path) -> None:
        """Remove the cache of the same name and the other kind, which the new file `path` replaces."""
        for suffix in _SUFFIXES:
            if suffix != path.suffix:
                Files().remove(path.with_name(path.name.removesuffix(path.suffix) + suffix))

    def find(self, name: str) -> Path:
        """The file of a name.

        Raises:
            StoreError: there is none; the message lists the names that exist.
        """
        if _NAME.fullmatch(name) and (found := self._find(name)) is not None:
            return found
        names = [path.name.removesuffix(path.suffix) for path in self._files()]
        known = f"there are {', '.join(names[:8])}" if names else "there are none yet; `mlxkv cache create` makes one"
        raise StoreError(f"No prompt cache is called {quoted(name)}; {known}.")

    def list(self) -> tuple[NamedCache, ...]:
        """All caches, sorted by name."""
        return tuple(self.describe(path) for path in self._files())

    def describe(self, path: Path) -> NamedCache:
        """The description in a file's header, or the reason it cannot be used; reads no rows."""
        return self._described(path, describe_prompt_file)

    def verify(self, path: Path) -> NamedCache:
        """`describe`, after verifying the checksum of every byte; mlx-lm's files have none."""
        return self._described(path, verify_prompt_file)

    def copy_in(self, source: Path, path: Path, check_size: CheckSize) -> int:
        """Copy the file `source` to `path` and return its size, with which `check_size` is called first.

        Raises:
            StoreError: it cannot be read or written, or does not fit; nothing was left behind.
        """
        try:
            with opened(source) as file:
                check_size(size := os.fstat(file.fileno()).st_size)
                return Files().write(path, pieces(file, size), path.parent)  # it may be growing
        except OSError as error:
            raise StoreError(f"{source} cannot be copied to {path} ({reason(error)}); check the disk.") from error

    def quarantine(self, path: Path) -> None:
        """Move a damaged file to the folder `damaged`, so that its name is free. Raises StoreError."""
        private_folder(self.path / DAMAGED)
        with _changing(path):
            Files().move(path, self.path / DAMAGED / f"{path.name}.{int(time.time())}")

    def remove(self, path: Path) -> None:
        """Remove a cache. Raises StoreError."""
        with _changing(path):
            Files().remove(path)

    def collect(self) -> int:
        """Remove damaged files and those that crashes left; returns the bytes freed."""
        before = disk_usage(self.path)
        for path in (*prompt_temporaries(self.path), *CacheFolder.at(self.path.parent).damaged()):
            with contextlib.suppress(OSError):
                Files().remove(path)
        return max(before - disk_usage(self.path), 0)

    def _described(self, path: Path, describe: Callable[[Path], dict[str, Any]]) -> NamedCache:
        info = os.lstat(path)
        name, is_imported = path.name.removesuffix(path.suffix), path.suffix == ".safetensors"
        found = NamedCache(name, path, info.st_size, info.st_mtime, is_imported=is_imported)
        try:
            if is_imported:
                read_header(path, nofollow=True)
                return replace(found, model=made_with(describe_mlx_lm(path)[2]))
            about = describe(path)
        except CorruptError as error:
            return replace(found, error=str(error))
        head = about["head"] if isinstance(about["head"], dict) else {}
        system, text = (head[key] if isinstance(head.get(key), str) else None for key in ("system", "text"))
        return replace(
            found, model=str(about["model"]["name"]), num_tokens=about["num_tokens"], system=system, head=text,
            adapter=ModelIdentity(**about["model"]).adapter,
            config=about["config"], row_bytes=about["row_bytes"], state_bytes=about["state_bytes"],
        )  # fmt: skip

    def _find(self, name: str) -> Path | None:
        files = (self.path / f"{name}{suffix}" for suffix in _SUFFIXES)
        return next((path for path in files if regular_size(path) is not None), None)

    def _files(self) -> list[Path]:
        paths = [p for p in entries(self.path) if p.suffix in _SUFFIXES and regular_size(p) is not None]
        return sorted(p for p in paths if _NAME.fullmatch(p.name.removesuffix(p.suffix)))


@contextlib.contextmanager
def _changing(path: Path, what: str = "removed") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be {what} ({error.strerror}); check the folder.") from error


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"A prompt cache cannot be called {name[:80]!r}; use up to 64 lower-case letters, digits, dots, - and _."
        )
