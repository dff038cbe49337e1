"""The models of `make real-models`, loaded once per file; tests are skipped where one has not been made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mlxkv
from bench.real_weights import folder
from mlxkv.config import Folders
from mlxkv.model import Model

Run = Callable[..., str]


def real_folder(name: str) -> Path:
    path = folder(name)
    if path is None:
        pytest.skip(f"{name} has not been made: `make real-models` makes it")
    return path


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the models below, and of the commands that `run` runs."""
    return tmp_path_factory.mktemp("real")


def _loaded(name: str, home: Path) -> Iterator[Model]:
    model = mlxkv.load(real_folder(name), folders=Folders.from_env({"MLXKV_HOME": str(home)}))
    yield model
    model.close()


@pytest.fixture(scope="module")
def smollm2(module_home: Path) -> Iterator[Model]:
    """In bfloat16."""
    yield from _loaded("smollm2", module_home)


@pytest.fixture(scope="module")
def smollm2_4bit(module_home: Path) -> Iterator[Model]:
    yield from _loaded("smollm2-4bit", module_home)


@pytest.fixture(scope="module")
def gemma3(module_home: Path) -> Iterator[Model]:
    """In bfloat16."""
    yield from _loaded("gemma3", module_home)


@pytest.fixture
def run(module_home: Path) -> Run:
    """`mlxkv` in a process of its own: its stdout."""

    def run(*arguments: str | Path) -> str:
        environment = {**os.environ, "MLXKV_HOME": str(module_home)}
        command = [sys.executable, "-m", "mlxkv", *map(str, arguments)]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
