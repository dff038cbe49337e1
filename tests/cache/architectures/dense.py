"""Attention to everything in each layer, one feed-forward network; and those that only wrap such a model."""

from __future__ import annotations

from typing import Any

_GPT2 = {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 4096}

DENSE: dict[str, dict[str, Any]] = {
    "afm7": {
        "hidden_dim": 64, "num_layers": 4, "num_kv_reuse_layers": 2, "num_heads": 2, "num_kv_heads": 1,
    },
    "apertus": {"post_norm": False, "qk_norm": True},
    "cohere": {"use_qk_norm": False},
    "ernie4_5": {},
    "exaone": {"num_layers": 2},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32.0},
    "glm": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "gpt2": {**_GPT2, "n_ctx": 4096},
    "gpt_bigcode": {**_GPT2, "n_inner": 96},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "gptj": {**_GPT2, "rotary_dim": 16},
    "granite": {},
    "helium": {},
    "hunyuan_v1_dense": {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    "internlm2": {},
    "internlm3": {},
    "iquestloopcoder": {"loop_window_size": 20},
    "lille-130m": {**_GPT2, "n_kv_heads": 1, "block_size": 4096},
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "llama4_text": {
        "num_hidden_layers": 4, "intermediate_size_mlp": 96, "no_rope_layers": [1, 1, 1, 0],
    },
    "mimo": {},
    "minicpm": {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 2.0},
    "ministral3": {
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64,
        },
    },
    "mistral3": {"text_config": {}},
    "nanbeige": {"num_loops": 2},
    "nanochat": {},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"n_heads_in_group": 1}, "ffn": {"no_op": True}},
        ],
    },
    "olmo2": {},
    "openelm": {
        "num_transformer_layers": 2, "model_dim": 64, "ffn_dim_divisor": 32, "num_query_heads": [2, 4],
        "num_kv_heads": [1, 2], "ffn_multipliers": [1.0, 2.0],
    },
    "phi": {},
    "phi3": {"partial_rotary_factor": 1.0, "original_max_position_embeddings": 4096},
    "phi3small": {
        "dense_attention_every_n_layers": 2, "ff_intermediate_size": 96, "gegelu_limit": 20.0,
        "blocksparse_block_size": 32, "blocksparse_num_local_blocks": 2, "blocksparse_vert_stride": 2,
        "hidden_size": 32, "vocab_size": 100352,  # it writes to the logits of placeholder ids up to there
    },
    "pixtral": {"text_config": {}},
    "plamo": {"n_shared_head": 2},
    "qwen": {"kv_channels": 32},
    "qwen2": {},
    "qwen2_vl": {"text_config": {}},
    "qwen3": {},
    "qwen3_vl": {"text_config": {}},
    "seed_oss": {},
    "smollm3": {"num_hidden_layers": 4},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": {},
    "talkie": {},
    "telechat3": {},
}  # fmt: skip
