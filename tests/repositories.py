"""Small random models in the form in which repositories are published: file names, prefixes and parts of real ones.

The key names are those of the originals and of mlx-community's conversions. A vision repository has tensors that mlx-lm
does not run: a vision tower, a projector, an audio tower, an MTP layer.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from tests.tokenizers import THINK, VOCAB, tiny_tokenizer

# As vision templates do: a message is a text or a list of parts. Reasoning is switched, and stripped from old replies.
PARTS = (
    "{% macro shown(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'image' %}{{ raise_exception('no image was expected') }}{% endif %}{{ part.text }}"
    "{% endfor %}{% endif %}{% endmacro %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ shown(m.content) }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)

_SMALL = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": VOCAB, "num_hidden_layers": 4}
_QWEN = {
    **_SMALL, "model_type": "qwen3_5_text", "num_key_value_heads": 2, "intermediate_size": 128, "rms_norm_eps": 1e-6,
    "head_dim": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "attn_output_gate": True,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "mtp_num_hidden_layers": 1, "mamba_ssm_dtype": "float32", "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
    },
}  # fmt: skip
_QWEN_MOE = {
    **_QWEN, "model_type": "qwen3_5_moe_text", "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip
_GEMMA = {
    **_SMALL, "model_type": "gemma4_text", "num_key_value_heads": 1, "intermediate_size": 64, "head_dim": 32,
    "global_head_dim": 64, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 2, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 4096, "use_double_wide_mlp": False, "final_logit_softcapping": 30.0,
    "dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
_MINISTRAL = {
    **_SMALL, "model_type": "ministral3", "num_key_value_heads": 2, "intermediate_size": 128, "head_dim": 16,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False, "sliding_window": None,
    "attention_bias": False, "mlp_bias": False,
    "rope_parameters": {
        "rope_theta": 1_000_000.0, "rope_type": "yarn", "type": "yarn", "factor": 16.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 256,
    },
}  # fmt: skip
_LFM = {
    **_SMALL, "model_type": "lfm2", "num_key_value_heads": 2, "max_position_embeddings": 4096, "norm_eps": 1e-5,
    "conv_bias": False, "conv_L_cache": 3, "block_dim": 64, "intermediate_size": 128, "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True, "rope_theta": 1_000_000.0, "dtype": "bfloat16",
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}  # fmt: skip

_LING = {
    **_SMALL, "model_type": "bailing_hybrid", "architectures": ["BailingMoeV3ForCausalLM"], "intermediate_size": 128,
    "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2,
    "n_group": 2, "dtype": "bfloat16", "topk_group": 1, "head_dim": 32, "q_lora_rank": 32, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 1,
}  # fmt: skip

_VISION = {"model_type": "vision", "hidden_size": 32, "depth": 1, "patch_size": 16}
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def _qwen(kind: str = "qwen3_5", text: dict[str, Any] = _QWEN) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": kind, "text_config": text,
        "vision_config": {**_VISION, "model_type": kind, "deepstack_visual_indexes": []}, "image_token_id": 60,
        "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59, "tie_word_embeddings": False,
    }  # fmt: skip


def _gemma(kind: str = "gemma4", **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": kind, "text_config": _GEMMA,
        "vocab_size": VOCAB, "vision_config": {**_VISION, "model_type": "gemma4_vision"}, "dtype": "bfloat16",
        "audio_config": {"model_type": "gemma4_audio", "hidden_size": 32}, "eos_token_id": [2, 62],
        "boi_token_id": 60, "eoi_token_id": 61, "vision_soft_tokens_per_image": 280, **more,
    }  # fmt: skip


_MISTRAL = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": _MINISTRAL,
    "vision_config": {**_VISION, "model_type": "pixtral"}, "image_token_index": 10, "spatial_merge_size": 2,
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "dtype": "bfloat16",
}  # fmt: skip


def _nested(name: str) -> str:
    """Names of the originals: the text part is `model.language_model`."""
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return name.removeprefix("language_model.")


def _as_torch(_: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Convolutions and norms of a Qwen3.5 as torch keeps them."""
    norms = ("layernorm.weight", "language_model.norm.weight", "q_norm.weight", "k_norm.weight")
    moved = {k: v.moveaxis(2, 1) if "conv1d.weight" in k else v for k, v in weights.items()}
    return {k: v - 1.0 if k.endswith(norms) else v for k, v in moved.items()}


