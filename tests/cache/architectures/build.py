"""Building a tiny random model from a module's name and the few arguments that are its own."""

from __future__ import annotations

import copy
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

VOCAB = 64
SLIDING = 20  # tokens; every native window, chunk or budget of an indexer is about as large

COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": VOCAB, "max_position_embeddings": 4096,
    "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "sliding_window": SLIDING,
    "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "layer_norm_epsilon": 1e-5, "norm_epsilon": 1e-5, "norm_eps": 1e-5,
    "attention_bias": False, "mlp_bias": False, "use_bias": False, "tie_word_embeddings": False, "use_qk_norm": True,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "num_shared_experts": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "first_k_dense_replace": 1, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_layer_freq": 1,
    # latent attention and indexers
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "index_head_dim": 32, "index_n_heads": 16, "index_topk": 16, "mla_scale_q_lora": True, "mla_scale_kv_lora": True,
    # scales
    "embedding_multiplier": 2.0, "attention_multiplier": 0.2, "logits_scaling": 2.0, "residual_multiplier": 0.8,
    # recurrent layers
    "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2, "state_size": 16, "conv_kernel": 4,
    "use_conv_bias": True, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "conv_bias": False, "conv_L_cache": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """`args` are added to COMMON; a `text_config` among them is itself added to COMMON."""

    module: str
    family: str
    args: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """What a config.json would hold."""
        args = {**COMMON, "model_type": self.module, **copy.deepcopy(self.args)}
        if "text_config" not in args:
            return args
        text = {**COMMON, "model_type": self.module, **args["text_config"]}
        return {"model_type": self.module, "vocab_size": VOCAB, **args, "text_config": text}

    def build(self, config: dict[str, Any] | None = None) -> Any:
        """A float32 model with random weights, none of them zero or one throughout."""
        module = importlib.import_module(f"mlx_lm.models.{self.module}")
        mx.random.seed(0)
        model = module.Model(module.ModelArgs.from_dict(copy.deepcopy(config) if config else self.config()))
        model.update(tree_map_with_path(_shaken, model.parameters()))
        mx.eval(model.parameters())
        model.eval()
        return model


def _shaken(path: str, weight: Any) -> Any:
    """Norms of ones and biases of zeros hide mistakes, and the decay rates of recurrent layers are safe as they are."""
    if not isinstance(weight, mx.array) or not mx.issubdtype(weight.dtype, mx.floating):
        return weight
    shape = weight.shape
    noise = mx.random.normal(shape)
    if len(shape) >= 2 and min(shape) > 1 and "embed" not in path:
        # Sharper attention than random initialisation gives, so that what a query sees shows in the logits.
        return (1.5 * weight + 0.05 * noise).astype(mx.float32)
    return (weight + 0.1 * noise).astype(mx.float32)


def module_names() -> list[str]:
    """Every module of mlx_lm.models that defines a model."""
    import mlx_lm.models as models

    files = sorted(Path(str(models.__file__)).parent.glob("*.py"))
    defines = re.compile(r"^class Model\(|^from \S+ import Model\b", re.M)
    return [file.stem for file in files if defines.search(file.read_text())]
