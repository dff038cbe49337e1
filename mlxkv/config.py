"""Where things lie and what the user set: flags > MLXKV_* variables > config.toml > defaults.

Read once by the command line and passed down; nothing here is read at import. Folders are made private (0700).
A variable that is empty counts as not set, as with the XDG variables.
"""

from __future__ import annotations

import math
import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mlxkv.errors import ConfigError


@dataclass(frozen=True)
class Folders:
    """`MLXKV_HOME` wins; else the XDG folders, on macOS too."""

    config: Path  # config.toml
    data: Path  # chats: the truth
    cache: Path  # KV chunks: disposable
    state: Path  # log, prompt history

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Folders:
        env = os.environ if env is None else env
        if home := env.get("MLXKV_HOME"):
            root = Path(home).expanduser()
            return cls(root / "config", root / "data", root / "cache", root / "state")
        user = Path(env.get("HOME") or Path.home())

        def xdg(name: str, default: str) -> Path:
            value = env.get(name, "")
            base = Path(value) if value.startswith("/") else user / default
            return base / "mlxkv"

        return cls(
            xdg("XDG_CONFIG_HOME", ".config"),
            xdg("XDG_DATA_HOME", ".local/share"),
            xdg("XDG_CACHE_HOME", ".cache"),
            xdg("XDG_STATE_HOME", ".local/state"),
        )


def private_folder(path: Path) -> Path:
    """Make `path` (0700) and refuse one that others can write to.

    Raises:
        ConfigError: it is not a folder, cannot be made, or others may write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
    except OSError as error:
        raise ConfigError(
            f"The folder {path} cannot be used ({error.strerror}); set MLXKV_HOME to one that can."
        ) from error
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"Others may write to {path}; run `chmod go-w {path}` or set MLXKV_HOME to a private folder.")
    if info.st_uid not in (me := os.getuid(), 0) and me != 0:
        raise ConfigError(f"{path} belongs to another user; set MLXKV_HOME to a folder of your own.")
    return path


@dataclass(frozen=True)
class Settings:
    """Every setting a user can write into config.toml; None means "decided from the model"."""

    model: str | None = None
    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    window: int | None = None
    sinks: int | str = "system"
    kv_bits: int | None = None
    disk_limit: float | None = 20.0  # GB of KV cache on disk; None for as much as the disk has
    theme: str = "textual-dark"
    plain: bool = False

    @property
    def bounds_cache(self) -> bool:
        """Whether the user set anything about the cache; else a resumed chat keeps its own bounds."""
        return (self.window, self.sinks, self.kv_bits) != (None, "system", None)

    @property
    def disk_limit_bytes(self) -> int | None:
        return None if self.disk_limit is None else int(self.disk_limit * 1e9)

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters, None where the user chose nothing."""
        names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names}


_NONE = ("", "none", "auto")
_YES_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def load_settings(
    folders: Folders, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Merge the four sources.

    Raises:
        ConfigError: config.toml is not TOML, or a key or value is unknown; the message names file, key and value.
    """
    env = os.environ if env is None else env
    settings = Settings()
    path = folders.config / "config.toml"
    if path.is_file():
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path} cannot be read as TOML ({error}); mend or remove it.") from error
        settings = _apply(settings, table, lambda key: f"`{key}` in {path}")
    names = {f"MLXKV_{f.name.upper()}": f.name for f in fields(Settings)}
    from_env = {key: env[name] for name, key in names.items() if env.get(name)}
    settings = _apply(settings, from_env, lambda key: f"The environment variable MLXKV_{key.upper()}")
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    return _apply(settings, given, lambda key: f"The option --{key.replace('_', '-')}")


def _apply(settings: Settings, values: Mapping[str, Any], where: Callable[[str], str]) -> Settings:
    """`where` names a key of this source for a message."""
    kinds = {f.name: str(f.type) for f in fields(Settings)}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{where(key)} is no setting; the settings are {', '.join(kinds)}.")
        try:
            settings = replace(settings, **{key: _convert(key, kinds[key], value)})
            if key == "disk_limit" and settings.disk_limit is not None and not 0 <= settings.disk_limit < math.inf:
                raise ValueError(value)
        except (ValueError, KeyError, OverflowError) as error:
            raise ConfigError(f"{where(key)} is {value!r}; it must be {_rule(key, kinds[key])}.") from error
    return settings


def _convert(key: str, kind: str, value: Any) -> Any:
    if isinstance(value, str) and "None" in kind and value.lower() in _NONE:
        return None
    if kind == "bool":
        return value if isinstance(value, bool) else _YES_NO[str(value).lower()]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    if key == "sinks" and value == "system":
        return value
    if kind.startswith("int"):
        return _integer(value)
    if kind.startswith("float"):
        return float(value)
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _integer(value: float | str) -> int:
    """Whole numbers exactly: a seed has up to 64 bits, more than a float can hold."""
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError(value)
    return number


def _rule(key: str, kind: str) -> str:
    if key == "disk_limit":
        return 'a number of GB, 0 to keep none, or "none" for no limit'
    if key == "sinks":
        return 'a whole number or "system"'
    rule = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}[kind.split(" ")[0]]
    return f'{rule}, or "none"' if "None" in kind else rule
