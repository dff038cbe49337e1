"""Versions of mlxkv and of the packages it runs on, as the commands report them."""

from __future__ import annotations

from importlib import metadata

import mlxkv


def version(package: str) -> str:
    """The version of mlxkv that runs, which the metadata of an editable installation may lag behind, or of an installed
    package. Raises importlib.metadata.PackageNotFoundError."""
    return mlxkv.__version__ if package == "mlxkv" else metadata.version(package)
