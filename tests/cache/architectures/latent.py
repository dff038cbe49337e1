"""Latent attention (MLA), layers with an indexer that picks rows, and the cache that only DeepSeek-V4.1 understands."""

from __future__ import annotations

from typing import Any

_LONGCAT: dict[str, Any] = {
    "num_layers": 2, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "moe_topk": 2, "zero_expert_num": 2,
    "zero_expert_type": "identity", "attention_method": "MLA",
}  # fmt: skip

LATENT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 0.707,
            "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
        },
    },
    "deepseek_v3": {},
    "deepseek_v32": {},
    "deepseek_v41": {
        "o_groups": 2, "o_lora_rank": 32, "compress_ratios": [0, 4], "kv_source_layer_ids": [1],
        "index_source_layer_ids": [1], "hc_mult": 2, "hc_sinkhorn_iters": 3, "scoring_func": "sqrtsoftplus",
        "qk_rope_head_dim": 16, "rms_norm_eps": 1e-6,
    },
    "glm4_moe_lite": {},
    "glm_moe_dsa": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "kimi_k25": {"text_config": {}},
    "kimi_vl": {"text_config": {}},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": {**_LONGCAT, "ngram_vocab_size_ratio": 3, "emb_neighbor_num": 3, "emb_split_num": 2},
    "minicpm3": {
        "num_key_value_heads": 2, "dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 2.0,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16,
            "original_max_position_embeddings": 4096,
        },
    },
    "minimax_m3_vl": {
        "text_config": {
            "dense_intermediate_size": 96, "num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"],
            "layer_types": ["full_attention", "sparse", "sparse"], "index_n_heads": 1, "index_block_size": 4,
            "index_topk_blocks": 5,
        },
    },
    "mistral4": {
        "rope_parameters": {
            "rope_theta": 10000.0, "rope_type": "default", "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        },
    },
    "youtu_llm": {"num_key_value_heads": 2},
}  # fmt: skip
