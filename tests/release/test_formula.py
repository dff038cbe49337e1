"""The Homebrew formula: filled from the sdist it is for, and installing what that sdist holds."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import formula
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    path = tmp_path / "mlxkv-1.2.3.tar.gz"
    path.write_bytes(b"an sdist")
    return path


def test_version_and_checksum_are_the_sdists(sdist: Path) -> None:
    text = formula.filled(sdist)
    address = "https://github.com/mlxkv/mlxkv/releases/download/v1.2.3/mlxkv-1.2.3.tar.gz"
    assert f'  url "{address}"\n  sha256 "{hashlib.sha256(b"an sdist").hexdigest()}"\n' in text
    assert "@" not in text.replace("python@3.13", "").replace("@rpath", "")


@pytest.mark.parametrize("name", ["mlxkv-1.2.3-py3-none-any.whl", "other-1.2.3.tar.gz", "mlxkv.tar.gz"])
def test_another_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is not named mlxkv-VERSION.tar.gz")):
        formula.filled(tmp_path / name)


def test_it_installs_with_a_python_and_constraints_that_the_project_has(sdist: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    python = re.search(r'depends_on "python@(3\.\d+)"', formula.filled(sdist))
    assert python
    assert f"Programming Language :: Python :: {python[1]}" in project["project"]["classifiers"]
    assert f'system "python{python[1]}"' in formula.filled(sdist)
    assert 'buildpath/"constraints.txt"' in formula.filled(sdist)
    assert "constraints.txt" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
