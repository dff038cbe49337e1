"""Configurations of real models: the fields of config.json that decide what a model keeps per token and per state.

Numbers only, each with its source; fields that no cache depends on (epsilons, scales) are filled in by `config`.
`bench.shapes` prints what follows from them, tests/cache/test_real_shapes.py runs models of these layer shapes.

Sources: a repository and path of public code; `public file N` is the number of one in the index of public code that was
searched on 2026-11-29, which names no path; `transformers X` is the defaults of X's configuration class in transformers
5.23, where its `checkpoint` is that model; `facts` is the project's own list of Qwen's shapes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

_SMOLBENCH = "rengzhengcodes/SmolBench scripts/arch/arch_configs_raw.json"
_AICONFIGURATOR = "ai-dynamo/aiconfigurator src/aiconfigurator/model_configs"
_GRANITE_41 = "arc-codex.com/article/b152637ab673996f473efcd13d58ff2b (IBM's text on Granite 4.1)"


@dataclass(frozen=True)
class RealModel:
    """One distinct shape. `same`: models with the same one."""

    name: str
    fields: dict[str, Any]
    source: str
    same: str = ""

    @property
    def module(self) -> str:
        """The model_type, and behind ">" that of its text model if it is another module."""
        text = self.fields.get("text_config", {}).get("model_type", "")
        own = self.fields["model_type"]
        return f"{own} > {text}" if text and not text.startswith(own.split("_unified")[0]) else own

    def config(self) -> dict[str, Any]:
        """What config.json would hold, as far as mlx-lm reads it."""
        found: dict[str, Any] = {**_FILLED_IN, **copy.deepcopy(self.fields)}
        if "text_config" in found:
            found["text_config"] = {**_FILLED_IN, **found["text_config"]}
        return found


_FILLED_IN: dict[str, Any] = {
    "dtype": "bfloat16", "rms_norm_eps": 1e-6, "norm_eps": 1e-5, "layer_norm_epsilon": 1e-5, "norm_topk_prob": True,
    "rope_theta": 1e6, "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "use_bias": False,
    "use_conv_bias": True, "conv_bias": False, "mamba_proj_bias": False, "mamba_conv_bias": True,
    "tie_word_embeddings": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "embedding_multiplier": 12.0,
    "attention_multiplier": 0.015625, "logits_scaling": 8.0, "residual_multiplier": 0.22, "use_expert_bias": True,
    "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 1.0, "use_qk_norm": False, "partial_rotary_factor": 1.0,
}  # fmt: skip


def _qwen3_5(
    layers: int, hidden: int, heads: int, kv_heads: int, value_heads: int, experts: dict[str, int] | None = None
) -> dict[str, Any]:
    text = {
        "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 256, "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "vocab_size": 248320,
        "max_position_embeddings": 262144, "tie_word_embeddings": False, **(experts or {}),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
            "mrope_interleaved": True, "mrope_section": [11, 11, 10],
        },
    }  # fmt: skip
    kind = "qwen3_5_moe" if experts else "qwen3_5"
    return {"model_type": kind, "text_config": {"model_type": f"{kind}_text", **text}}


def _experts(num: int, active: int, size: int) -> dict[str, int]:
    return {
        "num_experts": num, "num_experts_per_tok": active, "moe_intermediate_size": size,
        "shared_expert_intermediate_size": size,
    }  # fmt: skip


def _nemotron(
    pattern: str, hidden: int, heads: int, kv_heads: int, mamba: tuple[int, int], **more: int
) -> dict[str, Any]:
    return {
        "model_type": "nemotron_h", "hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern),
        "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128,
        "mamba_num_heads": mamba[0], "mamba_head_dim": mamba[1], "ssm_state_size": 128, "n_groups": 8,
        "conv_kernel": 4, "vocab_size": 131072, "max_position_embeddings": 262144, **more,
    }  # fmt: skip


def _granite_hybrid(hidden: int, heads: int, kv_heads: int, mamba_heads: int, **more: int) -> dict[str, Any]:
    return {
        "model_type": "granitemoehybrid", "hidden_size": hidden, "num_hidden_layers": 40,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "mamba_n_heads": mamba_heads,
        "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
        "layer_types": ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)], "vocab_size": 100352,
        "position_embedding_type": "nope", "max_position_embeddings": 131072, **more,
    }  # fmt: skip


def _granite(hidden: int, layers: int, heads: int, mlp: int) -> dict[str, Any]:
    return {
        "model_type": "granite", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "intermediate_size": mlp, "vocab_size": 100352, "max_position_embeddings": 131072,
    }  # fmt: skip


def _lfm2(layers: int, attention: list[int], **more: Any) -> dict[str, Any]:
    return {
        "model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "conv_L_cache": 3, "full_attn_idxs": attention, "block_dim": 2048,
        "max_position_embeddings": 128000, **more,
    }  # fmt: skip


def _gemma4(layers: int, hidden: int, heads: int, kv_heads: int, window: int, **more: Any) -> dict[str, Any]:
    text = {
        "model_type": "gemma4_text", "num_hidden_layers": layers, "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": 256, "global_head_dim": 512,
        "sliding_window": window, "sliding_window_pattern": 6, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False, "max_position_embeddings": 262144, **more,
    }  # fmt: skip
    return {"model_type": "gemma4", "text_config": text}


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss", "num_hidden_layers": layers, "num_local_experts": experts, "num_experts_per_tok": 4,
        "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64,
        "num_key_value_heads": 8, "sliding_window": 128, "vocab_size": 201088, "max_position_embeddings": 131072,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
    }  # fmt: skip


def _mistral3(
    text_type: str, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, **more: Any
) -> dict[str, Any]:
    text = {
        "model_type": text_type, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": 131072,
        "max_position_embeddings": 262144, "rope_parameters": {
            "type": "yarn", "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16384,
        }, **more,
    }  # fmt: skip
    return {"model_type": "mistral3", "text_config": text}


def _sliding(layers: int) -> list[str]:
    """Three sliding layers, then a full one."""
    return ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(layers)]


REAL_MODELS = (
    RealModel("Qwen3.5-0.8B", _qwen3_5(24, 1024, 8, 2, 16), "public files 54905607740 and 71108872547"),
    RealModel("Qwen3.5-2B", _qwen3_5(24, 2048, 8, 2, 16), "public files 54905607740 and 66597020113"),
    RealModel("Qwen3.5-4B", _qwen3_5(32, 2560, 16, 4, 32), "facts"),
    RealModel("Qwen3.5-9B", _qwen3_5(32, 4096, 16, 4, 32), "facts; transformers Qwen3_5TextConfig"),
    RealModel(
        "Qwen3.8-27B", _qwen3_5(64, 5120, 24, 4, 48), f"facts; {_SMOLBENCH}; public file 70181514067",
        "Qwen3.5-27B, Qwen3.6-27B, Ternary-Bonsai-2-27B (its base)",
    ),
    RealModel(
        "Qwen3.6-35B-A3B", _qwen3_5(40, 2048, 16, 2, 32, _experts(256, 8, 512)),
        "facts; transformers Qwen3_5MoeTextConfig",
    ),
    RealModel("Qwen3.5-122B-A10B", _qwen3_5(48, 3072, 32, 2, 64, _experts(256, 8, 1024)), _SMOLBENCH),
    RealModel(
        "Qwen3-Next-80B-A3B",
        {
            "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "partial_rotary_factor": 0.25,
            "vocab_size": 151936, "max_position_embeddings": 262144, **_experts(512, 10, 512),
        },
        f"facts; {_AICONFIGURATOR}/Qwen--Qwen3-Next-80B-A3B-Thinking_config.json",
        "Qwen3-Coder-Next",
    ),
    RealModel(
        "Nemotron-3-Nano-4B",
        _nemotron("M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-", 3136, 40, 8, (96, 80), intermediate_size=12544),
        _SMOLBENCH,
    ),
    RealModel(
        "Nemotron-3-Nano-30B-A3B",
        _nemotron(
            "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", 2688, 32, 2, (64, 64), intermediate_size=1856,
            n_routed_experts=128, num_experts_per_tok=6, n_shared_experts=1, moe_intermediate_size=1856,
            moe_shared_expert_intermediate_size=3712,
        ),
        f"{_SMOLBENCH}; public file 70181514067", "Nemotron-3.5-Lightning-30B-A3B",
    ),
    RealModel(
        "Nemotron-3-Super-120B-A12B",
        _nemotron(
            "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME", 4096, 32, 2,
            (128, 64), intermediate_size=2688, n_routed_experts=512, num_experts_per_tok=22, n_shared_experts=1,
            moe_intermediate_size=2688, moe_latent_size=1024, moe_shared_expert_intermediate_size=5376,
        ),
        _SMOLBENCH,
    ),
    RealModel(
        "granite-4.0-h-micro",
        _granite_hybrid(2048, 32, 8, 64, intermediate_size=8192, shared_intermediate_size=8192),
        "public file 60797780217",
    ),
    RealModel(
        "granite-4.0-h-tiny",
        _granite_hybrid(
            1536, 12, 4, 48, intermediate_size=512, shared_intermediate_size=1024, num_local_experts=64,
            num_experts_per_tok=6,
        ),
        "public file 65865534003",
    ),
    RealModel(
        "granite-4.1-3b", _granite(2560, 40, 40, 8192), f"{_GRANITE_41}; public file 60320847104", "granite-4.2-3b",
    ),
    RealModel(
        "granite-4.1-8b", _granite(4096, 40, 32, 12800), f"{_GRANITE_41}; public file 69727250538", "granite-4.2-8b",
    ),
    RealModel("granite-4.2-30b", _granite(4096, 64, 32, 32768), f"{_GRANITE_41}: 4.2 continues its weights"),
    RealModel(
        "LFM2.5-1.2B", _lfm2(16, [2, 5, 8, 10, 12, 14], block_ff_dim=12288, vocab_size=65536),
        "public files 60797780217 and 68303452161 (LFM2-1.2B); tedneward/Research content/ai/models/lfm-thinking.md",
    ),
    RealModel(
        "LFM2.5-2.6B",
        _lfm2(
            30, [2, 5, 9, 13, 17, 21, 24, 27], block_ff_dim=10752, block_auto_adjust_ff_dim=False, vocab_size=128000
        ),
        "public file 68703892435",
    ),
    RealModel(
        "LFM2.5-8B-A1B",
        {
            **_lfm2(24, [2, 6, 10, 14, 18, 21], vocab_size=128000), "model_type": "lfm2_moe", "num_dense_layers": 2,
            "intermediate_size": 7168, "moe_intermediate_size": 1792, "num_experts": 32, "num_experts_per_tok": 4,
        },
        "public file 56276023557",
    ),
    RealModel(
        "gemma-4-E2B",
        _gemma4(
            35, 1536, 8, 1, 512, sliding_window_pattern=5, num_kv_shared_layers=20, hidden_size_per_layer_input=256,
            use_double_wide_mlp=True, max_position_embeddings=131072,
        ),
        _SMOLBENCH,
    ),
    RealModel(
        "gemma-4-E4B",
        _gemma4(
            42, 2560, 8, 2, 512, num_kv_shared_layers=18, hidden_size_per_layer_input=256,
            max_position_embeddings=131072,
        ),
        "public files 57658815156 and 71611886309",
    ),
    RealModel(
        "gemma-4-12B",
        {
            **_gemma4(48, 3840, 16, 8, 1024, num_global_key_value_heads=1, attention_k_eq_v=True),
            "model_type": "gemma4_unified",
        },
        _SMOLBENCH,
    ),
    RealModel(
        "gemma-4-26B-A4B",
        _gemma4(
            30, 2816, 16, 8, 1024, num_global_key_value_heads=2, attention_k_eq_v=True, enable_moe_block=True,
            num_experts=128, top_k_experts=8, moe_intermediate_size=704, intermediate_size=2112,
        ),
        "public files 53939116010 and 70458563899",
    ),
    RealModel(
        "gemma-4-31B",
        _gemma4(60, 5376, 32, 16, 1024, num_global_key_value_heads=4, attention_k_eq_v=True), _SMOLBENCH,
    ),
    RealModel("gpt-oss-20b", _gpt_oss(24, 32), "transformers GptOssConfig; public file 37084402087"),
    RealModel("gpt-oss-120b", _gpt_oss(36, 128), "transformers GptOssConfig; public file 71368259812"),
    RealModel(
        "Muse-Glimmer-30B",
        {
            "model_type": "muse_glimmer", "hidden_size": 6656, "num_hidden_layers": 52, "intermediate_size": 19968,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "sliding_window": 2048,
            "vocab_size": 202048, "max_position_embeddings": 131072, "tie_word_embeddings": False,
            "rope_theta": 500000.0,
        },
        "transformers MuseGlimmerTextConfig; mlx-lm's defaults",
    ),
    RealModel("Ministral-3-3B", _mistral3("ministral3", 26, 3072, 32, 8, 9216, head_dim=128), _SMOLBENCH),
    RealModel("Ministral-3-8B", _mistral3("ministral3", 34, 4096, 32, 8, 14336, head_dim=128), _SMOLBENCH),
    RealModel("Ministral-3-14B", _mistral3("ministral3", 40, 5120, 32, 8, 16384, head_dim=128), _SMOLBENCH),
    RealModel(
        "Mistral-Small-4-119B",
        _mistral3(
            "mistral4", 36, 4096, 32, 32, 12288, kv_lora_rank=256, q_lora_rank=1024, qk_rope_head_dim=64,
            qk_nope_head_dim=64, v_head_dim=128, n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=4,
            moe_intermediate_size=2048, first_k_dense_replace=0, max_position_embeddings=1048576,
            rope_parameters={
                "type": "yarn", "rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "beta_fast": 32.0,
                "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 8192,
            },
        ),
        "transformers Mistral4Config",
    ),
    RealModel(
        "Olmo-3-7B",
        {
            "model_type": "olmo3", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008,
            "num_attention_heads": 32, "num_key_value_heads": 32, "sliding_window": 4096, "vocab_size": 100278,
            "max_position_embeddings": 65536, "rope_theta": 500000.0,
        },
        "transformers Olmo3Config; public file 71024905976",
    ),
    RealModel(
        "Phi-4-mini",
        {
            "model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32, "intermediate_size": 8192,
            "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "rope_theta": 10000.0,
            "vocab_size": 200064, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        },
        "public files 60805290460 and 70214471913",
    ),
    RealModel(
        "GLM-4.7-Flash",
        {
            "model_type": "glm4_moe_lite", "hidden_size": 2048, "num_hidden_layers": 47, "intermediate_size": 10240,
            "num_attention_heads": 20, "num_key_value_heads": 20, "kv_lora_rank": 512, "q_lora_rank": 768,
            "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "v_head_dim": 256, "n_routed_experts": 64,
            "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 1536,
            "first_k_dense_replace": 1, "vocab_size": 154880, "max_position_embeddings": 202752,
        },
        f"{_SMOLBENCH}; {_AICONFIGURATOR}/zai-org--GLM-4.7-Flash_config.json",
    ),
    RealModel(
        "GLM-4.5-Air",
        {
            "model_type": "glm4_moe", "hidden_size": 4096, "num_hidden_layers": 46, "intermediate_size": 10944,
            "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 128,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
            "partial_rotary_factor": 0.5, "vocab_size": 151552, "max_position_embeddings": 131072,
        },
        _SMOLBENCH,
    ),
    RealModel(
        "Mellum2-12B-A2.5B",
        {
            "model_type": "mellum", "hidden_size": 2304, "num_hidden_layers": 28, "intermediate_size": 7168,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 64,
            "num_experts_per_tok": 8, "moe_intermediate_size": 896, "sliding_window": 1024,
            "layer_types": _sliding(28), "vocab_size": 98304, "max_position_embeddings": 131072,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "rope_theta": 500000.0, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
                    "original_max_position_embeddings": 8192, "attention_factor": 1.2772588722239782,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            },
        },
        "public files 63122993845, 54716350018 and 56276316635",
    ),
    RealModel(
        "Qwen3-Coder-30B-A3B",
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "intermediate_size": 5472,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
            "num_experts_per_tok": 8, "moe_intermediate_size": 768, "vocab_size": 151936,
            "max_position_embeddings": 262144,
        },
        "huggingface.co/RTP-LLM/Qwen3-Coder-30B-A3B-Instruct-RTPurbo/blob/main/config.json (stored page)",
    ),
    RealModel(
        "Qwen3-4B-Instruct-2507",
        {
            "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "max_position_embeddings": 262144, "rope_theta": 5e6,
        },
        "akougkas/warpio-cli warpio-docs/ai-docs/model_cards/qwen3:4b.md",
    ),
    RealModel(
        "Llama-3.1-8B",
        {
            "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
            "max_position_embeddings": 131072, "tie_word_embeddings": False, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        "citsjtu2020/LLM-Prof sglang/Model_Config.md",
    ),
    RealModel(
        "Ling-3.0-flash",
        {
            "model_type": "bailing_hybrid", "architectures": ["BailingMoeV3ForCausalLM"], "hidden_size": 2560,
            "intermediate_size": 6144, "moe_intermediate_size": 768, "moe_shared_expert_intermediate_size": 768,
            "num_hidden_layers": 42, "num_attention_heads": 32, "num_experts": 512, "num_experts_per_tok": 8,
            "num_shared_experts": 1, "first_k_dense_replace": 2, "n_group": 8, "topk_group": 4,
            "layer_group_size": 6, "head_dim": 128, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "short_conv_kernel_size": 4, "vocab_size": 157184,
            "max_position_embeddings": 262144,
        },
        "transformers BailingHybridConfig",
    ),
)  # fmt: skip
"""One for each distinct shape of ../shared/design/models-2026-11.md that mlx-lm 0.32.2 has a module for, and of the
older models in models/catalogue.toml."""
