"""What type checkers see: the sampling keywords are those of SamplingParams, and mistakes in a script are found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import SupportsFloat, SupportsIndex, get_type_hints

import pytest

import mlxkv
from mlxkv.inference.sampling import SAMPLING, SamplingParams
from mlxkv.inference.sampling_types import Sampling

SCRIPT = Path(__file__).parent / "fixtures" / "typing" / "script.py"
AS_ARGUMENT = {  # a type of SamplingParams: what a caller may give for it; None is left out
    float: SupportsFloat | SupportsIndex | None,
    int: SupportsIndex | None,
    int | None: SupportsIndex | None,
    float | None: SupportsFloat | SupportsIndex | None,
    tuple[str, ...]: str | Iterable[str] | None,
}


def test_the_keywords_are_the_fields_of_sampling_params() -> None:
    fields, keywords = get_type_hints(SamplingParams), get_type_hints(Sampling)
    hooks = importlib.util.find_spec("mlxkv.inference.hooks")
    others = () if hooks is None else importlib.import_module("mlxkv.inference.hooks").HOOKS
    assert keywords.keys() == {*SAMPLING, *others}
    assert Sampling.__required_keys__ == frozenset()
    for name in SAMPLING:
        assert keywords[name] == AS_ARGUMENT.get(fields[name], fields[name] | None), name


@pytest.mark.parametrize("method", ["generate", "stream", "generate_batch", "stream_batch", "chat", "resume"])
def test_every_method_with_sampling_says_so(method: str) -> None:
    assert "Sampling" in getattr(mlxkv.Model, method).__annotations__["sampling"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="the group lint is not installed: make lint")
def test_pyright_finds_the_nine_mistakes_of_a_script(tmp_path: Path) -> None:
    """Outside this repository and its settings, as a user's pyright sees the installed package."""
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    expected = [number for number, line in enumerate(lines, 1) if "# mistake: " in line]
    (copy := tmp_path / "script.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, copy.name]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found: Mapping[int, str] = {
        error["range"]["start"]["line"] + 1: error["message"] for error in json.loads(run.stdout)["generalDiagnostics"]
    }
    assert sorted(found) == expected, found
    assert len(expected) == 9
