"""What every test shares: a home of its own, no network, and the real weights where they are at hand."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from mlxkv.model import Model

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "testdata"

settings.register_profile(
    "ci",
    derandomize=True,  # the same examples on every run: a red build is always reproducible
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`MLXKV_HOME` points at a temporary folder in every test, and the hub is out of reach.

    Chunks of a prefill are not measured: on a busy machine they would change between two that are compared exactly.
    """
    folder = tmp_path / "home"
    monkeypatch.setenv("MLXKV_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLXKV_PREFILL_CHUNK", "512")
    return folder


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """MLX compiles no functions: on a CPU that takes a C++ compiler over a second each, once per machine."""
    import mlx.core as mx

    mx.disable_compile()
    yield
    if "MLX_DISABLE_COMPILE" not in os.environ:
        mx.enable_compile()


@pytest.fixture(scope="session")
def stories_path() -> Path:
    """Real trained weights of 1 MB (see shared/testdata/README.md)."""
    path = SHARED / "stories260K"
    if not path.is_dir():
        pytest.skip("shared/testdata is not beside this checkout: no real weights")
    return path


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random chat model of two layers, in a folder."""
    from tests.tokenizers import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(tiny_path: Path) -> Iterator[Model]:
    """The random chat model, loaded."""
    import mlxkv

    loaded = mlxkv.load(str(tiny_path))
    yield loaded
    loaded.close()


def pytest_collection_finish() -> None:
    """Take 8,000 collected tests out of every later garbage collection: a twelfth of the CPU time of tests of chats."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Let Ctrl+C reach the programs of tests: what a shell starts with `&` ignores SIGINT, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
