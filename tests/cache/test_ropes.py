"""Every rope of mlx-lm: re-rotating its keys composes, or pinned tokens keep absolute positions (docs/positions.md)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import pytest
from mlx_lm.models import deepseek_v2, hunyuan, hunyuan_v1_dense, internlm3, rope_utils

from mlxkv.cache.rings.sink_rotation import SinkRotation, rotation_for
from tests.reference import largest

MODELS = Path(next(iter(mlx_lm.models.__path__)))
DOCS = Path(__file__).resolve().parents[2] / "docs" / "positions.md"
DIMS = 32
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}

ROPES: dict[str, Any] = {
    "nn.RoPE": lambda: nn.RoPE(DIMS),
    "nn.RoPE, traditional (interleaved)": lambda: nn.RoPE(DIMS, traditional=True),
    "nn.RoPE, scaled (linear)": lambda: nn.RoPE(DIMS, scale=0.25),
    "nn.RoPE, a part of the row": lambda: nn.RoPE(DIMS // 2),
    "nn.RoPE, another theta per layer": lambda: nn.RoPE(DIMS, base=1e6),
    "Llama3RoPE": lambda: rope_utils.initialize_rope(DIMS, 1e4, False, LLAMA3 | {"rope_type": "llama3"}, 2048),
    "YarnRoPE": lambda: rope_utils.initialize_rope(
        DIMS, 1e4, False, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048
    ),
    "SuScaledRoPE": lambda: rope_utils.SuScaledRoPE(DIMS, original_max_position_embeddings=512, long_factor=[2.0] * 16),
    "ProportionalRoPE": lambda: rope_utils.ProportionalRoPE(DIMS, DIMS // 2),
    "DynamicNTKScalingRoPE": lambda: rope_utils.initialize_rope(
        DIMS, 1e4, False, {"rope_type": "dynamic", "factor": 2.0}, 2048
    ),
    "internlm3.DynamicNTKScalingRoPE": lambda: internlm3.DynamicNTKScalingRoPE(
        DIMS, max_position_embeddings=2048, scale=2.0
    ),
    "hunyuan.DynamicNTKAlphaRoPE": lambda: hunyuan.DynamicNTKAlphaRoPE(DIMS, scaling_alpha=4.0),
    "hunyuan_v1_dense.DynamicNTKAlphaRoPE": lambda: hunyuan_v1_dense.DynamicNTKAlphaRoPE(DIMS, scaling_alpha=4.0),
    "deepseek_v2.DeepseekV2YarnRotaryEmbedding": lambda: deepseek_v2.DeepseekV2YarnRotaryEmbedding(
        DIMS, scaling_factor=4.0, original_max_position_embeddings=512
    ),
}
ABSOLUTE = {"DynamicNTKScalingRoPE", "internlm3.DynamicNTKScalingRoPE"}
"""Their frequencies change with the length of the text, so a rotation by a, then by b is none by a + b."""
NOT_OF_KEYS = {"muse_spark.VisionRoPE2D": "of pictures", "phixtral.RoPEAttention": "a layer that holds an nn.RoPE"}


class Layer(nn.Module):
    def __init__(self, rope: Any) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.rope = rope


@pytest.mark.parametrize("name", ROPES)
def test_a_rope_composes_or_is_refused(name: str) -> None:
    rope = ROPES[name]()
    rotation = rotation_for(Layer(rope), DIMS)
    assert (rotation is None) == (name in ABSOLUTE)
    x = mx.random.normal((1, 2, 5, DIMS), key=mx.random.key(1))
    moved = rotation or SinkRotation(rope, DIMS)
    errors = [largest(moved(rope(x, offset=a), by) - rope(x, offset=a + by)) for a, by in ((0, 1), (7, 977), (0, 8192))]
    assert (max(errors) < 5e-3) == (name not in ABSOLUTE), errors


def rope_classes() -> set[str]:
    """Every class in mlx-lm's model modules that is named for a rope."""
    found = set()
    for path in sorted(MODELS.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and ("rope" in node.name.lower() or "rotary" in node.name.lower()):
                found.add(node.name if path.stem == "rope_utils" else f"{path.stem}.{node.name}")
    return found


@pytest.mark.slow
def test_no_rope_of_mlx_lm_is_left_out() -> None:
    assert rope_classes() == {name for name in (*ROPES, *NOT_OF_KEYS) if not name.startswith("nn.")}


def users(name: str) -> list[str]:
    """The model modules that use a rope, by name."""
    if "." in name and not name.startswith("nn."):
        return [name.split(".")[0]]
    wanted = ("initialize_rope(", "nn.RoPE(") if name.startswith("nn.RoPE") else ("initialize_rope(", name + "(")
    paths = sorted(MODELS.glob("*.py"))
    return [p.stem for p in paths if p.stem != "rope_utils" and any(word in p.read_text() for word in wanted)]


def table() -> str:
    """As docs/positions.md has it."""
    lines = ["| rope | used by | pinned tokens |", "|---|---|---|"]
    kinds = [name.partition(", ")[2] for name in ROPES if name.startswith("nn.RoPE, ")]
    for name in (name for name in ROPES if not name.startswith("nn.RoPE, ")):
        by = users(name)
        shown = ", ".join(by) if len(by) <= 3 else f"{len(by)} model modules, where their config.json asks for it"
        rope = f"nn.RoPE; also {', '.join(kinds)}" if name == "nn.RoPE" else name
        lines.append(f"| {rope} | {shown} | {'absolute positions' if name in ABSOLUTE else 'streaming'} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_this_one() -> None:
    """To renew it: put what this prints into docs/positions.md."""
    print(table())
    assert table() in DOCS.read_text()
