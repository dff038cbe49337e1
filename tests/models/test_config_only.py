"""Skeletons: the shapes and bytes of the loaded model, in no memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlxkv.device import Device
from mlxkv.errors import ModelFileError, ModelUnsupportedError
from mlxkv.models import Hub, load_model, skeleton
from tests.fakes_hub import FakeHub

CPU = Device("cpu", False, 8_000_000_000, 10_000_000_000, False)
METAL = Device("gpu", True, 8_000_000_000, 10_000_000_000, True)

QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def nbytes(model: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))  # type: ignore[union-attr]


def write(folder: Path, config: Mapping[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_same_shapes_as_the_loaded_model(stories_path: Path) -> None:
    config, model = skeleton(stories_path)
    loaded = load_model(str(stories_path))
    assert config["model_type"] == "llama"
    ours = {name: (array.shape, array.dtype) for name, array in tree_flatten(model.parameters())}  # type: ignore[union-attr]
    theirs = {name: (array.shape, array.dtype) for name, array in tree_flatten(loaded.model.parameters())}  # type: ignore[union-attr]
    assert ours == theirs


def test_eight_billion_parameters_in_no_memory(tmp_path: Path) -> None:
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    _, model = skeleton(write(tmp_path, QWEN3_8B), device=CPU)
    assert nbytes(model) == 8_190_735_360 * 2
    assert mx.get_peak_memory() - before < 1_000_000


@pytest.mark.parametrize(("device", "size"), [(METAL, 2), (CPU, 4)])
def test_quantized(tmp_path: Path, device: Device, size: int) -> None:
    """The published 4-bit conversion has 4,607,835,520 bytes of weights: 4 bits each, and norms, scales and biases in
    16; a CPU computes with these in 32."""
    _, model = skeleton(write(tmp_path, QWEN3_8B | {"quantization": {"group_size": 64, "bits": 4}}), device=device)
    norms = 36 * (2 * 4096 + 2 * 128) + 4096
    packed = 8_190_735_360 - norms
    assert nbytes(model) == packed // 2 + packed // 64 * 2 * size + norms * size


def test_quantized_layer_by_layer(tmp_path: Path) -> None:
    named: dict[str, object] = {
        "group_size": 64,
        "bits": 4,
        "lm_head": False,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    _, model = skeleton(write(tmp_path, QWEN3_8B | {"quantization": named}), device=METAL)
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))  # type: ignore[arg-type]
    assert arrays["lm_head.weight"].dtype == mx.bfloat16
    assert arrays["model.embed_tokens.weight"].shape == (151936, 1024)
    assert arrays["model.embed_tokens.scales"].shape == (151936, 128)


@pytest.mark.parametrize(("device", "dtype"), [(CPU, mx.float32), (METAL, mx.float16)])
def test_float16(tmp_path: Path, device: Device, dtype: mx.Dtype) -> None:
    _, model = skeleton(write(tmp_path, QWEN3_8B | {"torch_dtype": "float16"}), device=device)
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {dtype}  # type: ignore[union-attr]


def test_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupportedError, match="gpt9"):
        skeleton(write(tmp_path, {"model_type": "gpt9"}))
    with pytest.raises(ModelFileError, match="hidden_size"):
        skeleton(write(tmp_path, {"model_type": "llama"}))


def test_of_a_repository_only_the_config_is_fetched(fake: FakeHub, hub: Hub) -> None:
    fake.files["config.json"] = json.dumps(QWEN3_8B).encode()
    config, _ = skeleton("org/model", hub=hub)
    assert config == QWEN3_8B
    assert set(fake.sent) == {"config.json"}
    fake.requests.clear()
    skeleton("org/model", hub=hub)
    assert fake.requests == []
