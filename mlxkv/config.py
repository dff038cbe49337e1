"""Folders, and the settings of options, MLXKV_* variables and config.toml.

Read once by the command line and passed down; nothing here is read at import. Folders are made private (0700), with
every missing one above them, as the XDG specification says; what exists keeps its mode.
A variable that is empty counts as not set, as with the XDG variables.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxkv.errors import ConfigError, DiskError, first_line, quoted, shortened
from mlxkv.settings.schema import Settings, change, schema
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.system.regular_file import read_text, reason, write_private

__all__ = [
    "Folders", "Settings", "load_settings", "load_sources", "make_folder", "parse_toml", "private_folder",
    "save_setting", "unknown_variable",
]  # fmt: skip

MAX_CONFIG = 1 << 20  # bytes of config.toml
_NO_SETTINGS = {
    f"MLXKV_{name}"
    for name in ("API_KEY", "HOME", "MEMORY_LIMIT", "PARENT_PIPE", "REAL_MODELS", "TERMINAL_MODE", "THOROUGH")
}  # fmt: skip
_LONG_KEY = re.compile(r"(?:[ \t]*\.[ \t]*[\"']?[\w-]{1,512}[\"']?){256}")  # tomllib takes minutes for longer ones


@dataclass(frozen=True)
class Folders:
    """`MLXKV_HOME` wins; else the XDG folders, on macOS too. Relative folders are below the current one."""

    config: Path  # config.toml
    data: Path  # chats
    cache: Path  # KV chunks, which can be recreated
    state: Path  # log, prompt history

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Folders:
        """Raises ConfigError: no home folder is known, or others can write to the one that MLXKV_HOME names."""
        env = os.environ if env is None else env
        home = env.get("MLXKV_HOME")
        try:
            root = Path(home or env.get("HOME") or Path.home()).expanduser().absolute()
        except (RuntimeError, OSError) as error:  # unknown user after `~`, user without an entry, no current folder
            raise ConfigError(
                f"The home folder {quoted(home) if home else ''} is unknown ({first_line(error)}); "
                "set MLXKV_HOME to a folder of your own."
            ) from error
        if home:
            _check_home(root)
            return cls(root / "config", root / "data", root / "cache", root / "state")

        def xdg(name: str, default: str) -> Path:
            value = env.get(name, "")
            base = Path(value) if value.startswith("/") else root / default
            return base / "mlxkv"

        return cls(
            xdg("XDG_CONFIG_HOME", ".config"),
            xdg("XDG_DATA_HOME", ".local/share"),
            xdg("XDG_CACHE_HOME", ".cache"),
            xdg("XDG_STATE_HOME", ".local/state"),
        )


def private_folder(path: Path) -> Path:
    """Create `path` (0700), and refuse a folder that others can write to.

    Raises:
        ConfigError: it is not a folder, cannot be created, or others can write to it. DiskError: the disk is full.
    """
    try:
        make_folder(path)
        info = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"The folder {path} cannot be created ({error.strerror}); free some disk space.") from error
        raise ConfigError(
            f"The folder {shortened(path)} cannot be used ({error.strerror}); set MLXKV_HOME to another folder."
        ) from error
    _check_owner_and_mode(path, info)
    return path


def make_folder(path: Path) -> None:
    """Create `path` and the missing folders above it, all with mode 0700: `Path.mkdir` leaves theirs to the umask.

    Raises:
        OSError: it cannot be created, or is not a folder.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _check_home(home: Path) -> None:
    """Refuse a home in which others could replace our folders; a sticky one, such as /tmp, does not let them.

    Raises:
        ConfigError: others can write to it.
    """
    try:
        info = home.stat()
    except OSError:
        return  # it will be created, or refused, with the folders in it
    if not info.st_mode & stat.S_ISVTX:
        _check_owner_and_mode(home, info)


def _check_owner_and_mode(path: Path, info: os.stat_result) -> None:
    """Raises ConfigError: others can write to the folder `path`."""
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"Others can write to {path}; run `chmod go-w {path}` or set MLXKV_HOME to a private folder.")
    if info.st_uid not in (me := os.getuid(), 0) and me != 0:
        raise ConfigError(f"{path} belongs to another user; set MLXKV_HOME to a folder of your own.")


