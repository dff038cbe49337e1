"""Recurrent layers (state spaces, linear attention, short convolutions), alone or between layers of attention."""

from __future__ import annotations

from typing import Any

_QWEN3_NEXT = {"num_hidden_layers": 4, "full_attention_interval": 2}
_LFM2 = {
    "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_dim": 64,
    "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False,
    "use_expert_bias": True, "num_dense_layers": 1,
}  # fmt: skip
_KDA = {"num_heads": 2, "head_dim": 32, "kda_layers": [1, 3], "full_attn_layers": [2], "short_conv_kernel_size": 4}
_BAILING = {"num_hidden_layers": 3, "layer_group_size": 2, "group_norm_size": 2}

RECURRENT: dict[str, dict[str, Any]] = {
    "baichuan_m1": {
        "num_hidden_layers": 3, "sliding_window_layers": [0, 2], "conv_window": 2, "num_key_value_heads": 2,
        "num_swa_attention_heads": 2, "num_swa_key_value_heads": 1,
    },
    "bailing_hybrid": _BAILING,
    "bailing_moe_linear": _BAILING,
    "bailing_moe_v3": {"num_hidden_layers": 4, "layer_group_size": 2},
    "falcon_h1": {
        "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    },
    "gear": {"num_hidden_layers": 3, "layer_types": ["conv_mixer", "full_attention", "sliding_attention"]},
    "granitemoehybrid": {
        "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4, "mamba_d_head": 32,
        "mamba_proj_bias": False, "mamba_n_groups": 1, "mamba_conv_bias": True,
    },
    "jamba": {
        "num_hidden_layers": 4, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {
        "text_config": {
            "num_hidden_layers": 3, "linear_attn_config": _KDA, "num_experts_per_token": 2, "attn_res_block_size": 2,
        },
    },
    "kimi_linear": {
        "num_hidden_layers": 3, "linear_attn_config": _KDA, "model_max_length": 4096, "num_experts_per_token": 2,
    },
    "lfm2": _LFM2,
    "lfm2-vl": {"text_config": _LFM2},
    "lfm2_moe": _LFM2,
    "mamba": {"time_step_rank": 4},
    "mamba2": {
        "num_heads": 4, "head_dim": 32, "intermediate_size": 128, "n_groups": 1, "time_step_limit": [0.0, 100.0],
        "time_step_rank": 4,
    },
    "nemotron_h": {
        "hybrid_override_pattern": ["M", "*", "-", "M", "*"], "num_hidden_layers": 5, "mamba_num_heads": 4,
        "mamba_head_dim": 32, "mamba_proj_bias": False, "ssm_state_size": 16, "n_groups": 1,
    },
    "olmo_hybrid": {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_allow_neg_eigval": True,
    },
    "plamo2": {
        "num_hidden_layers": 4, "hidden_size_per_head": 32, "mamba_num_heads": 2, "mamba_step": 2,
        "attention_window_size": 20, "num_key_value_heads": 1,
    },
    "prism_hadamard_qwen35": {
        "tensor_namespace": "mlx-vlm-qwen3_5", "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [{"path": "model.layers.0.mlp.gate_proj", "embedding": False, "dtype": "float16", "block": 0}],
        "text_config": {**_QWEN3_NEXT, "hidden_size": 128, "num_experts": 0},
    },
    "qwen3_5": {"text_config": _QWEN3_NEXT},
    "qwen3_5_moe": {"text_config": _QWEN3_NEXT},
    "qwen3_next": _QWEN3_NEXT,
    "recurrent_gemma": {
        "num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"], "conv1d_width": 4,
        "logits_soft_cap": 30.0, "attention_window_size": 20,
    },
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
}  # fmt: skip
