"""The text part of a repository: which configuration and which tensors of it mlx-lm runs, by which names.

Vision repositories hold more than that: towers, projectors, an MTP layer. mlx-lm's modules drop what their own family
has and expect the names of its own conversions; this module does the same for the others. Reads no file. Any thread,
except what `classes` returns.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mlxkv.stats import bytes_text

if TYPE_CHECKING:
    import mlx.nn as nn

# Architectures that mlx-lm has under another name. Qwen3.6 and 3.8 are Qwen3.5's; some repackagings name the release.
_SAME = {
    "qwen3_5_text": "qwen3_5", "qwen3_6": "qwen3_5", "qwen3_8": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_6_moe": "qwen3_5_moe", "qwen3_8_moe": "qwen3_5_moe",
}  # fmt: skip
_FP8_BLOCK = 128  # rows and columns that share a scale, unless the whole tensor does
_OTHER = re.compile(
    r"(?:model\.|language_model\.)*"
    r"(vision_\w+|visual|audio_\w+|embed_vision|embed_audio|multi_modal_projector|mm_projector|mtp)\."
)
_KINDS = {"visual": "images", "multi_modal_projector": "images", "mm_projector": "images", "mtp": "draft layers"}


def text_config(config: dict[str, Any], is_known: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The configuration that mlx-lm runs: `config`, that of another name for the architecture, or its `text_config`.

    Args:
        is_known: whether mlx-lm has the architecture of a configuration.
    """
    kind = config["model_type"]
    if is_known(config):
        return config
    text = config.get("text_config")
    if kind in _SAME and "linear_num_value_heads" in (text if isinstance(text, dict) else config):
        return config | {"model_type": _SAME[kind]}
    has_more = "vision_config" in config or "audio_config" in config
    if has_more and isinstance(text, dict) and isinstance(text.get("model_type"), str) and is_known(text):
        return config | text  # the rest, such as `quantization`, is beside it
    return config


def tensor_kind(name: str) -> str:
    """What a tensor that is not loaded is for ("images", "sound", "draft layers"); "" for those of the text part."""
    found = _OTHER.match(name)
    if found is None:
        return ""
    return _KINDS.get(found[1]) or ("sound" if "audio" in found[1] else "images")


def text_name(name: str) -> str:
    """The name of a tensor or module without the prefix of the text part in a vision model."""
    nested = name.removeprefix("model.language_model.")
    return name.removeprefix("language_model.") if nested == name else f"model.{nested}"


def classes(found: tuple[Any, Any]) -> tuple[Callable[[Any], nn.Module], Any]:
    """mlx-lm's (Model, ModelArgs) for its `load_model`: the model renames and drops tensors as needed."""
    model_class, args_class = found

    def make(args: Any) -> nn.Module:
        model: Any = model_class(args)
        own = getattr(model, "sanitize", dict)
        model.sanitize = lambda weights: _text_weights(model, own, weights)
        return model

    return make, args_class


def forget_names(model: nn.Module) -> None:
    """Undo what `classes` added to a loaded `model`, which would keep its weights from being freed."""
    vars(model).pop("sanitize", None)


def _text_weights(
    model: Any, own: Callable[[dict[str, Any]], dict[str, Any]], weights: Mapping[str, Any]
) -> dict[str, Any]:
    """The weights of the text part as the model's `own` sanitize returns them, under the names it knows."""
    from mlx.utils import tree_flatten

    wanted = {name for name, _ in tree_flatten(model.parameters())}
    text = {name: array for name, array in weights.items() if not tensor_kind(name)}
    if any(name.endswith(".weight_scale_inv") for name in text) and not _decodes_fp8(model):
        text = _with_plain_fp8(text)
    args = getattr(model, "args", None)  # some models keep none
    if args is not None and (rank := kv_b_rank(type(args), vars(args))):
        text = _with_plain_kv_b(text, rank)
    is_nested = any(name.startswith("model.language_model.") for name in wanted)  # gemma3n's
    prefix = "language_model." if any(name.startswith("language_model.") for name in wanted) else ""
    names = map(text_name, text)
    names = (f"model.language_model.{n.removeprefix('model.')}" if is_nested else prefix + n for n in names)
    renamed = dict(zip(names, text.values(), strict=True))
    try:
        found = own(dict(text))
        if wanted <= found.keys() or renamed.keys() == text.keys():
            return found
    except Exception:  # gemma3's expects its prefix
        if renamed.keys() == text.keys():
            raise
        return own(renamed)
    other = own(renamed)
    return other if len(wanted - other.keys()) < len(wanted - found.keys()) else found


