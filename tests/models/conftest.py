"""What the tests of models share: the fake hub with a cache of its own, and a small real model to change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.models import Hub
from tests.fakes_hub import FakeHub, serve
from tests.safetensors_files import encode


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    """A repository with one weights file of 3 MB, small files, and files that must never be fetched."""
    data = bytes(range(256)) * 4 * 3000
    weights = encode({"w": ("U8", (len(data),), data)}, {})
    files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"hello",
        "model.safetensors": weights,
        "README.md": b"# hi",
        "modeling_evil.py": b"raise SystemExit",
        "tokenizer_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "model.gguf": b"gguf",
        "consolidated.safetensors": b"the same again",
        "original/model.safetensors": b"the same again",
    }
    with serve(FakeHub(files=files)) as hub:
        yield hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub reads HF_HUB_OFFLINE once, at import; undo what conftest's value made of it. Only 127.0.0.1 is asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(fake: FakeHub, online: None, tmp_path: Path) -> Hub:
    return Hub(endpoint=fake.endpoint, cache_dir=tmp_path / "hub")


@pytest.fixture
def model_folder(stories_path: Path, tmp_path: Path) -> Path:
    """A copy of the real model to be changed by a test."""
    folder = tmp_path / "model"
    shutil.copytree(stories_path, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700)
    return folder
