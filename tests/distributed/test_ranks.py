"""Two processes on loopback give the tokens of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlxkv
from tests.distributed import scenario
from tests.distributed.ranks import folder_of, ranks


@pytest.mark.slow
def test_two_processes_give_the_tokens_of_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    splits = {"llama": "auto", "qwen3_5": "pipeline"}
    models = {name: folder_of(name, tmp_path / name) for name in splits}
    output = tmp_path / "out.json"
    asked = [f"{models[name]}:{split}" for name, split in splits.items()]
    with ranks(2, tmp_path, str(Path(scenario.__file__)), str(output), *asked) as started:
        expected = {}
        for name, folder in models.items():
            with mlxkv.load(folder) as model:
                expected[name] = scenario.replies(model)
        messages = [process.communicate()[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], messages
    found = json.loads(output.read_text())
    for (name, replies), key in zip(expected.items(), asked, strict=True):
        assert found[key].pop("kind") == {"llama": "tensor"}.get(name, "pipeline")
        assert found[key] == replies, name
