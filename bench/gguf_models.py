"""A GGUF file's weights, configuration and tokenizer as mlx-lm reads them. Used by `bench.real_weights` alone.

Weights are dequantized and written in bfloat16. Two architectures: llama and gemma3. GGUF stores both in llama.cpp's
form: rotary halves of llama's q and k interleaved, 1 added to Gemma's norms. Needs the dependency group `real`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

_PROJECTIONS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
}  # fmt: skip

# GGUF's names of a layer's tensors, and mlx-lm's.
_NAMES = {
    "llama": {**_PROJECTIONS, "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        **_PROJECTIONS, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}  # fmt: skip

_OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}

# config.json beyond the sizes; gemma3's last three are no part of a GGUF file.
_CONFIG: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "gemma3": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
    },
}  # fmt: skip

_CONTROL = 3  # the type of a control token in tokenizer.ggml.token_type


class GgufModel:
    """One GGUF file."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader  # pyright: ignore[reportMissingImports]

        self._reader = GGUFReader(path)
        self.architecture: str = self._field("general.architecture")

    def write_weights(self, folder: Path) -> None:
        """Write model.safetensors, in bfloat16."""
        from gguf import dequantize  # pyright: ignore[reportMissingImports]

        weights = {}
        for tensor in self._reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            weights[self._name(tensor.name)] = mx.array(self._values(tensor.name, values)).astype(mx.bfloat16)
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})

    def write_config(self, folder: Path, end_ids: list[int]) -> None:
        """Write config.json. `end_ids`: the ids that end a reply."""
        config = {
            **_CONFIG[self.architecture],
            "hidden_size": self._size("embedding_length"),
            "num_hidden_layers": self._size("block_count"),
            "intermediate_size": self._size("feed_forward_length"),
            "num_attention_heads": self._size("attention.head_count"),
            "num_key_value_heads": self._size("attention.head_count_kv"),
            "rms_norm_eps": float(f"{self._size('attention.layer_norm_rms_epsilon'):.4g}"),  # it is a float32 there
            "rope_theta": self._size("rope.freq_base"),
            "vocab_size": len(self._field("tokenizer.ggml.tokens")),
            "max_position_embeddings": self._size("context_length"),
            "tie_word_embeddings": True,  # there is no output.weight
            "bos_token_id": self._field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": end_ids,
            "torch_dtype": "bfloat16",
        }
        if self.architecture == "gemma3":
            config |= {
                "head_dim": self._size("attention.key_length"),
                "sliding_window": self._size("attention.sliding_window"),
            }
        write_json(folder / "config.json", config)

    def write_tokenizer(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json of SmolLM2: byte-level BPE, numbers digit by digit."""
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.decoders import ByteLevel as ByteLevelDecoder
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        if (kind := self._field("tokenizer.ggml.pre")) != "smollm":
            raise ValueError(f"The tokenizer of this GGUF file is {kind!r}; only SmolLM2's, 'smollm', is rebuilt here.")
        tokens, types = self._field("tokenizer.ggml.tokens"), self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.decoder = ByteLevelDecoder()
        control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        tokenizer.save(str(folder / "tokenizer.json"))
        named = {
            f"{short}_token": tokens[self._field(f"tokenizer.ggml.{name}_token_id")]
            for short, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        }
        rest = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self._size("context_length"),
            "clean_up_tokenization_spaces": False,
            "chat_template": self._field("tokenizer.chat_template"),
        }
        write_json(folder / "tokenizer_config.json", named | rest)

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def _size(self, name: str) -> Any:
        return self._field(f"{self.architecture}.{name}")

    def _name(self, name: str) -> str:
        if name in (
            outer := {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
        ):
            return outer[name]
        _, layer, kind, _ = name.split(".")  # blk.7.attn_q.weight
        return f"model.layers.{layer}.{_NAMES[self.architecture][kind]}.weight"

    def _values(self, name: str, values: np.ndarray) -> np.ndarray:
        if self.architecture == "gemma3":
            return values - 1 if "norm" in name else values
        if ".attn_q." in name:
            return _halves(values, self._size("attention.head_count"))
        if ".attn_k." in name:
            return _halves(values, self._size("attention.head_count_kv"))
        return values


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head, from interleaved (0, n, 1, n + 1, ...) to the two rotary halves one after the other."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
