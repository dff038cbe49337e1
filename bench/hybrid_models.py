"""Random hybrids of one real layer shape, small enough for a CPU: `build` writes one as `mlxkv.load` reads it.

Everything that the size of a state or of a KV row depends on is as published; hidden size, MLP and vocabulary are small
where neither depends on them. The shapes are those of public configurations: Qwen3.5-4B (24 linear and 8 full layers),
Nemotron 3 Nano 4B (42 layers: 21 Mamba, 4 attention, 17 MLP) and LFM2.5-1.2B (10 convolutions, 6 attention). Numbers
are bfloat16 as in the originals where the CPU is fast enough with it, else float32.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.tokenizers import VOCAB, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'][0] }}{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a{% endif %}"
)
OVERHEAD = 3  # tokens of the template around a message
_NUM_MARKS = 4  # ids of the tokenizer that are marks
_NEMOTRON = "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-"
_LFM2 = "CCACCACCACACACAC"


@dataclass(frozen=True)
class Family:
    """`config` makes the configuration with this many layers (`num_layers`: as published, `few`: a short one)."""

    name: str
    num_layers: int
    few: int
    dtype: mx.Dtype
    config: Callable[[int], dict[str, Any]]


def _qwen3_5(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 256, "linear_num_value_heads": 32, "linear_num_key_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 262_144,
        "rope_parameters": {"type": "default", "mrope_section": [11, 11, 10], "rope_theta": 10_000_000,
                            "partial_rotary_factor": 0.25},
    }  # fmt: skip


def _nemotron_h(layers: int) -> dict[str, Any]:
    pattern = _NEMOTRON if layers == len(_NEMOTRON) else ("MM*-" * layers)[:layers]
    return {
        "hidden_size": 128, "intermediate_size": 128, "hybrid_override_pattern": list(pattern),
        "num_hidden_layers": layers, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "mamba_num_heads": 96, "mamba_head_dim": 80, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
        "mamba_proj_bias": False, "attention_bias": False, "mlp_bias": False, "use_bias": False, "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5, "max_position_embeddings": 262_144,
    }  # fmt: skip


def _lfm2(layers: int) -> dict[str, Any]:
    pattern = (_LFM2 * layers)[:layers]
    return {
        "hidden_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "full_attn_idxs": [i for i, kind in enumerate(pattern) if kind == "A"], "conv_L_cache": 3, "conv_bias": False,
        "block_dim": 2048, "block_ff_dim": 256, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False, "norm_eps": 1e-5, "max_position_embeddings": 128_000,
    }  # fmt: skip


FAMILIES = {
    family.name: family
    for family in (
        Family("qwen3_5", 32, 4, mx.bfloat16, _qwen3_5),
        Family("nemotron_h", 42, 4, mx.float32, _nemotron_h),
        Family("lfm2", 16, 4, mx.float32, _lfm2),
    )
}


def build(folder: Path, family: Family, layers: int) -> Path:
    """A random model with these layers, and a tokenizer of one token per character, in `folder`.

    It never samples a mark, so that each reply has exactly as many tokens as it may.
    """
    folder.mkdir(parents=True)
    module = importlib.import_module(f"mlx_lm.models.{family.name}")
    config = {
        "model_type": family.name, "vocab_size": VOCAB, "tie_word_embeddings": False,
        "torch_dtype": str(family.dtype).removeprefix("mlx.core."), **family.config(layers),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(family.dtype)
    weights: dict[str, Any] = dict(tree_flatten(model.parameters()))
    heads = [n for n in weights if n.endswith("lm_head.weight")] or [n for n in weights if "embed_tokens" in n]
    for name in heads:
        weights[name][:_NUM_MARKS] = 0  # logits of 0, and another id has more
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tiny_tokenizer(TEMPLATE)._tokenizer.save_pretrained(folder)
    return folder