def _joined_kv_b(network: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """`embed_q` and `unembed_out` joined and quantized, as the conversion of the original's `kv_b_proj` is."""
    for path in [name.removesuffix("embed_q.weight") for name in weights if name.endswith("embed_q.weight")]:
        keys, values = weights.pop(f"{path}embed_q.weight"), weights.pop(f"{path}unembed_out.weight")
        joined = mx.concatenate([keys.swapaxes(-1, -2), values], axis=1)  # (heads, nope + v, rank)
        packed = mx.quantize(joined.reshape(-1, joined.shape[-1]), 32, 4)
        weights |= dict(
            zip((f"{path}kv_b_proj.{part}" for part in ("weight", "scales", "biases")), packed, strict=True)
        )
        plain = mx.dequantize(*packed, 32, 4).reshape(joined.shape)
        split = keys.shape[-1]
        parts = {"embed_q.weight": plain[:, :split].swapaxes(-1, -2), "unembed_out.weight": plain[:, split:]}
        network.load_weights([(path + part, array) for part, array in parts.items()], strict=False)
    return weights


def _block_fp8(network: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The linear layers in FP8 with a scale for each 128 x 128 weights, as Qwen publishes them."""

    def scales(weight: mx.array) -> tuple[mx.array, mx.array]:
        scale = mx.random.uniform(0.01, 0.02, [-(-n // 128) for n in weight.shape]).astype(mx.bfloat16)
        return scale, mx.repeat(mx.repeat(scale, 128, 0), 128, 1)[: weight.shape[0], : weight.shape[1]]

    return _fp8(network, weights, scales)


def _tensor_fp8(network: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The linear layers in FP8 with one scale each and one for their input, as Mistral publishes them."""
    scale = mx.array(0.015, mx.bfloat16)
    weights = _fp8(network, weights, lambda _: (scale, scale))
    inputs = [name.removesuffix("weight_scale_inv") for name in weights if name.endswith("weight_scale_inv")]
    return weights | {f"{path}activation_scale": scale for path in inputs}


def _fp8(
    network: nn.Module, weights: dict[str, mx.array], scales: Callable[[mx.array], tuple[mx.array, mx.array]]
) -> dict[str, mx.array]:
    parameters: list[Any] = tree_flatten(network.parameters())  # type: ignore[assignment]
    plain: list[tuple[str, mx.array]] = []
    for (own, weight), name in zip(parameters, list(weights), strict=True):
        if name.endswith("_proj.weight"):
            scale, each = scales(weight)
            packed = mx.to_fp8(weight / each)
            weights |= {name: packed, f"{name}_scale_inv": scale}
            plain.append((own, mx.from_fp8(packed, dtype=mx.bfloat16) * each))
    network.load_weights(plain, strict=False)
    return weights


@dataclass(frozen=True)
class Form:
    """A form of repository: its config.json, the name of each of mlx-lm's parameters, and prefixes of other tensors.

    `runs`: config.json of mlx-lm's model, if the published one names another. `bits`: of each module, by its path; 0:
    it is not quantized. `stored`: the weights as published, of those of mlx-lm's model.
    """

    config: dict[str, Any]
    rename: Callable[[str], str] = str
    others: tuple[str, ...] = ()
    runs: dict[str, Any] | None = None
    bits: Callable[[str], int] | None = None
    stored: Callable[[nn.Module, dict[str, mx.array]], dict[str, mx.array]] = lambda _, weights: weights
    num_files: int = 1
    template: str = "chat_template.jinja"
    files: tuple[str, ...] = field(default=_PROCESSORS)


FORMS: dict[str, Form] = {
    "Qwen3.5, mlx-community": Form(
        _qwen(), others=("vision_tower.blocks.0.attn.qkv", "vision_tower.patch_embed.proj"), bits=lambda _: 4
    ),
    "Qwen3.5, original": Form(
        _qwen(), _nested, ("model.visual.blocks.0.attn.qkv", "mtp.layers.0.mlp.up_proj", "mtp.fc"),
        stored=_as_torch, num_files=2,
    ),
    "Qwen3.6, MTP kept": Form(_qwen(), others=("language_model.mtp.fc", "vision_tower.merger.norm"), num_files=2),
    "Qwen3.6 MoE, mlx-community": Form(
        _qwen("qwen3_5_moe", _QWEN_MOE), others=("vision_tower.blocks.0.attn.qkv",),
        bits=lambda path: 8 if "gate" in path else 4,
    ),
    "Qwen3.8, as qwen3_8": Form(_qwen("qwen3_8"), others=("vision_tower.blocks.0.attn.qkv",), runs=_qwen()),
    "Qwen3.5, text part alone": Form(
        {"architectures": ["Qwen3_5ForCausalLM"], **_QWEN}, lambda name: name.removeprefix("language_model."),
        runs=_qwen(), files=(),
    ),
    "Gemma 4 E2B, mlx-community": Form(
        _gemma(), others=("vision_tower.encoder.layers.0.mlp.down_proj", "embed_vision.embedding_projection",
                          "audio_tower.layers.0.norm_out", "embed_audio.embedding_projection"), bits=lambda _: 4,
    ),
    "Gemma 4 E2B, original": Form(
        _gemma(), _nested,
        ("model.vision_tower.encoder.layers.0.mlp.down_proj", "model.embed_vision.embedding_projection",
         "model.audio_tower.layers.0.norm_out"), template="chat_template.json",
    ),
    "Gemma 4 12B, unified": Form(
        _gemma("gemma4_unified"), _nested,
        ("model.vision_embedder.patch_dense", "model.embed_vision.embedding_projection"),
    ),
    "Gemma 4, qat-mobile": Form(_gemma(), others=("vision_tower.std_bias",), bits=lambda p: 2 if ".mlp." in p else 4),
    "Gemma 4, text part without its prefix": Form(
        _gemma(), lambda name: name.removeprefix("language_model."), files=("processor_config.json",)
    ),
    "Ministral 3, mlx-community": Form(
        _MISTRAL, others=("vision_tower.transformer.layers.0.feed_forward.up_proj", "multi_modal_projector.linear_1"),
        bits=lambda _: 4, files=("processor_config.json", "preprocessor_config.json", "params.json", "tekken.json"),
    ),
    "Ministral 3, nested": Form(
        _MISTRAL, _nested, ("model.vision_tower.patch_conv", "model.multi_modal_projector.patch_merger.merging_layer")
    ),
    "Ministral 3, original in FP8": Form(
        {**_MISTRAL, "quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, _nested,
        ("model.vision_tower.patch_conv",), stored=_tensor_fp8,
    ),
    "Qwen3.6, in FP8": Form(
        {**_qwen(), "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}},
        _nested, ("model.visual.blocks.0.attn.qkv",), stored=_block_fp8,
    ),
    "LFM2.5": Form({"architectures": ["Lfm2ForCausalLM"], **_LFM}, files=()),
    "LFM2.5-2.6B, odd prefix": Form(
        {"architectures": ["Lfm2ForCausalLM"], **_LFM, "vision_config": {}}, lambda name: "language_model." + name,
        bits=lambda _: 4, files=(),
    ),
    "LFM2.5-VL": Form(
        {"architectures": ["Lfm2VlForConditionalGeneration"], "model_type": "lfm2_vl", "text_config": _LFM,
         "vision_config": {**_VISION, "model_type": "siglip2_vision_model"}, "downsample_factor": 2},
        lambda name: "model.language_model." + name.removeprefix("model."),
        ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1", "model.multi_modal_projector.layer_norm"),
        runs=_LFM,
    ),
    "Ling 3.0, kv_b_proj quantized": Form(
        _LING, bits=lambda path: 0 if "embed_q" in path or "unembed_out" in path else 4, stored=_joined_kv_b, files=()
    ),
}  # fmt: skip

# Families that mlx-lm 0.32.2 has no module for.
UNSUPPORTED = (
    "deepseek_v4", "qwen4_exp", "glm5_next", "lfm3", "inkling_mm_model", "hy_v3", "nemotron_h_puzzle",
    "nemotron_labs_diffusion", "diffusion_gemma", "glm4v", "glm4v_moe", "cohere2_moe", "step3p7", "minimax_m3",
)  # fmt: skip


def publish(folder: Path, form: Form, seed: int = 0) -> nn.Module:
    """Write a repository of this form; returns mlx-lm's model with the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    network = _random(form.runs or form.config, seed)
    config = dict(form.config)
    if form.bits is not None:
        config["quantization"] = _quantize(network, form.bits)
    parameters: list[Any] = tree_flatten(network.parameters())  # type: ignore[assignment]
    weights: dict[str, mx.array] = {form.rename(name): array for name, array in parameters}
    weights = form.stored(network, weights)
    for other in form.others:
        weights[f"{other}.weight"] = mx.random.normal((32, 32)).astype(mx.bfloat16)
    _save(folder, weights, form.num_files)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 62], "temperature": 0.6, "top_k": 20})
    for name in form.files:
        write_json(folder / name, {"image_processor_type": "ImageProcessor", "processor_class": "Processor"})
    (folder / "README.md").write_text("---\nlibrary_name: mlx\n---\n")
    tokenizer = tiny_tokenizer(None, marks=THINK)._tokenizer
    tokenizer.save_pretrained(folder)
    if form.template.endswith(".json"):
        write_json(folder / form.template, {"chat_template": PARTS})
    else:
        (folder / form.template).write_text(PARTS)
    return network


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _random(config: dict[str, Any], seed: int) -> nn.Module:
    config = json.loads(json.dumps(config))  # mlx-lm changes it
    kind = {"gemma4_unified": "gemma4", "bailing_hybrid": "bailing_moe_v3"}.get(
        config["model_type"], config["model_type"]
    )
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(seed)
    network = module.Model(module.ModelArgs.from_dict(config))
    network.set_dtype(mx.bfloat16)
    mx.eval(network.parameters())
    return network.eval()


def _quantize(network: nn.Module, bits: Callable[[str], int]) -> dict[str, Any]:
    """Quantize `network` as mlx-lm's conversion does; returns `quantization` of config.json."""
    table: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "affine"}

    def how(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module["weight"].shape[-1] % 32:
            return False
        if bits(path) != 4:
            table[path] = {"group_size": 32, "bits": bits(path)} if bits(path) else False
        return {"group_size": 32, "bits": bits(path)} if bits(path) else False

    nn.quantize(network, 32, 4, class_predicate=how)
    mx.eval(network.parameters())
    return table


def _save(folder: Path, weights: dict[str, mx.array], num_files: int) -> None:
    names = sorted(weights)
    table: dict[str, str] = {}
    for i in range(num_files):
        # Qwen's own shards are called so.
        file = "model.safetensors" if num_files == 1 else f"model.safetensors-{i + 1:05}-of-{num_files:05}.safetensors"
        part = names[i::num_files]
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in part}, metadata={"format": "mlx"})  # type: ignore[arg-type]
        _name_fp8(folder / file)
        table |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in weights.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": table})


def _name_fp8(file: Path) -> None:
    """Change the dtype of FP8 tensors in a header, which MLX writes as bytes."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length])).replace('"dtype": "U8"', '"dtype": "F8_E4M3"').encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
