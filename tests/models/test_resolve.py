"""What a name means, before anything is read or fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.errors import ModelNotFoundError
from mlxkv.models import resolve


def test_repository() -> None:
    assert (resolve("org/name").repo, resolve("org/name").revision) == ("org/name", None)
    for page in ("https://huggingface.co/org/name", "hf.co/org/name/", "https://huggingface.co/org/name/tree/main"):
        found = resolve(page)
        assert (found.name.partition("@")[0], found.repo, found.revision) in (
            ("org/name", "org/name", None), ("org/name", "org/name", "main"),
        )  # fmt: skip
    for other in ("https://example.com/org/name", "https://huggingface.co/datasets/org/name"):
        with pytest.raises(ModelNotFoundError):
            resolve(other)
    source = resolve("mlx-community/Qwen3-0.6B-4bit@refs/pr/1")
    assert (source.repo, source.revision, source.path) == ("mlx-community/Qwen3-0.6B-4bit", "refs/pr/1", None)


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tmp_path)).path == tmp_path.resolve()
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").path == (tmp_path / "org" / "name").resolve()  # it wins over the repository
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org").path == (tmp_path / "org").resolve()


def test_built_in(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="built-in model tutor is not part of this installation"):
        resolve("tutor", built_in_folder=tmp_path)
    (tmp_path / "tutor").mkdir()
    (tmp_path / "tutor" / "config.json").write_text("{}")
    assert resolve("tutor", built_in_folder=tmp_path).path == tmp_path / "tutor"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpt",
        "/no/such",
        "./no",
        "../no",
        "~/no",
        "a/b/c",
        "a/b@",
        "a b/c",
        "a/../b",
        "-a/b",
        "a/b@../../x",
        "a\0b/c",
    ],
)
def test_no_model(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert str(caught.value).endswith(".")
    assert "\0" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"))
