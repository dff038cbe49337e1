"""What a model folder says about itself: config.json and generation_config.json, and whether mlx-lm knows the type.

Reads small files and mlx-lm's list of model classes; touches no weights. Imports mlx_lm lazily. Any thread may call
`read_config`; the rest imports MLX.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from mlxkv.errors import ModelFileError, ModelNotFoundError, ModelUnsupportedError
from mlxkv.system.regular_file import check_regular, parse_json, read_bytes, reason

MAX_JSON = 32 << 20  # bytes; quantized mixtures list every layer, which is a few MB

MAX_TOKENIZER = 256 << 20  # bytes of a vocabulary
_READ_BY_OTHERS = ("*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "vocab*", "merges*", "*/*.jinja")
TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # read by transformers
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.A)  # it becomes part of a module's name


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ModelNotFoundError: there is none.
        ModelFileError: it is not a JSON object, or has no usable model_type.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config is None:
        raise ModelNotFoundError(f"{name} is no model: {folder} holds no config.json; name a folder that does.")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise ModelFileError(
            f"{path} must name the architecture as model_type, found {ascii(model_type)[:80]}; use another model."
        )
    return config


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json (the authors' temperature, top_p, ...), {} where there is none.

    Raises:
        ModelFileError: it is not a JSON object.
    """
    return read_json(folder / "generation_config.json") or {}


def check_files(folder: Path) -> None:
    """Call it before transformers and mlx-lm open files of `folder` by themselves: a pipe would never end.

    Raises:
        ModelFileError: one is no regular file, is too large or cannot be read, or a small JSON file is no JSON object.
    """
    try:
        for path in sorted({path for pattern in _READ_BY_OTHERS for path in folder.glob(pattern)}):
            check_regular(path, MAX_TOKENIZER)
    except OSError as error:
        raise ModelFileError(f"{error.filename} cannot be read ({reason(error)}); download the model again.") from error
    for name in TOKENIZER_CONFIGS:
        read_json(folder / name)


def model_classes(config: dict[str, Any], name: str) -> tuple[Any, Any]:
    """mlx-lm's (Model, ModelArgs) for a config from `read_config`.

    `auto_map` alone is no reason to refuse: many configs keep it for other programs though mlx-lm has the architecture.

    Raises:
        ModelUnsupportedError: mlx-lm has no such architecture, or the repository wants its own code run.
    """
    if config.get("model_file"):
        raise ModelUnsupportedError(
            f"{name} wants to run its own program {ascii(config['model_file'])[:80]} to build the model, which mlxkv "
            "never does; use a model of an architecture mlx-lm has."
        )
    from mlx_lm.utils import _get_classes

    try:
        return _get_classes(config)
    except Exception as error:  # no module, a helper module without a Model, or one that fails to import
        kind = config["model_type"]
        if config.get("auto_map"):
            raise ModelUnsupportedError(
                f"{name} has the model_type {kind!r}, which mlx-lm does not know, and wants its own code run instead "
                "(auto_map), which mlxkv never does; use another model."
            ) from error
        raise ModelUnsupportedError(
            f"{name} has the model_type {kind!r}, which this mlx-lm does not know; use another model or a newer mlxkv."
        ) from error


def is_known(config: dict[str, Any]) -> bool:
    """Whether mlx-lm has a module for a config from `read_config`, as far as its files tell; imports nothing.

    For lists: `model_classes` knows better and takes a second.
    """
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
    """The dtype config.json says the weights have ("bfloat16"), None where it does not say."""
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            value = table.get(key)
            if isinstance(value, str):
                return value.removeprefix("torch.")
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object of a model; None where there is no such file.

    Raises:
        ModelFileError: it is none.
    """
    try:
        data = read_bytes(path, MAX_JSON)
        if data.startswith(_BOM):
            raise ValueError("it begins with a byte order mark, which mlx-lm does not read; save it without one")
        found = parse_json(data)
        if _SURROGATE.search(data):
            json.dumps(found, ensure_ascii=False).encode()  # tokenizers and terminals take whole characters alone
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON ({reason(error)}); download the model again.") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} must hold a JSON object, found {ascii(found)[:80]}; download the model again.")
    return found
