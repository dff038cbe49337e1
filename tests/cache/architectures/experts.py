"""Attention to everything in each layer, and mixtures of experts."""

from __future__ import annotations

from typing import Any

EXPERTS: dict[str, dict[str, Any]] = {
    "Klear": {},
    "bailing_moe": {"num_hidden_layers": 3, "use_qk_norm": True},
    "dbrx": {
        "d_model": 64, "n_layers": 2, "n_heads": 2,
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek": {},
    "dots1": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "glm4_moe": {"rope_scaling": None},
    "granitemoe": {},
    "hunyuan": {
        "moe_topk": 2, "num_shared_expert": 1, "use_mixed_mlp_moe": True, "use_cla": False, "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    },
    "minimax": {"rotary_dim": 16},
    "mixtral": {},
    "olmoe": {},
    "phimoe": {
        "rope_scaling": {
            "type": "longrope", "short_mscale": 1.2, "long_mscale": 1.2, "short_factor": [1.0] * 16,
            "long_factor": [2.0] * 16, "original_max_position_embeddings": 64,
        },
    },
    "phixtral": {"num_vocab": 64, "model_dim": 64, "num_heads": 2, "num_layers": 2, "rotary_dim": 16},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "qwen3_vl_moe": {"text_config": {}},
    "solar_open": {},
}  # fmt: skip
