"""Four processes on loopback give the tokens of one.

In CI one reply with the tensor split, since they wait for each other without pause, on few cores. MLXKV_THOROUGH=1: all
that is asked of two, with both splits.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlxkv
from tests.distributed import scenario
from tests.distributed.ranks import folder_of, ranks
from tests.thorough import THOROUGH

SPLITS = ("tensor", "pipeline") if THOROUGH else ("tensor",)


@pytest.mark.slow
def test_four_processes_give_the_tokens_of_one(tmp_path: Path) -> None:
    folder = folder_of("qwen2", tmp_path / "model", num_attention_heads=4, num_key_value_heads=4)
    output = tmp_path / "out.json"
    asked = [f"{folder}:{split}" for split in SPLITS]
    with ranks(4, tmp_path, str(Path(scenario.__file__)), str(output), "" if THOROUGH else "short", *asked) as started:
        with mlxkv.load(folder) as model:
            expected = scenario.replies(model, is_short=not THOROUGH)
        told = [process.communicate()[1] for process in started]
        assert [process.returncode for process in started] == [0] * 4, told
    found = json.loads(output.read_text())
    assert [found[key].pop("kind") for key in asked] == list(SPLITS)
    assert [found[key] for key in asked] == [expected] * len(asked)
