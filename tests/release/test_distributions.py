"""What `make dist` refuses; what it accepts, `.ci/run` shows with the real files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import distributions
import pytest


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path


def test_two_wheels_are_compared_by_their_bytes(tmp_path: Path) -> None:
    one, same = zipped(tmp_path / "a", x="1", y="2"), zipped(tmp_path / "b", x="1", y="2")
    assert distributions.changed_members(one, same) == []
    assert distributions.changed_members(one, zipped(tmp_path / "c", x="1", y="3", z="")) == ["y", "z"]
    assert distributions.changed_members(one, zipped(tmp_path / "d", y="2", x="1")) == ["the archive itself"]


def test_a_file_that_is_not_committed_and_one_that_is_missing_are_named() -> None:
    assert distributions.differences("the wheel", {"a", "b"}, {"b", "c"}) == [
        "the wheel has a, which is not committed",
        "the wheel lacks c",
    ]


def test_a_distribution_holds_what_is_committed_without_links_and_training() -> None:
    if not (distributions.ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    names = distributions.committed("mlxkv", "models")
    assert {"mlxkv/model.py", "models/tutor/model.safetensors"} <= names
    assert not names & {"mlxkv/tui", "mlxkv/models", "models/training/train.py"}
    assert distributions.installed_name("models/loading/load.py") == "mlxkv/models/loading/load.py"
    assert distributions.installed_name("mlxkv/model.py") == "mlxkv/model.py"
