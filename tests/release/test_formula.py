"""The Homebrew formula: filled from the sdist it is for, and installing what that sdist holds."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tomllib
from pathlib import Path

import formula
import pytest
import yaml

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
    constraints = re.findall(r'"(--[a-z-]*constraint)", buildpath/"constraints.txt"', formula.filled(sdist))
    assert constraints == ["--constraint", "--build-constraint"]
    assert "constraints.txt" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]


BREW = """#!/bin/sh
case "$1" in
--repository) echo "$PWD/tap" ;;
tap-new) mkdir -p tap/Formula ;;
install) echo "installs" >> log; grep '^  url ' tap/Formula/mlxkv.rb >> log ;;
*) echo "$@" >> log ;;
esac
"""


def test_before_the_release_homebrew_installs_the_same_formula_from_the_sdist_at_hand(
    sdist: Path, tmp_path: Path
) -> None:
    """The commands of publish.yml, with a stand-in for brew."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    commands = workflow["jobs"]["formula"]["steps"][-1]["run"]
    for folder in ("bin", "dist", "notes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "brew").write_text(BREW, encoding="utf-8")
    (tmp_path / "bin" / "brew").chmod(0o755)
    (tmp_path / "notes" / "mlxkv.rb").write_text(formula.filled(sdist), encoding="utf-8")
    built = sdist.rename(tmp_path / "dist" / sdist.name)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == [
        "trust --formula mlxkv/check/mlxkv",
        "installs",
        f'  url "file://{built}"',
        "test mlxkv/check/mlxkv",
    ]
    released, tried = (
        (tmp_path / path).read_text(encoding="utf-8").splitlines()
        for path in ("notes/mlxkv.rb", "tap/Formula/mlxkv.rb")
    )
    assert [a for a, b in zip(released, tried, strict=True) if a != b] == [
        '  url "https://github.com/mlxkv/mlxkv/releases/download/v1.2.3/mlxkv-1.2.3.tar.gz"'
    ]
