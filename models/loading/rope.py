"""Translates the `rope_parameters` of transformers 5 for modules of mlx-lm that do not read them.

A model is built without weights and its ropes are compared with the config. If they differ, variants of the config with
the keys that mlx-lm's modules read are tried; if none gives the right ropes, the model is refused. A config that is
read correctly stays unchanged, since it is part of the identity of saved rows. On the MLX thread.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from mlxkv.errors import ModelFileError, ModelUnsupportedError, escaped
from mlxkv.models.files.architecture import model_classes

if TYPE_CHECKING:
    import mlx.nn as nn

_NEAR = (1, 37, 1009)  # positions at which ropes are compared; large ones are inexact in float32
_TOLERANCE = 0.01
_LARGEST = 1e18  # limit of numbers in a config; excludes NaN too
_LOCAL = ("sliding_attention", "chunked_attention", "local_attention", "local")
_FULL = ("full_attention", "global_attention", "global", "main")
_THETAS = ("rope_theta", "rotary_emb_base", "rope_freq_constant", "rope_embedding_base")
_NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor", "attention_factor")
_NOT_SCALING = ("rope_theta", "mrope_section", "mrope_interleaved", "rope_type", "type", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """One entry of `rope_parameters`, with transformers' defaults filled in."""

    theta: float
    kind: str  # transformers' rope_type
    partial: float | None  # partial_rotary_factor
    values: Mapping[str, Any]

    @property
    def scaling(self) -> dict[str, Any] | None:
        """The `rope_scaling` of configs before transformers 5."""
        values = {key: value for key, value in self.values.items() if key not in _NOT_SCALING and value is not None}
        if self.kind == "default" and not values:
            return None
        if self.kind == "proportional" and self.partial is not None:
            values["partial_rotary_factor"] = self.partial
        return {"rope_type": self.kind, "type": self.kind, **values}

    @property
    def parameters(self) -> dict[str, Any]:
        """The complete entry of transformers 5."""
        partial = {} if self.partial is None else {"partial_rotary_factor": self.partial}
        values = {key: value for key, value in self.values.items() if key != "type"}
        return {**values, **partial, "rope_type": self.kind, "rope_theta": self.theta}

    def __str__(self) -> str:
        part = "" if self.partial is None else f" on {self.partial:g} of each row"
        return f"{escaped(self.kind)} with theta {self.theta:,.10g}{part}"


