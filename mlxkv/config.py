"""Where things lie and what the user set: flags > MLXKV_* variables > config.toml > defaults.

Read once by the command line and passed down; nothing here is read at import. Folders are made private (0700).
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
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
    max_tokens: int = 4096
    seed: int | None = None
    window: int | None = None
    sinks: int | str = "system"
    kv_bits: int | None = None
    theme: str = "textual-dark"
    plain: bool = False


_NONE = ("", "none", "auto")


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
        settings = _apply(settings, table, str(path))
    from_env = {f.name: env[f"MLXKV_{f.name.upper()}"] for f in fields(Settings) if f"MLXKV_{f.name.upper()}" in env}
    settings = _apply(settings, from_env, "environment variable MLXKV_{}")
    return _apply(settings, {k: v for k, v in (flags or {}).items() if v is not None}, "option --{}")


def _apply(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    known = {f.name: str(f.type) for f in fields(Settings)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{source} sets `{key}`, which is no setting; the settings are {', '.join(known)}.")
        settings = replace(settings, **{key: _convert(key, known[key], value, source)})
    return settings


def _convert(key: str, kind: str, value: Any, source: str) -> Any:
    where = source.format(key.upper() if "variable" in source else key.replace("_", "-"))
    if isinstance(value, str) and "None" in kind and value.lower() in _NONE:
        return None
    try:
        if "bool" in kind:
            if isinstance(value, bool):
                return value
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        if key == "sinks":
            return value if value == "system" else _integer(value)
        if kind.startswith("int"):
            return _integer(value)
        if kind.startswith("float"):
            return float(value)
        if isinstance(value, str):
            return value
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{where} is {value!r}, which is not a valid {kind.replace(' | None', '')} for `{key}`.")


def _integer(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)
