"""LoRA adapters for the tiny models of the tests, made with mlx-lm's own functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers


def make_adapter(folder: Path, model: Path, kind: str = "lora", *, seed: int = 1, dropout: float = 0.5) -> Path:
    """A random adapter for the last layer of `model`, large enough to change what it says."""
    network: Any = mlx_lm.load(str(model))[0]
    parameters = {"rank": 4, "scale": 20.0, "dropout": dropout}
    network.freeze()
    if kind == "full":
        network.layers[-1].unfreeze()
    else:
        linear_to_lora_layers(network, 1, parameters, use_dora=kind == "dora")
    mx.random.seed(seed)
    weights = {name: 0.1 * mx.random.normal(a.shape) for name, a in tree_flatten(network.trainable_parameters())}  # type: ignore[union-attr]
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)  # without metadata, as mlx-lm's training does
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