def normalize_ropes(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Translate `rope_parameters` into keys that mlx-lm's module reads; return `config` itself if that is not needed.

    Raises:
        ModelUnsupportedError: the module cannot make these ropes, or ignores them.
        ModelFileError: the config has invalid values for ropes.
    """
    if wrong := _wrong(config):
        raise ModelFileError(f"The config.json of {name} has {wrong}; correct it or use another model.")
    ropes = read_ropes(config)
    if not ropes:
        if _has_null_theta(config, name):
            raise ModelFileError(f"The config.json of {name} has rope_theta null; correct it or use another model.")
        return config
    is_built, missing = False, ""
    for variant in _variants(config, ropes):
        try:
            model = _build(variant, name)
        except ModelUnsupportedError:
            raise
        except Exception:  # a module's own code; loading reports the error if no variant can be built
            continue
        is_built, missing = True, _missing(model, variant, ropes)
        if not missing:
            return variant
    if not is_built and all(_can_make(rope, config) for rope in ropes.values()):
        return config
    what = missing or " and ".join(str(rope) for rope in ropes.values())
    raise ModelUnsupportedError(
        f"The rope_parameters of {name} require {what}, which mlx-lm's {config['model_type']} does not support; use "
        "another model or a newer mlxkv."
    )


def _wrong(config: Mapping[str, Any]) -> str:
    """Describe an invalid value, or ""; transformers rejects it too, and mlx-lm would make a wrong rope."""
    text = _text(config)
    given = text.get("rope_parameters") or config.get("rope_parameters")
    if given and not isinstance(given, dict):
        return f"rope_parameters {escaped(given)}, which must be an object"
    entries = [("", {key: text.get(key) for key in _THETAS if isinstance(text.get(key), (str, bool))})]
    for label, values in (given or {}).items():
        if isinstance(values, dict):
            entries.append((f" for {escaped(label)}", values))
        elif label in (*_LOCAL, *_FULL) and values is not None:
            return f"rope_parameters {escaped(values)} for {escaped(label)}, which must be an object"
    for label, values in (*entries, ("", given or {})):
        for key in (*_NUMBERS, *_THETAS):
            value = values.get(key)
            is_none = key == "partial_rotary_factor" and value == 0  # in a layer without positions
            if value is not None and not is_none and not (_is_number(value) and value > 0):
                return f"{key} {escaped(value)}{label}, which must be a number above 0 and below 1e18"
    return ""


def _has_null_theta(config: dict[str, Any], name: str) -> bool:
    """Whether a rope would get a null theta, which fails at the first token; harmless in a model without ropes."""
    import mlx.nn as nn

    text = _text(config)
    if not any(key in text and text[key] is None for key in _THETAS):
        return False
    try:
        modules = _build(config, name).modules()
    except Exception:  # a module's own code; loading reports the error
        return False
    return any(isinstance(module, nn.RoPE) and module.base is None for module in modules)


def read_ropes(config: Mapping[str, Any]) -> dict[str, Rope]:
    """The ropes by layer type ("" for all layers) in `rope_parameters`; {} if there are none.

    As in transformers, missing values come from the older keys, and `rope_scaling` wins.
    """
    old = {**config, **_text(config)}
    given = _text(config).get("rope_parameters") or config.get("rope_parameters")
    if not isinstance(given, dict) or not given:
        return {}
    nested = {label: values for label, values in given.items() if isinstance(values, dict)} or {"": given}
    if isinstance(scaling := old.get("rope_scaling"), dict) and scaling:
        label = next((label for label in ("", *_FULL) if label in nested), "")
        nested = {
            **nested,
            **({label: {**_normalized(nested[label]), **_normalized(scaling)}} if label in nested else {}),
        }
    found = {label: _rope(values, old, label) for label, values in nested.items()}
    return {label: rope for label, rope in found.items() if rope is not None}


def _rope(values: Mapping[str, Any], old: Mapping[str, Any], label: str) -> Rope | None:
    """A rope; None if it has no theta, no partial factor, and the default kind."""
    values = _normalized(values)
    kind, partial = values["rope_type"], values.get("partial_rotary_factor")
    keys = ("rope_local_base_freq", *_THETAS) if label in _LOCAL else _THETAS
    theta = next((v for v in (values.get("rope_theta"), *(old.get(key) for key in keys)) if _is_number(v)), None)
    if theta is None:
        if kind == "default" and partial is None:
            return None
        theta = 10_000.0
    trained, outer = old.get("max_position_embeddings"), old.get("original_max_position_embeddings")
    if kind in ("yarn", "llama3", "longrope"):  # Phi 3 has it outside, and then that one counts
        values["original_max_position_embeddings"] = outer or values.get("original_max_position_embeddings") or trained
    original, factor = values.get("original_max_position_embeddings"), values.get("factor")
    if kind == "yarn" and factor is None and _is_number(trained) and _is_number(original) and original:
        factor = trained / original
    if _is_number(factor):
        values["factor"] = float(factor)  # some modules require a float
    wanted = values.get("attention_factor")
    if kind == "yarn" and _is_number(wanted) and _is_number(factor) and factor > 1 and not values.get("mscale_all_dim"):
        values["mscale"] = (wanted - 1) / (0.1 * math.log(factor))  # gives the same factor in mlx-lm
    return Rope(float(theta), kind, float(partial) if _is_number(partial) else None, values)


def _normalized(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with mlx-lm's name of the kind in `rope_type`, also if it was in `type`."""
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "su" or (kind == "yarn" and "long_factor" in values):
        kind = "longrope"
    kind = "default" if kind == "mrope" else kind
    return {**{k: v for k, v in values.items() if k != "type"}, "rope_type": kind}


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


# -- wordings ----------------------------------------------------------------------------------------------------------


def _variants(config: dict[str, Any], ropes: Mapping[str, Rope]) -> Iterator[dict[str, Any]]:
    """The config, then equivalent ones, the likeliest first."""
    yield config
    types = _text(config).get("layer_types") or ("full_attention", "sliding_attention")
    kinds = sorted({t for t in types if isinstance(t, str)}) if isinstance(types, (list, tuple)) else []
    flat = ropes.get("")
    by_type = dict.fromkeys(kinds, flat.parameters) if flat else {t: rope.parameters for t, rope in ropes.items()}
    for parameters in (flat.parameters if flat else by_type, by_type, None):
        said = {**_old_keys(config, ropes), "rope_parameters": parameters}
        changed = {**config, **said}
        if _text(config) is not config:
            changed["text_config"] = {**config["text_config"], **said}
        yield changed


def _old_keys(config: Mapping[str, Any], ropes: Mapping[str, Rope]) -> dict[str, Any]:
    """The ropes as keys of configs before transformers 5, under every name that a module of mlx-lm reads."""
    every = list(ropes.values())
    main = next((ropes[label] for label in ("", *_FULL) if label in ropes), every[0])
    local = next((ropes[label] for label in _LOCAL if label in ropes), None)
    keys: dict[str, Any] = dict.fromkeys(_THETAS, main.theta)
    keys["rope_scaling"] = main.scaling
    if local is not None:
        keys |= dict.fromkeys(("rope_local_base_freq", "rope_local_theta", "swa_rope_theta"), local.theta)
    if "compress" in ropes:
        keys["compress_rope_theta"] = ropes["compress"].theta
        keys["rope_scaling"] = ropes["compress"].scaling
    if main.partial is not None:
        keys |= dict.fromkeys(("partial_rotary_factor", "rotary_pct"), main.partial)
        if head := _head_dim(_text(config)):
            keys["rotary_dim"] = int(head * main.partial)
    if original := main.values.get("original_max_position_embeddings"):
        keys["original_max_position_embeddings"] = original
    if isinstance(attention := _text(config).get("attn_config"), dict):  # DBRX
        keys["attn_config"] = {**attention, "rope_theta": main.theta}
    return keys


def _head_dim(text: Mapping[str, Any]) -> int:
    if isinstance(text.get("head_dim"), int):
        return text["head_dim"]
    hidden, heads = text.get("hidden_size"), text.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 0


# -- ropes of a model ------------------------------------------------------------------------------------------------


def _build(config: dict[str, Any], name: str) -> nn.Module:
    """The model with random weights, never evaluated."""
    from mlx_lm.utils import _decode_tagged_floats

    model_class, args_class = model_classes(config, name)
    return model_class(args_class.from_dict(copy.deepcopy(_decode_tagged_floats(config))))


def _missing(model: Any, config: Mapping[str, Any], ropes: Mapping[str, Rope]) -> str:
    """The wanted ropes that a model lacks; "" if it lacks none, or has no ropes at all."""
    import mlx.nn as nn

    from mlxkv.cache.rings.sink_rotation import ropes_of

    layers = [[rope for rope in ropes_of(layer) if _dims(rope)] for layer in model.layers]
    if not any(layers):
        return ""
    types = _text(config).get("layer_types")
    is_known = isinstance(types, list) and len(types) == len(layers) and all(isinstance(t, str) for t in types)
    labels: list[Any] = types if is_known and isinstance(types, list) else [None] * len(layers)
    matched: set[str] = set()
    is_unexpected = False
    for label, layer, found in zip(labels, model.layers, layers, strict=True):
        wanted = {label: ropes[label]} if label in ropes else ropes
        for rope in found:
            fits = [label for label, want in wanted.items() if _is_same(rope, want, config, layer)]
            matched.update(fits)
            is_plain = type(rope) is nn.RoPE and getattr(rope, "scale", None) == 1.0  # as in sliding windows
            is_unexpected |= not fits and not ("" in ropes and is_plain)
    present = {*ropes} - {*labels} | {label for label, found in zip(labels, layers, strict=True) if found}
    missing = [str(rope) for label, rope in ropes.items() if label in present and label not in matched]
    return " and ".join(missing or (str(rope) for rope in ropes.values() if is_unexpected))


def _dims(rope: Any) -> int:
    """The number of dimensions it rotates; 0 for the placeholder of a layer without positions."""
    freqs = getattr(rope, "_freqs", None)
    return getattr(rope, "dims", None) or getattr(rope, "dim", None) or (0 if freqs is None else 2 * freqs.size)


def _is_same(rope: Any, want: Rope, config: Mapping[str, Any], layer: Any) -> bool:
    """Whether `rope` rotates and scales rows as `want` does."""
    import mlx.core as mx

    dims = _dims(rope)
    if want.partial is not None and want.kind != "proportional" and dims not in _widths(config, want.partial, layer):
        return False
    places = [*_NEAR, 2 * _length(config)] if want.kind == "dynamic" and _length(config) <= 1 << 16 else _NEAR
    ones, zeros = mx.ones((1, 1, 1, dims // 2)), mx.zeros((1, 1, 1, dims // 2))
    halves, pairs = mx.concatenate([ones, zeros], axis=-1), mx.stack([ones, zeros], axis=-1).reshape(1, 1, 1, dims)
    errors = []
    try:
        for x, is_interleaved in ((halves, False), (pairs, True)):
            expected = _make(want, dims, is_interleaved, config)
            error = [mx.abs(mx.abs(rope(x, offset=at)) - mx.abs(expected(x, offset=at))).max() for at in places]
            errors.append(mx.max(mx.stack(error)))
        return float(mx.min(mx.stack(errors)).item()) < _TOLERANCE  # type: ignore[arg-type]
    except Exception:  # mlx-lm's own code, e.g. factors for rows of another width
        return False


def _make(want: Rope, dims: int, is_interleaved: bool, config: Mapping[str, Any]) -> Any:
    """The rope made by mlx-lm."""
    from mlx_lm.models.rope_utils import SuScaledRoPE, initialize_rope

    scaling = want.scaling
    if want.kind == "dynamic" and _is_number(alpha := want.values.get("alpha")) and alpha:
        return initialize_rope(dims, want.theta * alpha ** (dims / (dims - 2)), is_interleaved)  # Hunyuan's
    made = initialize_rope(dims, want.theta, is_interleaved, scaling, _length(config))
    amplitude = want.values.get("long_mscale") or want.values.get("attention_factor")
    if isinstance(made, SuScaledRoPE) and _is_number(amplitude):
        made._scale = amplitude
    return made


def _can_make(want: Rope, config: Mapping[str, Any]) -> bool:
    try:
        _make(want, 64, False, config)
    except Exception:
        return False
    return True


def _length(config: Mapping[str, Any]) -> int:
    length = _text(config).get("max_position_embeddings", config.get("max_position_embeddings"))
    return length if isinstance(length, int) else 2048


def _widths(config: Mapping[str, Any], partial: float, layer: Any) -> set[int]:
    """The possible dimensions of a partial rope. Latent attention has separate rows for positions."""
    text = _text(config)
    heads = [text.get(key) for key in ("head_dim", "global_head_dim", "swa_head_dim")]
    heads += [getattr(module, "head_dim", None) for _, module in layer.named_modules()]
    heads.append(_head_dim(text))
    latent = {getattr(module, "qk_rope_head_dim", None) for _, module in layer.named_modules()}
    return {int(head * partial) for head in heads if isinstance(head, int)} | {w for w in latent if isinstance(w, int)}
