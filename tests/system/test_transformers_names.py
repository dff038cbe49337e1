"""What transformers looks up at its start is kept, equal to what it would find, and looked up again once it changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxkv.system.transformers_names import KeptNames, Names

_START = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from mlxkv.system import transformers_names
kept = Path(sys.argv[1])
transformers_names._file = lambda: kept
sys.dont_write_bytecode = False
transformers_names.keep()
transformers_names.keep()
from transformers import AutoTokenizer, PreTrainedTokenizerFast
assert not any(isinstance(each, transformers_names._Finder) for each in sys.meta_path)
from transformers.utils import import_utils
import transformers
look_up = import_utils.define_import_structure
models = Path(transformers.__file__).parent / "models"
num_opened = sum(path.startswith(str(models)) for path in opened)
kept = transformers_names.KeptNames(None, kept, look_up._state)._names
for key, names in kept.items():
    prefix, path = key.split(" ", 1)
    assert names == look_up._look_up(path, None if prefix == "None" else prefix), key
print(len(kept), num_opened)
"""
_NAMES: Names = {frozenset({"torch", "vision"}): {"albert.modeling": {"A", "B"}}, frozenset(): {"auto": {"C"}}}


def test_the_second_start_opens_few_files_and_finds_the_same(tmp_path: Path) -> None:
    def start() -> list[int]:
        made = subprocess.run(
            [sys.executable, "-c", _START, str(tmp_path / "new" / "kept.json")],
            check=True,
            capture_output=True,
            text=True,
        )  # fmt: skip
        return [int(n) for n in made.stdout.split()]

    (num_kept, first), (again, second) = start(), start()
    assert num_kept == again
    assert num_kept >= 2
    assert first > 3000
    assert second < 100


class _LookUp:
    """transformers' function."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, str | None]] = []

    def __call__(self, path: Any, prefix: str | None) -> Names:
        self.calls.append((path, prefix))
        return _NAMES


@pytest.fixture
def look_up(monkeypatch: pytest.MonkeyPatch) -> _LookUp:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return _LookUp()


def test_names_are_looked_up_once_for_each_folder_and_prefix(look_up: _LookUp, tmp_path: Path) -> None:
    for _ in range(2):
        names = KeptNames(look_up, tmp_path / "kept.json", "5.0")
        assert names("models") is names("models")
        assert names("models") == names(Path("models"), "models") == _NAMES
    assert look_up.calls == [("models", None), (Path("models"), "models")]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"[]", b"{", b"\xff", b'{"state": "5.0"}', b'{"state": "5.0", "names": 3}', b'{"state": "5.0", "names": []}']
    + [json.dumps({"state": "5.0", "names": {"None models": value}}).encode() for value in (3, [3], [[1, {}]])],
)
def test_a_damaged_file_is_as_good_as_none(damaged: bytes, look_up: _LookUp, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_bytes(damaged)
    assert KeptNames(look_up, file, "5.0")("models") == _NAMES
    assert look_up.calls == [("models", None)]


def test_another_transformers_is_looked_up_again(look_up: _LookUp, tmp_path: Path) -> None:
    for state in ("5.0", "5.1", "5.1"):
        KeptNames(look_up, tmp_path / "kept.json", state)("models")
    assert len(look_up.calls) == 2


def test_nothing_is_kept_where_nothing_may_be_written(
    look_up: _LookUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert KeptNames(look_up, tmp_path / "file" / "kept.json", "5.0")("models") == _NAMES
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert KeptNames(look_up, tmp_path / "kept.json", "5.0")("models") == _NAMES
    assert not (tmp_path / "kept.json").exists()
