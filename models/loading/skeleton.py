"""A model without its weights: mlx-lm's modules with the right shapes and dtypes, for memory estimates.

The arrays are broadcast zeros, which take no memory.
Runs on the thread that owns MLX.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxkv.device import Device, current_device
from mlxkv.errors import MlxkvError, ModelFileError, ModelUnsupportedError, first_line
from mlxkv.models.files.architecture import model_classes, read_config, read_generation_config, runnable, stored_dtype
from mlxkv.models.files.completeness import WEIGHTS
from mlxkv.models.files.text_part import not_loaded, text_name
from mlxkv.models.files.weight_memory import slow_dtypes
from mlxkv.models.hub.download import download
from mlxkv.models.hub.hub import Hub, check_hub_settings, find_local
from mlxkv.models.loading.rope import normalize_ropes
from mlxkv.models.loading.tokenizer import ModelTokenizer, load_tokenizer
from mlxkv.models.resolve import resolve
from mlxkv.safetensors.header import check_weights

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

_CONFIG_FILES = ("config.json", "generation_config.json", "hf_quant_config.json")


def skeleton(
    name_or_path: str | Path, *, hub: Hub | None = None, device: Device | None = None
) -> tuple[dict[str, Any], nn.Module]:
    """Return (config.json, model with placeholder weights); `name_or_path` as in `load_model`. Downloads only JSON.

    The sum of the arrays' `nbytes` is close to the size of the weights (exact if config.json says how each layer is
    quantized). As in loading, 16-bit types become float32 where they are slow.

    Raises:
        ModelError: as in `load_model`, but weights are not checked.
    """
    import mlx.core as mx
    from mlx.utils import tree_map

    name = str(name_or_path)
    device = device or current_device()
    config = runnable(read_config(_config_folder(name, hub or Hub()), name))
    model_class, args_class = model_classes(config, name)
    config = normalize_ropes(config, name)
    try:
        model = model_class(args_class.from_dict(config))
        stored = stored_dtype(config) or ""
        is_slow = stored in slow_dtypes(device, is_quantized=isinstance(config.get("quantization"), dict))
        halves = {"float16": mx.float16, "bfloat16": mx.bfloat16}
        model.set_dtype(mx.float32 if is_slow else halves.get(stored, mx.float32))
        _quantize(model, config)
        model.update(tree_map(placeholder, model.parameters()))
        mx.eval(model.parameters())  # one number each, broadcast
    except ModelUnsupportedError:
        raise
    except Exception as error:
        raise ModelFileError(
            f"The config.json of {name} does not describe a {config['model_type']} model ({first_line(error)}); "
            "download it again or use another model."
        ) from error
    return config, model


def find_tokenizer(name_or_path: str | Path, *, hub: Hub | None = None) -> ModelTokenizer | None:
    """Find the tokenizer of a model without its weights; None if it is not downloaded.

    Raises:
        ModelError: as in `load_tokenizer`.
    """
    name = str(name_or_path)
    folder = _config_folder(name, hub or Hub())
    if not any(folder.glob("tokenizer*")):
        return None
    return load_tokenizer(folder, name, read_config(folder, name), read_generation_config(folder))


def parts_not_loaded(name_or_path: str | Path, *, hub: Hub | None = None) -> str:
    """What of a repository mlxkv does not load, by `not_loaded`; reads headers of weights, if they are there."""
    name = str(name_or_path)
    folder = _config_folder(name, hub or Hub())
    sizes: list[tuple[str, int]] = []
    with suppress(MlxkvError):  # loading reports a damaged file
        for path in sorted(folder.glob(WEIGHTS)):
            sizes += [(tensor.name, tensor.end - tensor.start) for tensor in check_weights(path).tensors]
    return not_loaded(read_config(folder, name), sizes)


def _config_folder(name: str, hub: Hub) -> Path:
    check_hub_settings()
    source = resolve(name)
    if source.path is not None or source.repo is None:
        return source.path or Path(name)
    found = find_local(hub, source.repo, source.revision, need_weights=False)
    return found or download(source.repo, source.revision, hub=hub, allow=_CONFIG_FILES)


def _quantize(model: nn.Module, config: dict[str, Any]) -> None:
    """Quantize as mlx-lm does on loading, but without weights: every possible layer, except as config.json says."""
    import mlx.nn as nn

    quantization = config.get("quantization")
    if not isinstance(quantization, dict):
        return
    group_size = quantization["group_size"]
    named = {text_name(path): how for path, how in quantization.items()}

    def how(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if text_name(path) in named:
            return named[text_name(path)]
        return hasattr(module, "to_quantized") and module["weight"].shape[-1] % group_size == 0

    nn.quantize(model, group_size, quantization["bits"], mode=quantization.get("mode", "affine"), class_predicate=how)


def placeholder(array: mx.array) -> mx.array:
    """An array of the same shape and dtype, taking no memory."""
    import mlx.core as mx

    return mx.broadcast_to(mx.zeros((), array.dtype), array.shape)
