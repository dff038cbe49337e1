"""A chat on two processes is resumed from the rows that each of them saved; what one lacks, both prefill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed import resume_scenario
from tests.distributed.ranks import folder_of, ranks
from tests.distributed.resume_scenario import QUESTIONS, begin, resumed


@pytest.mark.slow
def test_every_process_saves_and_restores_its_part(tmp_path: Path) -> None:
    splits = {"llama": "tensor", "qwen3_5": "pipeline"}
    models = {name: folder_of(name, tmp_path / name) for name in splits}
    output, asked = tmp_path / "out.json", [f"{models[name]}:{split}" for name, split in splits.items()]
    script = str(Path(resume_scenario.__file__))
    with ranks(2, tmp_path, script, str(output), str(tmp_path / "home-1"), *asked) as started:
        alone = {}
        for name, folder in models.items():
            session_id, replies = begin(str(folder), None)
            turns = [resumed(str(folder), None, session_id, question) for question in QUESTIONS[2:]]
            alone[name] = replies, turns
        messages = [process.communicate()[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], messages
    results = json.loads(output.read_text())
    for (name, (replies, turns)), key in zip(alone.items(), asked, strict=True):
        found = results[key]
        intact, deleted, damaged, whole = (found[step] for step in ("intact", "deleted", "damaged", "whole"))
        assert found["replies"] == replies, name
        assert [step["text"] for step in (intact, deleted, damaged, whole)] == [turn["text"] for turn in turns], name
        assert (intact["restored"], intact["notice"]) == (turns[0]["restored"], None)
        assert intact["restored"] == intact["log"] - 1  # all but the last token, which was never fed
        for step in (deleted, damaged):
            assert 0 < step["restored"] == step["first"] < step["log"]
            assert "(rank 1), part of the saved KV cache could not be restored" in step["notice"]
        assert whole["restored"] == 0
        assert "`shard` differs" in whole["notice"]
        assert "in no file" in found["file"]
        assert found["left"] == 0
    again = results[asked[0]]  # of the rows that a process alone has saved since, none
    assert again["split again"] == again["whole"]["log"] - 1
