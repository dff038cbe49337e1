"""Random models of different shapes, by mlx-lm's names, small enough to run in a moment."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxkv.cache.config import CacheConfig
from mlxkv.device import current_device

_BASE: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-5, "vocab_size": 1000, "rope_theta": 1e4,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
_EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "moe_intermediate_size": 64, "norm_topk_prob": True}  # fmt: skip
_LEARNED_SINKS = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "rope_scaling": {"factor": 32.0, "original_max_position_embeddings": 128, "rope_type": "yarn"},
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any], mx.Dtype, int | None, CacheConfig]] = {
    "one layer": ("llama", {"num_hidden_layers": 1}, mx.float32, None, CacheConfig(window=512)),
    "dense": ("llama", {}, mx.float32, None, CacheConfig(window=512)),
    "half precision": ("qwen3", {}, mx.bfloat16, None, CacheConfig(window=512)),
    "packed weights": ("llama", {"num_hidden_layers": 2}, mx.bfloat16, 4, CacheConfig(window=512)),
    "packed cache": ("llama", {"head_dim": 64}, mx.float32, None, CacheConfig(window=512, bits=8)),
    "uneven packed cache": ("llama", {"head_dim": 64}, mx.float32, None, CacheConfig(window=512, bits=(8, 4))),
    "large vocabulary": (
        "llama", {"vocab_size": 60_000, "num_hidden_layers": 1, "tie_word_embeddings": True}, mx.float32, None,
        CacheConfig(window=256),
    ),
    "experts": ("qwen3_moe", _EXPERTS, mx.float32, None, CacheConfig(window=512)),
    "sliding windows": (
        "gemma3_text", {"sliding_window": 256, "sliding_window_pattern": 3, "query_pre_attn_scalar": 32}, mx.float32,
        None, CacheConfig(window=512),
    ),
    "learned sinks": ("gpt_oss", _LEARNED_SINKS, mx.float32, None, CacheConfig(window=512)),
}  # fmt: skip


def build(case: str) -> tuple[Any, CacheConfig]:
    """The model, evaluated, and the cache to try it with."""
    kind, change, dtype, bits, config = CASES[case]
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict({"model_type": kind, **_BASE, **change}))
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, 64, bits)
        if current_device().is_cpu:
            model.set_dtype(mx.float32)  # of the scales, as on loading
    mx.eval(model.parameters())
    return model, config


def config_of(case: str) -> dict[str, Any]:
    """As config.json has it."""
    kind, change, dtype, bits, _ = CASES[case]
    stored = {mx.float32: "float32", mx.bfloat16: "bfloat16"}[dtype]
    packed = {"quantization": {"group_size": 64, "bits": bits}} if bits else {}
    return {"model_type": kind, **_BASE, **change, **packed, "torch_dtype": stored}
