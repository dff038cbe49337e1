"""Two processes on loopback give the tokens of one, and resume a chat from the rows that each of them saved.

One test, since starting the processes is what takes time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    with ranks(2, tmp_path, str(Path(scenario.__file__)), str(output), str(tmp_path / "home-1"), *asked) as started:
        expected, alone = {}, {}
        for name, folder in models.items():
            with mlxkv.load(folder) as model:
                expected[name] = scenario.replies(model)
            alone[name] = scenario.resumed_alone(str(folder))
        messages = [process.communicate()[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], messages
    found = json.loads(output.read_text())
    for (name, replies), key in zip(expected.items(), asked, strict=True):
        assert found[key].pop("kind") == {"llama": "tensor"}.get(name, "pipeline")
        _check_resumed(found[key].pop("resumed"), alone[name])
        assert found[key] == replies, name


def _check_resumed(found: dict[str, Any], alone: list[dict[str, Any]]) -> None:
    """What one process has lost, both prefill, and the replies are those of a chat on one process."""
    steps = list(found["steps"].values())
    assert [step["text"] for step in steps] == [step["text"] for step in alone[: len(steps)]]
    intact = found["steps"]["intact"]
    assert intact["restored"] == alone[1]["restored"] == intact["log"] - 1  # the last token was never fed
    assert intact["notice"] is None
    for step in (found["steps"][name] for name in ("deleted", "damaged") if name in found["steps"]):
        assert 0 < step["restored"] == step["first"] < step["log"]
        assert "(rank 1), part of the saved KV cache could not be restored" in step["notice"]
    if whole := found["steps"].get("on one"):  # each takes no rows of the other
        assert whole["restored"] == 0
        assert "`shard` differs" in whole["notice"]
        again = found["steps"]["split again"]
        assert again["restored"] == whole["log"] - 1
        assert "in no file" in found["refusal"]
        assert found["left"] == 0
