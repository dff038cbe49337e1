"""Export formats, chosen by an option or else by the suffix of the file. Any thread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mlxkv.errors import ConfigError, StoreError

CHAT_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".md": "md", ".markdown": "md", ".json": "json", ".mlxkv": "mlxkv"}
)
CHAT_FORMATS = tuple(dict.fromkeys(CHAT_SUFFIXES.values()))  # the first is the default
CACHE_SUFFIXES: Mapping[str, str] = MappingProxyType({".safetensors": "mlx-lm", ".kv": "kv"})
CACHE_FORMATS: Mapping[str, str] = MappingProxyType(  # and the version of mlx-lm that reads it
    {"mlx-lm": "0.32", "mlx-lm-0.32": "0.32", "mlx-lm-0.31": "0.31", "kv": ""}
)


def export_format(
    asked: str | None,
    path: Path | None,
    suffixes: Mapping[str, str],
    formats: Sequence[str] = (),
    *,
    force: bool = True,
) -> str:
    """The format for `path` (None: stdout): `asked` if given, else by suffix, else the first format.

    Raises:
        ConfigError: `asked` is not in `formats`, or the suffix of `path` not in `suffixes`. StoreError: `path` exists.
    """
    if asked is not None and asked not in formats:
        raise ConfigError(f"The option --format is {asked!r}; it must be {one_of(formats)}.")
    if path is not None and not force and os.path.exists(path):
        raise StoreError(f"{path} exists already; give --force to replace it.")
    if asked:
        return asked
    suffix = path.suffix if path is not None else ""
    if not suffix:
        return next(iter(suffixes.values()))
    if suffix.lower() not in suffixes:
        raise ConfigError(f"{path} ends in {suffix}, which names no format; end it in {one_of(tuple(suffixes))}.")
    return suffixes[suffix.lower()]


def one_of(names: Sequence[str]) -> str:
    """`a, b or c`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