def _read_config_file(path: Path) -> str:
    """The text of config.toml, "" if it does not exist. Raises OSError, UnicodeDecodeError."""
    try:
        return read_text(path, MAX_CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        return ""


def parse_toml(text: str) -> dict[str, Any]:
    """`tomllib.loads` that raises ValueError for every kind of invalid input.

    Raises:
        ValueError: not TOML, nested too deeply, a key of hundreds of parts, or a number with thousands of digits.
    """
    if _LONG_KEY.search(text):
        raise ValueError("a key has hundreds of parts")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason(error)) from error


def load_settings(
    folders: Folders, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """The settings in force outside any chat. Raises ConfigError: as `load_sources`."""
    return load_sources(folders, env, flags).settings


def load_sources(
    folders: Folders, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> SettingSources:
    """Read the settings of options, environment and config.toml.

    Raises:
        ConfigError: config.toml is not TOML, or a key or value is unknown; the message names file, key and value.
    """
    env = os.environ if env is None else env
    path = folders.config / "config.toml"
    try:
        table = parse_toml(_read_config_file(path))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{shortened(path)} is not valid TOML ({reason(error)}); correct or remove it.") from error
    config = _checked(table, lambda key: f"`{shortened(key)}` in {path}")
    names = {f"MLXKV_{s.name.upper()}": s.name for s in schema()}
    from_env = {key: env[name] for name, key in names.items() if env.get(name)}
    environment = _checked(from_env, lambda key: f"The environment variable MLXKV_{key.upper()}")
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    implied = {"adapter": "none"} if "model" in given else {}  # config.toml's belongs to another model
    options = {s.name: s.option.split(", ")[-1] for s in schema()}
    option = _checked(given, lambda key: f"The option {options.get(key, key)}")
    return SettingSources(option, environment, config=config, implied=implied)


def _checked(table: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """The values of a table, converted. Raises ConfigError."""
    changed = change(Settings(), table, where)
    return {name: getattr(changed, name) for name in table}


def unknown_variable(env: Mapping[str, str]) -> str:
    """A sentence on a variable that begins with MLXKV_ and that nothing reads, such as a misspelt one; else ""."""
    known = {f"MLXKV_{s.name.upper()}" for s in schema()} | _NO_SETTINGS
    unknown = next((name for name in sorted(env) if name.startswith("MLXKV_") and env[name] and name not in known), "")
    if not unknown:
        return ""
    import difflib  # only where there is one

    words = {s.slash.replace("-", "_").upper(): f"MLXKV_{s.name.upper()}" for s in schema() if s.slash}
    words |= {name.removeprefix("MLXKV_"): name for name in known}
    near = difflib.get_close_matches(unknown.removeprefix("MLXKV_").upper(), words, 1)
    advice = f"did you mean {words[near[0]]}?" if near else "`/set` in the chat lists the settings."
    return f"The environment variable {shortened(unknown)} is no setting and is ignored; {advice}"


def save_setting(folders: Folders, name: str, value: Any) -> Path:
    """Write `name = value` into config.toml; "none" for None. The rest of the file stays unchanged.

    Raises:
        ConfigError: the file is not TOML, or cannot be written: then it is unchanged.
    """
    path = folders.config / "config.toml"
    private_folder(folders.config)
    try:
        write_private(path, with_setting(_read_config_file(path), name, value))
    except ValueError as error:
        raise ConfigError(f"{shortened(path)} is not valid TOML ({reason(error)}); correct or remove it.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); the setting lasts until you quit.") from error
    return path


def with_setting(text: str, name: str, value: Any) -> str:
    """`text` with the top-level key `name` set.

    Raises:
        ValueError: `text` is not TOML.
    """
    import tomlkit  # only where a setting is saved

    parse_toml(text)
    document = tomlkit.parse(text)
    document[name] = "none" if value is None else value
    return tomlkit.dumps(document)
