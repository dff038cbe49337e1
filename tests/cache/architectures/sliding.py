"""Layers that see a sliding window or a chunk, between others that see everything."""

from __future__ import annotations

from typing import Any

_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA3 = {"num_hidden_layers": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 32}
_GEMMA4 = {
    "num_hidden_layers": 6, "sliding_window_pattern": 2, "num_kv_shared_layers": 2, "global_head_dim": 64,
    "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 16,
}  # fmt: skip

SLIDING_WINDOWS: dict[str, dict[str, Any]] = {
    "afmoe": {"num_hidden_layers": 3, "layer_types": _MIXED, "num_dense_layers": 1},
    "cohere2": {"num_hidden_layers": 4, "sliding_window_pattern": 2},
    "exaone4": {"num_hidden_layers": 4, "rope_scaling": None, "sliding_window_pattern": "LLG"},
    "exaone_moe": {"num_hidden_layers": 3, "layer_types": _MIXED, "is_moe_layer": [False, True, True]},
    "gemma3": {"text_config": _GEMMA3},
    "gemma3_text": _GEMMA3,
    "gemma3n": {
        "text_config": {
            "num_hidden_layers": 6, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 64,
            "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "activation_sparsity_pattern": [0.5] + [0.0] * 5,
            "hidden_size_per_layer_input": 16, "altup_num_inputs": 2, "altup_coef_clip": 120.0,
            "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 8,
        },
    },
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "laguna": {
        "num_hidden_layers": 3, "layer_types": _MIXED, "rope_parameters": {
            "full_attention": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"},
        },
    },
    "llama4": {
        "text_config": {
            "num_hidden_layers": 4, "attention_chunk_size": 20, "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 96, "num_experts_per_tok": 1, "rope_scaling": None,
        },
    },
    "mellum": {
        "num_hidden_layers": 3, "layer_types": _MIXED, "rope_parameters": {
            "full_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"},
        },
    },
    "mimo_v2_flash": {
        "num_hidden_layers": 3, "hybrid_layer_pattern": [1, 0, 1], "moe_layer_freq": [0, 1, 1],
        "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False, "sliding_window_size": 20,
        "layernorm_epsilon": 1e-5, "swa_rope_theta": 1000.0, "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1, "swa_head_dim": 32, "swa_v_head_dim": 32, "head_dim": 64,
    },
    "muse_glimmer": {"num_hidden_layers": 4},
    "olmo3": {"num_hidden_layers": 3, "layer_types": _MIXED},
    "plamo3": {"num_hidden_layers": 4, "window_size": 20, "sliding_window_pattern": 2},
    "spark2_5": {
        "num_hidden_layers": 3, "layer_types": _MIXED, "rope_parameters": {
            "full_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"},
        },
    },
    "step3p5": {
        "num_hidden_layers": 3, "layer_types": _MIXED, "num_attention_groups": 1, "moe_num_experts": 4, "moe_top_k": 2,
        "share_expert_dim": 32, "moe_layers_enum": "1,2", "attention_other_setting": {
            "num_attention_heads": 2, "num_attention_groups": 1,
        },
    },
}  # fmt: skip
