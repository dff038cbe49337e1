"""Models of three or four layers with the real layer shapes of this year's families: `bench.real_models`, shortened.

What the cache depends on stays: heads, head sizes, sizes of states, windows, shared layers and their order. The width
of the model is real only where a state or a head size follows from it; vocabulary, MLPs and experts are small, and
windows above 128 are 24, since a test must pass them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.real_models import REAL_MODELS, RealModel
from tests.cache.architectures import Architecture
from tests.cache.architectures.build import VOCAB

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 96, "block_ff_dim": 96,
    "shared_intermediate_size": 96, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
}  # fmt: skip
_CONV = {"hidden_size": 2048, "full_attn_idxs": [2], "num_hidden_layers": 3}  # the state is as wide as the model
_GRANITE = {"hidden_size": 512, "num_attention_heads": 8}  # 64 numbers per head, as with 32 heads of 2,048


@dataclass(frozen=True)
class RealShape:
    """Some layers of `model`, with these fields of its configuration changed. `window`: of its sliding layers.
    `has_experts`: MLX's CPU backend multiplies them in float32 only."""

    model: str
    changed: dict[str, Any] = field(default_factory=dict)
    window: int = 0
    has_experts: bool = False

    @property
    def real(self) -> RealModel:
        return next(real for real in REAL_MODELS if real.name == self.model)

    def config(self) -> dict[str, Any]:
        """What a config.json would hold."""
        config = self.real.config()
        text = config.get("text_config", config)
        text.update({key: value for key, value in _SMALL.items() if key in text} | self.changed)
        config["vocab_size"] = text["vocab_size"] = VOCAB
        return config

    def build(self) -> Any:
        """The model in float32, with random weights."""
        config = self.config()
        return Architecture(config["model_type"].removesuffix("_unified"), "real", {}).build(config)


_MAMBA_FIRST = ["mamba", "mamba", "attention", "mamba"]
_FULL_LAST = ["sliding_attention"] * 3 + ["full_attention"]
_IN_TURN = ["sliding_attention", "full_attention"] * 2

REAL_SHAPES = {
    "qwen3_5": RealShape("Qwen3.5-4B"),
    "nemotron_h": RealShape("Nemotron-3-Nano-4B", {"hybrid_override_pattern": "M-M*"}),
    "granitemoehybrid": RealShape("granite-4.0-h-micro", {"layer_types": _MAMBA_FIRST, **_GRANITE}),
    "lfm2": RealShape("LFM2.5-1.2B", _CONV),
    "gemma4, shared layers": RealShape(
        "gemma-4-E2B",
        {"layer_types": _IN_TURN, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB, "sliding_window": 24},
        24,
    ),
    "gemma4, keys as values": RealShape("gemma-4-12B", {"layer_types": _FULL_LAST, "sliding_window": 24}, 24),
    "gpt_oss": RealShape("gpt-oss-20b", {"layer_types": _IN_TURN}, 128, has_experts=True),
    "muse_glimmer": RealShape("Muse-Glimmer-30B", {"sliding_window": 24}, 24),
    "ministral3": RealShape("Ministral-3-8B"),
}
