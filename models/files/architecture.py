"""Reads config.json and generation_config.json of a model folder, and checks that mlx-lm supports the architecture.

Reads small files and mlx-lm's list of model classes; no weights. Imports mlx_lm lazily. Any thread may call
`read_config`; the rest imports MLX.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from mlxkv.device import current_device
from mlxkv.errors import ModelFileError, ModelNotFoundError, ModelUnsupportedError, escaped
from mlxkv.models.catalogue import catalogue, suggestions
from mlxkv.models.files.text_part import text_config
from mlxkv.system import transformers_names
from mlxkv.system.regular_file import check_regular, parse_json, read_bytes, reason

MAX_JSON = 32 << 20  # bytes; quantized mixtures list every layer, which is a few MB

MAX_TOKENIZER = 256 << 20  # bytes of a vocabulary
_READ_BY_OTHERS = ("*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "vocab*", "merges*", "*/*.jinja")
TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # read by transformers
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"
_FLOAT_MODE = re.compile(r"(mxfp|nvfp|fp)\d{1,2}")  # of a quantization

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.A)  # it becomes part of a module's name
# Models of the catalogue, of families that mlx-lm has only in part, by the beginning of the model_type it lacks.
_INSTEAD = {
    "qwen4": "mlx-community/Qwen3.6-35B-A3B-4bit",
    "qwen": "mlx-community/Qwen3.5-4B-MLX-4bit",
    "glm": "mlx-community/GLM-4.7-Flash-4bit",
    "lfm": "mlx-community/LFM2.5-1.2B-Instruct-4bit",
    "nemotron": "mlx-community/NVIDIA-Nemotron-3-Nano-4B-4bit",
    "gemma": "mlx-community/gemma-4-E4B-it-qat-4bit",
    "diffusion_gemma": "mlx-community/gemma-4-E4B-it-qat-4bit",
    "mistral": "mlx-community/Ministral-3-3B-Instruct-2512-4bit",
    "ministral": "mlx-community/Ministral-3-3B-Instruct-2512-4bit",
    "granite": "mlx-community/granite-4.1-3b-4bit",
}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        ModelNotFoundError: the file does not exist.
        ModelFileError: it is not a JSON object, or has no usable model_type.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config is None:
        inner = sorted(found.parent.name for found in folder.glob("*/config.json"))
        which = f"one of its folders that do ({', '.join(inner[:4])})" if inner else "a folder that does"
        raise ModelNotFoundError(f"{name} is not a model: {folder} holds no config.json; name {which}.")
    if not has_model_type(config):
        raise ModelFileError(
            f"{path} must name the architecture as model_type, found {escaped(config.get('model_type'))}; "
            "use another model."
        )
    return config


def has_model_type(config: dict[str, Any]) -> bool:
    """Whether a config.json names an architecture as mlx-lm's modules are named."""
    found = config.get("model_type")
    return isinstance(found, str) and _MODEL_TYPE.fullmatch(found) is not None


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read generation_config.json (the authors' temperature, top_p, ...); {} if it does not exist.

    Raises:
        ModelFileError: it is not a JSON object.
    """
    return read_json(folder / "generation_config.json") or {}


def check_files(folder: Path) -> None:
    """Check the small files of `folder` before transformers and mlx-lm open them: reading a pipe would never end.

    Raises:
        ModelFileError: one is not a regular file, is too large or cannot be read, or is not a JSON object.
    """
    try:
        for path in sorted({path for pattern in _READ_BY_OTHERS for path in folder.glob(pattern)}):
            check_regular(path, MAX_TOKENIZER)
    except OSError as error:
        raise ModelFileError(f"{error.filename} cannot be read ({reason(error)}); download the model again.") from error
    for name in TOKENIZER_CONFIGS:
        read_json(folder / name)


def model_classes(config: dict[str, Any], name: str) -> tuple[Any, Any]:
    """Return mlx-lm's (Model, ModelArgs) for a config from `read_config`.

    `auto_map` alone is accepted: many configs keep it for other programs although mlx-lm has the architecture.

    Raises:
        ModelUnsupportedError: mlx-lm has no such architecture, or the repository requires running its own code.
    """
    if config.get("model_file"):
        raise ModelUnsupportedError(
            f"{name} requires running its own program {escaped(config['model_file'])}, which mlxkv never "
            "does; use a model with an architecture that mlx-lm has."
        )
    transformers_names.keep()
    from mlx_lm.utils import _get_classes

    try:
        return _get_classes(config)
    except Exception as error:  # no module, a helper module without a Model, or one that fails to import
        kind = config["model_type"]
        other = _other_model(kind)
        if config.get("auto_map"):
            raise ModelUnsupportedError(
                f"{name} has the model_type {kind!r}, which mlx-lm does not support, and requires running its own "
                f"code (auto_map), which mlxkv never does; use {other}."
            ) from error
        raise ModelUnsupportedError(
            f"{name} has the model_type {kind!r}, which mlx-lm does not support; use {other} or a newer mlxkv."
        ) from error


def repository_like(kind: str) -> str:
    """A repository that mlx-lm runs of the family of the model_type `kind`; "" if none is known."""
    return next((repo for start, repo in _INSTEAD.items() if kind.startswith(start)), "")


def _other_model(kind: str) -> str:
    """What to use instead of an unsupported model: one of its family that fits here, else what is suggested here."""
    limit, family = current_device().memory_limit, repository_like(kind)
    if any(entry.id == family and entry.fits(limit) for entry in catalogue()):
        return family
    return next((suggestion.entry.id for suggestion in suggestions(limit)), "another model")


def is_known(config: dict[str, Any]) -> bool:
    """Whether mlx-lm seems to support this config or its text part, judged from its files without importing it.

    For lists: `model_classes` is certain but takes a second.
    """
    return _has_module(runnable(config))


def runnable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that mlx-lm runs of a config from `read_config`: see `text_config`."""
    return text_config(config, _has_module)


def _has_module(config: dict[str, Any]) -> bool:
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return True
    folder = Path(next(iter(spec.submodule_search_locations)))
    kind = config["model_type"]
    if (folder / "models" / f"{kind}.py").is_file():
        return True
    try:
        text = (folder / "utils.py").read_text(encoding="utf-8")
    except OSError:
        return True
    return re.search(rf'^ *\(?"{re.escape(kind)}"', text, re.M) is not None  # a key of one of its tables


def stored_dtype(config: dict[str, Any]) -> str | None:
    """The dtype of the weights by config.json ("bfloat16"), or None."""
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            value = table.get(key)
            if isinstance(value, str):
                return value.removeprefix("torch.")
    return None


def quantization(config: dict[str, Any]) -> str:
    """The precision of most weights by config.json: `4-bit`, `MXFP4`, `16-bit`; "" if it does not say."""
    table = config.get("quantization") or config.get("quantization_config")
    if isinstance(table, dict):
        mode, bits = table.get("mode") or table.get("quant_method"), table.get("bits")
        if isinstance(mode, str) and _FLOAT_MODE.fullmatch(mode):
            return mode.upper()
        return f"{bits}-bit" if isinstance(bits, int) and 0 < bits <= 32 else ""
    return {"bfloat16": "16-bit", "float16": "16-bit", "float32": "32-bit"}.get(stored_dtype(config) or "", "")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a small JSON object of a model; None if the file does not exist.

    Raises:
        ModelFileError: it cannot be read as JSON, or is not an object.
    """
    try:
        data = read_bytes(path, MAX_JSON)
        if data.startswith(_BOM):
            raise ValueError("it begins with a byte order mark, which mlx-lm does not accept; save it without one")
        found = parse_json(data)
        if _SURROGATE.search(data):
            json.dumps(found, ensure_ascii=False).encode()  # tokenizers and terminals reject lone surrogates
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON ({reason(error)}); download the model again.") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} must hold a JSON object, found {escaped(found)}; download the model again.")
    return found