def kv_b_rank(args_class: type, config: Mapping[str, Any]) -> int:
    """The columns of `kv_b_proj` in a model whose module refuses a quantized one, which is then unpacked; else 0."""
    rank = config.get("kv_lora_rank", getattr(args_class, "kv_lora_rank", 0))
    return rank if args_class.__module__.endswith(".bailing_moe_v3") and isinstance(rank, int) else 0


def _with_plain_kv_b(weights: dict[str, Any], rank: int) -> dict[str, Any]:
    """`weights` with every `kv_b_proj` dequantized: the module splits it and refuses a quantized one."""
    import mlx.core as mx

    packed = [name.removesuffix(".scales") for name in weights if name.endswith(".kv_b_proj.scales")]
    for path in packed:
        weight, scales, biases = (weights.pop(f"{path}.{part}", None) for part in ("weight", "scales", "biases"))
        group_size, bits = rank // scales.shape[-1], weight.shape[-1] * 32 // rank
        weights[f"{path}.weight"] = mx.dequantize(weight, scales, biases, group_size, bits)
    return weights


def _decodes_fp8(model: Any) -> bool:
    """Whether the module of `model`, or of its text part, decodes FP8 itself."""
    parts = (model, getattr(model, "language_model", model))
    return any("from_fp8" in inspect.getsource(sys.modules[type(part).__module__]) for part in parts)


def _with_plain_fp8(weights: dict[str, Any]) -> dict[str, Any]:
    """`weights` with FP8 decoded. MLX loads it as bytes; some modules take these for numbers (ministral3)."""
    import mlx.core as mx

    for name in [name for name in weights if name.endswith(".weight_scale_inv")]:
        weight, scale = weights[name.removesuffix("_scale_inv")], weights[name]
        if weight.dtype != mx.uint8 or scale.dtype == mx.uint8:  # scales may be powers of two, in FP8 themselves
            continue
        plain = mx.from_fp8(weight, dtype=mx.bfloat16)
        if scale.size > 1:
            if weight.ndim != 2 or scale.shape != tuple(-(-n // _FP8_BLOCK) for n in weight.shape):
                continue  # loading reports it
            scale = mx.repeat(mx.repeat(scale, _FP8_BLOCK, 0), _FP8_BLOCK, 1)[: weight.shape[0], : weight.shape[1]]
        weights[name.removesuffix("_scale_inv")] = (plain * scale).astype(mx.bfloat16)
        del weights[name]
    return weights


def not_loaded(config: Mapping[str, Any], sizes: Iterable[tuple[str, int]]) -> str:
    """What of a repository is not loaded: "images (812 MB), draft layers (230 MB)"; "" if nothing.

    Args:
        config: config.json, which answers for weights that are not downloaded.
        sizes: the name and the bytes of each tensor; none before the download.
    """
    totals: dict[str, int] = {}
    has_weights = False
    for name, size in sizes:
        has_weights = True
        if kind := tensor_kind(name):
            totals[kind] = totals.get(kind, 0) + size
    if not has_weights:
        parts = (("vision_config", "images"), ("audio_config", "sound"))
        return ", ".join(kind for key, kind in parts if config.get(key))
    return ", ".join(f"{kind} ({bytes_text(size)})" for kind, size in totals.items())
