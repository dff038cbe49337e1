"""Named prompt caches: one file each in `<cache>/prompts`: `<name>.kv`, or `<name>.safetensors` for an imported one.

A file by itself can be copied and needs no database; a name is checked by a rule that no path can pass, not escaped.
Files set aside lie in `damaged`. Needs no MLX. Any thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mlxkv.config import Folders, private_folder
from mlxkv.errors import ConfigError, CorruptError, StoreError, quoted
from mlxkv.safetensors import read_header
from mlxkv.store.files import Files, disk_usage, regular_size
from mlxkv.store.kv.disk_usage import DAMAGED, PROMPTS, CacheFolder, CheckSize, prompt_temporaries
from mlxkv.store.prompts.kv_file import describe_prompt_file, verify_prompt_file
from mlxkv.store.prompts.mlx_lm_file import describe_mlx_lm, made_with
from mlxkv.system.regular_file import opened, reason

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUFFIXES = (".kv", ".safetensors")


@dataclass(frozen=True)
class NamedCache:
    """One line of a list. `num_tokens` None: not known without reading it. `head` is the beginning of the text.

    `error` is a sentence where the file cannot be used; `is_imported` where mlx-lm made it, `made` is in UNIX seconds.
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


class PromptFolder:
    """The named prompt caches of this user. Raises ConfigError where the folder cannot be made private."""

    def __init__(self, folders: Folders) -> None:
        self.path = folders.cache / PROMPTS

    def new(self, name: str, *, imported: bool = False, replace: bool = False) -> Path:
        """Where to write a cache of this name; its folder exists then.

        Raises:
            ConfigError: it cannot be a name. StoreError: there is one of this name, and it may not be replaced.
        """
        _check_name(name)
        private_folder(self.path)
        if not replace and (found := self._find(name)) is not None:
            raise StoreError(f"There is a prompt cache {name!r} already ({found}); give --force to replace it.")
        return self.path / f"{name}{_SUFFIXES[imported]}"

    def forget_other(self, path: Path) -> None:
        """`path` was written: one of the same name and the other kind is replaced by it."""
        for suffix in _SUFFIXES:
            if suffix != path.suffix:
                Files().remove(path.with_name(path.name.removesuffix(path.suffix) + suffix))

    def find(self, name: str) -> Path:
        """The file of a name.

        Raises:
            StoreError: there is none; the message lists those there are.
        """
        if _NAME.fullmatch(name) and (found := self._find(name)) is not None:
            return found
        names = [path.name.removesuffix(path.suffix) for path in self._files()]
        known = f"there are {', '.join(names[:8])}" if names else "there are none yet; `mlxkv cache create` makes one"
        raise StoreError(f"No prompt cache is called {quoted(name)}; {known}.")

    def list(self) -> tuple[NamedCache, ...]:
        """By name."""
        return tuple(self.describe(path) for path in self._files())

    def describe(self, path: Path) -> NamedCache:
        """What a file says about itself, or why it cannot be used; its rows are not read."""
        return self._described(path, describe_prompt_file)

    def verify(self, path: Path) -> NamedCache:
        """The same, after every byte was compared with the checksum; mlx-lm's files have none."""
        return self._described(path, verify_prompt_file)

    def take_in(self, source: Path, path: Path, check_size: CheckSize) -> int:
        """Copy a file from elsewhere to `path` and return its bytes; `check_size` is called with them first.

        Raises:
            StoreError: it cannot be read or written, or does not fit; nothing was left behind.
        """
        try:
            with opened(source) as file:
                check_size(size := os.fstat(file.fileno()).st_size)
                return Files().write(path, _pieces(file, size), path.parent)
        except OSError as error:
            raise StoreError(f"{source} cannot be copied to {path} ({reason(error)}); check the disk.") from error

    def quarantine(self, path: Path) -> None:
        """Move a damaged file out of the way, so that its name is free. Raises StoreError."""
        private_folder(self.path / DAMAGED)
        with _changing(path):
            Files().move(path, self.path / DAMAGED / f"{path.name}.{int(time.time())}")

    def remove(self, path: Path) -> None:
        """Raises StoreError."""
        with _changing(path):
            Files().remove(path)

    def collect(self) -> int:
        """Remove what was set aside and what crashes left; the bytes freed."""
        before = disk_usage(self.path)
        for path in (*prompt_temporaries(self.path), *CacheFolder.at(self.path.parent).damaged()):
            with contextlib.suppress(OSError):
                Files().remove(path)
        return max(before - disk_usage(self.path), 0)

    def _described(self, path: Path, describe: Any) -> NamedCache:
        info = os.lstat(path)
        name = path.name.removesuffix(path.suffix)
        found = NamedCache(name, path, info.st_size, info.st_mtime, is_imported=path.suffix == ".safetensors")
        try:
            if found.is_imported:
                read_header(path, nofollow=True)
                _, _, user = describe_mlx_lm(path)
                return NamedCache(name, path, found.size, found.made, made_with(user), is_imported=True)
            about = describe(path)
        except CorruptError as error:
            return NamedCache(name, path, found.size, found.made, is_imported=found.is_imported, error=str(error))
        head = about["head"] if isinstance(about["head"], dict) else {}
        texts = {key: head[key] if isinstance(head.get(key), str) else None for key in ("system", "text")}
        config = about["config"] if isinstance(about["config"], dict) else None
        return NamedCache(
            name, path, found.size, found.made, str(about["model"]["name"]), about["num_tokens"], texts["system"],
            texts["text"], config,
        )  # fmt: skip

    def _find(self, name: str) -> Path | None:
        files = (self.path / f"{name}{suffix}" for suffix in _SUFFIXES)
        return next((path for path in files if regular_size(path) is not None), None)

    def _files(self) -> list[Path]:
        paths = [p for p in self._entries(self.path) if p.suffix in _SUFFIXES and regular_size(p) is not None]
        return sorted(p for p in paths if _NAME.fullmatch(p.name.removesuffix(p.suffix)))

    def _entries(self, folder: Path) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from list(folder.iterdir())


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be removed ({error.strerror}); check the folder.") from error


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    """No more than `size` bytes, though the file may be growing."""
    while size > 0 and (data := file.read(min(size, 1 << 20))):
        size -= len(data)
        yield data


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"A prompt cache cannot be called {name[:80]!r}; use up to 64 small letters, digits, dots, - and _."
        )
