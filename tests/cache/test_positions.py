"""Re-rotation composes for the ropes that compose, and is refused for those that do not."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.rope_utils import initialize_rope

from mlxkv.cache.rings.sink_rotation import SinkRotation, find_rope, rotation_for
from tests.reference import largest

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 512, "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


class Layer(nn.Module):
    def __init__(self, rope: Any) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.rope = rope


def rope(scaling: dict[str, Any] | None, traditional: bool = False) -> Any:
    return initialize_rope(32, 10_000.0, traditional, scaling, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, LLAMA3, YARN, LONG])
@pytest.mark.parametrize("by", [1, 64, 4096])
def test_moved_keys_equal_keys_rotated_there(scaling: dict[str, Any] | None, traditional: bool, by: int) -> None:
    r = rope(scaling, traditional)
    rotation = rotation_for(Layer(r), 32)
    assert rotation is not None
    x = mx.random.normal((1, 2, 5, 32), key=mx.random.key(1))
    assert largest(rotation(r(x, offset=0), by) - r(x, offset=by)) < 2e-3


def test_partial_rotation_composes() -> None:
    r = nn.RoPE(16)
    x = mx.random.normal((1, 2, 3, 32), key=mx.random.key(1))
    assert largest(SinkRotation(r, 32)(r(x, offset=0), 50) - r(x, offset=50)) < 1e-4


def test_dynamic_ntk_is_refused() -> None:
    assert rotation_for(Layer(rope(DYNAMIC)), 32) is None


def test_no_rope_or_two_of_them_is_refused() -> None:
    assert find_rope(nn.Linear(2, 2)) is None
    layer = Layer(nn.RoPE(32))
    layer.other = nn.Module()
    layer.other.rope = nn.RoPE(32, base=1e6)
    assert find_rope(layer) is None
