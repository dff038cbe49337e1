"""Folders of other programs and of the user: what is listed of them, and that nothing in them is trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mlxkv.errors import ConfigError, ModelNotFoundError
from mlxkv.models import Hub
from mlxkv.models.files.architecture import quantization
from mlxkv.models.folders import MOST_ENTRIES, list_folder, lm_studio_folders
from mlxkv.models.groups import BUILT_IN_GROUP, INCOMPLETE, LM_STUDIO, RECENT, ModelGroup, full_name, model_groups
from mlxkv.settings.schema import Settings, change


def made(folder: Path, bits: int | None = 4, kind: str = "llama", weights: str = "model.safetensors") -> Path:
    """A folder as a model's looks from outside; its weights are never read."""
    folder.mkdir(parents=True)
    config = {"model_type": kind} | ({"quantization": {"bits": bits, "group_size": 64}} if bits else {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(b"x" * 1000)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def listed(folder: Path) -> list[str]:
    return [str(model.path.relative_to(folder)) for model in list_folder(folder, "").models]


def test_what_a_folder_of_lm_studio_holds(tmp_path: Path) -> None:
    made(tmp_path / "mlx-community" / "Qwen3-4B-4bit")
    made(tmp_path / "mlx-community" / "Half", weights="model-00001-of-00002.safetensors")
    made(tmp_path / "mlx-community" / "Seeing", kind="no_such_kind")
    for name, content in {
        "a/Q/q4.gguf": b"GGUF",
        "a/Empty/config.json": b"{}",
        "a/Diffusion/config.json": b"[]",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    found = list_folder(tmp_path, "LM Studio")
    assert [(model.path.name, model.size_bytes, model.quantization, model.problem) for model in found.models] == [
        ("Half", 1000, "4-bit", "lacks model-00002-of-00002.safetensors"),
        ("Qwen3-4B-4bit", 1000, "4-bit", ""),
        ("Seeing", 1000, "4-bit", "has the model_type no_such_kind, which this mlx-lm does not support"),
    ]
    assert found.note == "1 GGUF model left out: MLX reads safetensors"


def test_hostile_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "models" / "good one")
    models = tmp_path / "models"
    (models / "circle").symlink_to(models)
    (models / "nowhere").symlink_to(tmp_path / "gone")
    (models / "itself").symlink_to("itself")
    (models / "again").symlink_to(models / "good one")  # the same model twice
    deep = models / "a" / "b" / "c"
    made(deep / "d")  # deeper than a model lies
    os.mkfifo(made(models / "pipe") / "generation_config.json")
    (models / "piped").mkdir()
    os.mkfifo(models / "piped" / "config.json")
    (models / "piped" / "model.safetensors").write_bytes(b"x")
    assert [name.split("/")[-1] for name in listed(models)] == ["good one", "pipe"]

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    scan = os.scandir
    (models / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    assert list_folder(models, "").note == "1 folder cannot be read"
    assert list_folder(models / "locked", "").note == "cannot be read (Permission denied)"
    assert list_folder(tmp_path / "gone", "").note == "cannot be read (No such file or directory)"


def test_a_folder_with_too_many_entries_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_ENTRIES >= 10_000
    monkeypatch.setattr("mlxkv.models.folders.MOST_ENTRIES", 9)
    monkeypatch.setattr("mlxkv.models.folders.MOST_MODELS", 2)
    for i in range(4):
        made(tmp_path / f"m{i}")
    found = list_folder(tmp_path, "")
    assert len(found.models) <= 2
    assert found.note == "too many entries to list all"


def test_every_model_is_in_one_group(tmp_path: Path) -> None:
    home, mine = tmp_path / "user", tmp_path / "my models"
    studio = made(home / ".lmstudio" / "models" / "org" / "A")
    (home / ".cache").mkdir()
    (home / ".cache" / "lm-studio").symlink_to(home / ".lmstudio")  # an older version's folder is the same one
    own, other = made(mine / "B", bits=None), made(tmp_path / "elsewhere" / "C", bits=8)
    made(mine / "broken", weights="model-00001-of-00002.safetensors")
    used = ["org/gone", str(own), "/no/such/folder", str(other)]
    groups = model_groups(used, str(mine), home=home, hub=Hub(cache_dir=tmp_path / "hub"), current="tutor")
    assert [(group.name, [Path(model.id).name for model in group.models]) for group in groups] == [
        (RECENT, ["tutor", "B", "C"]),
        (LM_STUDIO, ["A"]),
        (INCOMPLETE, ["broken"]),
    ]
    assert groups[1].models[0].id == str(studio)
    alone = model_groups([], home=tmp_path, hub=Hub(cache_dir=tmp_path / "hub"))
    assert [group.name for group in alone] == [BUILT_IN_GROUP]
    far = model_groups([], "/no/such", home=tmp_path, hub=Hub(cache_dir=tmp_path / "hub"), current="/gone")
    assert far[0].models[0].problem == "the folder is missing"
    assert far[-1] == ModelGroup("/no/such", (), Path("/no/such"), "cannot be read (No such file or directory)")


def test_the_last_part_of_a_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    studio = made(tmp_path / ".lmstudio" / "models" / "org" / "Qwen3 4B")
    made(tmp_path / ".lmstudio" / "models" / "org" / "Twice")
    made(tmp_path / "mine" / "twice")

    def named(name: str) -> str:
        return full_name(name, str(tmp_path / "mine"), home=tmp_path, hub=Hub(cache_dir=tmp_path / "hub"))

    assert [named(name) for name in ("qwen3 4b", "tutor", "org/repo", "mine")] == [
        str(studio), "tutor", "org/repo", "mine"
    ]  # fmt: skip
    for name, why in (("twice", "Several models here are called twice: "), ("none", "'none' is not a model")):
        with pytest.raises(ModelNotFoundError, match=why):
            named(name)


def test_lm_studio_was_told_to_use_another_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "models").mkdir(parents=True)
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/elsewhere\n")
    assert lm_studio_folders(tmp_path) == (tmp_path / "elsewhere" / "models",)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"quantization": {"bits": 4}}, "4-bit"),
        ({"quantization": {"bits": 4, "mode": "affine"}}, "4-bit"),
        ({"quantization_config": {"bits": 4, "mode": "mxfp4"}}, "MXFP4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
        ({"torch_dtype": "bfloat16"}, "16-bit"),
        ({"quantization": {"bits": "\x1b[31m"}}, ""),
        ({"quantization": [4]}, ""),
    ],
)
def test_quantization(config: dict[str, object], text: str) -> None:
    assert quantization(config) == text


def test_the_setting_has_no_relative_folder() -> None:
    assert change(Settings(), {"model_dirs": "~/m:/Volumes/My Disk"}, str).model_dirs == "~/m:/Volumes/My Disk"
    with pytest.raises(ConfigError, match="begin with / or ~, separated by :"):
        change(Settings(), {"model_dirs": "models"}, str)
