"""Which models divide by how many processes, without any other process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlxkv
from mlxkv.device import current_device
from mlxkv.distributed.split import Member, Split, kinds_of, problem_of
from mlxkv.errors import ConfigError, ModelUnsupportedError, OutOfMemoryError
from mlxkv.models import load_model
from mlxkv.models.loading.skeleton import skeleton
from tests.distributed.ranks import folder_of
from tests.reference import tiny_llama


@pytest.mark.parametrize(
    ("args", "size", "fits"),
    [
        ({"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}, 2, "9 heads and 3 KV heads"),
        ({"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}, 3, None),
        ({"num_attention_heads": 4, "num_key_value_heads": 1}, 2, "1 KV head,"),
        ({"intermediate_size": 90}, 4, "does not divide by 4 machines"),
    ],
)
def test_heads_must_divide(args: dict[str, Any], size: int, fits: str | None, tmp_path: Path) -> None:
    made = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64, "intermediate_size": 96, **args}
    folder = folder_of("llama", tmp_path, head_dim=16, **made)
    problem = problem_of(skeleton(folder)[1], "tensor", size)
    assert (fits in problem) if fits and problem else problem == fits


def test_a_refusal_names_what_would_fit(tmp_path: Path) -> None:
    args = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}
    folder = folder_of("llama", tmp_path, head_dim=16, **args)
    split = Split(Member(0, 2), "auto", lambda: skeleton(folder)[1])
    with pytest.raises(ModelUnsupportedError, match=r"9 heads and 3 KV heads, .*; a tensor split fits 3 machines"):
        split.apply(skeleton(folder)[1], "nine")
    with pytest.raises(ModelUnsupportedError, match="has no pipeline split of nine; use `distributed='tensor'`"):
        Split(Member(0, 3), "pipeline", lambda: skeleton(folder)[1]).apply(skeleton(folder)[1], "nine")


def test_a_pipeline_gives_each_process_layers_of_every_kind(tmp_path: Path) -> None:
    folder = folder_of("qwen3_5", tmp_path)
    assert kinds_of(skeleton(folder)[1]) == ("tensor", "pipeline")
    assert problem_of(skeleton(folder)[1], "pipeline", 2) is None
    assert "none of some kind" in str(problem_of(skeleton(folder)[1], "pipeline", 3))
    assert "has 4 layers, too few" in str(problem_of(skeleton(folder)[1], "pipeline", 5))


def test_alone(tiny_path: Path) -> None:
    assert kinds_of(tiny_llama()) == ("tensor",)
    with mlxkv.load(tiny_path, distributed="auto") as model:
        assert model.loaded.machines is None
    with pytest.raises(ConfigError, match="started alone; start it on several machines"):
        mlxkv.load(tiny_path, distributed="tensor")
    with pytest.raises(ConfigError, match="it must be 'auto', 'tensor' or 'pipeline'"):
        mlxkv.load(tiny_path, distributed="both")  # type: ignore[arg-type]


def test_a_part_that_does_not_fit_is_refused(tiny_path: Path) -> None:
    device = replace(current_device(), memory_limit=20_000)  # more than a hundredth of the weights
    split: Any = SimpleNamespace(size=100, apply=lambda model, name: None)  # divides nothing
    with pytest.raises(OutOfMemoryError, match=r"^The weights of this part of .* need .* and this machine lets"):
        load_model(str(tiny_path), device=device, split=split)
