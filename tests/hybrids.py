"""Tiny random models of mlx-lm with recurrent state or chunked attention, whose caches no ring takes the place of."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

VOCAB = 64
_COMMON = {"hidden_size": 32, "vocab_size": VOCAB, "rms_norm_eps": 1e-5}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_MAMBA2 = {
    "num_heads": 4, "head_dim": 16, "state_size": 8, "num_hidden_layers": 2, "intermediate_size": 64, "conv_kernel": 4,
    "n_groups": 1, "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": True,
    "time_step_limit": (0.001, 100.0), "time_step_rank": "auto", "layer_norm_epsilon": 1e-5,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "mamba2": {**_COMMON, **_MAMBA2},
    "mamba": {
        **_COMMON, "intermediate_size": 64, "state_size": 8, "num_hidden_layers": 2, "conv_kernel": 4,
        "use_bias": False, "use_conv_bias": True, "time_step_rank": 2,
    },
    "jamba": {
        **_COMMON, **_HEADS, "intermediate_size": 64, "num_hidden_layers": 4, "attn_layer_offset": 1,
        "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2, "mamba_d_conv": 4,
        "mamba_d_state": 8, "mamba_expand": 2, "num_experts": 2, "num_experts_per_tok": 1,
        "max_position_embeddings": 512,
    },
    "granitemoehybrid": {
        **_COMMON, **_HEADS, "intermediate_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 512,
        "attention_bias": False, "embedding_multiplier": 1.0, "attention_multiplier": 0.35, "logits_scaling": 1.0,
        "residual_multiplier": 1.0, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4,
        "mamba_d_head": 16, "mamba_proj_bias": False, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_groups": 1,
        "mamba_conv_bias": True, "shared_intermediate_size": 64,
    },
    "falcon_h1": {
        **_COMMON, **_HEADS, "head_dim": 8, "intermediate_size": 64, "mamba_d_head": 16, "mamba_d_ssm": 64,
        "mamba_d_state": 8, "mamba_n_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512,
        "rope_theta": 10000.0,
    },
    "qwen3_next": {
        **_COMMON, **_HEADS, "intermediate_size": 64, "num_hidden_layers": 4, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
        "num_experts": 2, "num_experts_per_tok": 1, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [], "moe_intermediate_size": 32, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "max_position_embeddings": 512, "head_dim": 16,
    },
    "lfm2": {
        **_COMMON, **_HEADS, "num_hidden_layers": 3, "max_position_embeddings": 512, "norm_eps": 1e-5,
        "conv_bias": False, "conv_L_cache": 3, "block_dim": 32, "block_ff_dim": 64, "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True, "full_attn_idxs": [1],
    },
    "recurrent_gemma": {
        **_COMMON, "num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": False, "intermediate_size": 64,
        "logits_soft_cap": 30.0, "num_hidden_layers": 3, "rope_theta": 10000.0, "attention_window_size": 24,
        "conv1d_width": 4,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv7": {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "norm_eps": 1e-5, "head_dim": 16,
        "num_hidden_layers": 2, "a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "llama4": {
        "text_config": {
            **_COMMON, **_HEADS, "attention_bias": False, "attention_chunk_size": 48, "head_dim": 8,
            "interleave_moe_layer_step": 2, "intermediate_size": 64, "intermediate_size_mlp": 64,
            "max_position_embeddings": 512, "model_type": "llama4_text", "num_experts_per_tok": 1,
            "num_hidden_layers": 4, "num_local_experts": 2, "rope_scaling": None, "rope_theta": 10000.0,
            "use_qk_norm": False,
        }
    },
}  # fmt: skip


def hybrid_folder(folder: Path, name: str, tokenizer: Any) -> Path:
    """Such a model with this tokenizer, saved as `mlxkv.load` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(tiny(name).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
    (folder / "config.json").write_text(json.dumps({"model_type": name, **CONFIGS[name]}))
    tokenizer._tokenizer.save_pretrained(folder)
    return folder


def tiny(name: str, seed: int = 0) -> nn.Module:
    """A random float32 model of mlx-lm's module `name`."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict({"model_type": name, **CONFIGS[name]}))
    mx.eval(model.parameters())
    return model
