"""Keeps what transformers looks up at each start: which of its files defines which name.

Whenever it is imported, transformers opens 1,700 of its files, each of them twice: a third of the time that a command
with a model takes to start. The answer is kept beside this module's bytecode until transformers changes.
Any thread.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxkv.system.regular_file import read_json, write_private

Names = dict[frozenset[str], dict[str, set[str]]]  # by what they need, and by the module that has them
_MOST_BYTES = 16 << 20
_MODULE, _FUNCTION = "transformers.utils.import_utils", "define_import_structure"


def keep() -> None:
    """Keep them from the next import of transformers on; before every first import of it or mlx-lm."""
    if "transformers" not in sys.modules and not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Has the module that looks the names up loaded by `_Loader`; out of the way afterwards."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        with suppress(ValueError):  # another thread was first
            sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        look_up, release = getattr(module, _FUNCTION, None), getattr(sys.modules["transformers"], "__version__", "dev")
        if look_up is not None and "dev" not in release:  # in a working copy, files change
            with suppress(OSError, NotImplementedError):  # a Python that keeps no bytecode has no place for it
                state = f"{release} {self.path} {Path(self.path).stat().st_mtime_ns}"
                setattr(module, _FUNCTION, KeptNames(look_up, _file(), state))


class KeptNames:
    """Called like transformers' function, which it calls for what is not kept.

    Args:
        file: where they are kept. A file that is damaged or cannot be written is as good as none.
        state: of transformers; names kept in another one are looked up again.
    """

    def __init__(self, look_up: Callable[[Any, str | None], Names], file: Path, state: str) -> None:
        self._look_up, self._file, self._state = look_up, file, state
        self._names: dict[str, Names] = {}  # which transformers changes
        self._rows: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = read_json(file, _MOST_BYTES)
            if kept["state"] == state:
                self._names = {key: _names(rows) for key, rows in kept["names"].items()}
                self._rows = kept["names"]

    def __call__(self, module_path: Any, prefix: str | None = None) -> Names:
        key = f"{prefix} {module_path}"
        if key not in self._names:
            self._names[key] = names = self._look_up(module_path, prefix)
            self._rows[key] = [
                [sorted(needs), {name: sorted(found) for name, found in table.items()}]
                for needs, table in names.items()
            ]
            self._keep()
        return self._names[key]

    def _keep(self) -> None:
        if not sys.dont_write_bytecode:
            with suppress(OSError):
                self._file.parent.mkdir(exist_ok=True)
                write_private(self._file, json.dumps({"state": self._state, "names": self._rows}))


def _names(rows: Any) -> Names:
    return {frozenset(needs): {name: set(found) for name, found in table.items()} for needs, table in rows}


def _file() -> Path:
    return Path(importlib.util.cache_from_source(__file__)).with_suffix(".json")
