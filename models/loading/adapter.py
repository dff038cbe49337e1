"""LoRA adapters of mlx-lm: finds an adapter's folder, checks its two files, and applies it to a loaded model.

The layers are mlx-lm's own (`mlx_lm.tuner`: LoRA, DoRA, or whole weights). Errors of theirs become one sentence. Only
`Adapter.apply` imports MLX, and runs on the thread that owns it; the rest on any thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from mlxkv.errors import MlxkvError, ModelFileError, ModelNotFoundError, escaped, first_line, printable, quoted
from mlxkv.models.files.architecture import read_json
from mlxkv.models.hub.download import download
from mlxkv.models.hub.hub import Hub, find_local
from mlxkv.models.resolve import BUILT_IN, Source, resolve
from mlxkv.safetensors.header import Header, check_weights

if TYPE_CHECKING:
    import mlx.nn as nn

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
FILES = (CONFIG, WEIGHTS)

_PEFT = "adapter_model.safetensors"  # Hugging Face's format, with other names and shapes
_FLOATS = ("F32", "F16", "BF16")
_MOST_RANK = 1 << 16
_LOW_RANK = ("lora_a", "lora_b")  # the names of what every LoRA and DoRA layer adds


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. `name`: what loads it again from anywhere, the full path of a folder or a repository id.

    `kind`: "lora", "dora", or "full" for whole weights in place of the model's. `header`: of its tensors.
    """

    name: str
    folder: Path
    kind: str
    header: Header

    @property
    def added_bytes(self) -> int:
        """Bytes in memory beside the model's own weights."""
        return 0 if self.kind == "full" else sum(tensor.end - tensor.start for tensor in self.header.tensors)

    def apply(self, model: nn.Module, model_name: str) -> None:
        """Wrap the layers of `model`, with lazy weights.

        Raises:
            ModelFileError: it is for another model. Then `model` is of no use any more.
        """
        from mlx.utils import tree_flatten
        from mlx_lm.tuner.utils import load_adapters

        try:
            load_adapters(model, str(self.folder))
        except Exception as error:  # also those of the model's own code
            self._refuse_model(_reason(error), model_name, error)
        held = {tensor.name for tensor in self.header.tensors}
        made = [name for name, _ in tree_flatten(model.parameters()) if name.rpartition(".")[2] in _LOW_RANK]
        if missing := [name for name in made if name not in held and self.kind != "full"]:
            self._refuse_model(f"it has no {missing[0]}, which its {CONFIG} asks for", model_name)
        model.eval()  # the new layers drop out numbers while they train

    def _refuse_model(self, why: str, model_name: str, cause: Exception | None = None) -> NoReturn:
        raise ModelFileError(
            f"The adapter {self.name} does not fit {model_name} ({why}); use the model it was trained on."
        ) from cause


def load_adapter(
    name: str,
    *,
    hub: Hub | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> Adapter:
    """Find and check an adapter: a folder, or a repository `org/name[@revision]`, downloaded if it is missing.

    Raises:
        ModelNotFoundError: there is no such folder or repository, or it holds no adapter of mlx-lm's.
        ModelFileError: a file is damaged or invalid. ModelDownloadError: see `download`.
    """
    source, hub = _source(name), hub or Hub()
    folder = source.path or _local(source, hub)
    if folder is None:
        folder = download(source.repo or "", source.revision, hub=hub, progress=progress, cancel=cancel, allow=FILES)
    return _checked(name if source.path is None else str(source.path), folder)


def local_adapter(name: str, hub: Hub | None = None) -> Adapter | None:
    """`load_adapter` without a download: None if the repository is not on this disk."""
    source = _source(name)
    folder = source.path or _local(source, hub or Hub())
    return None if folder is None else _checked(name if source.path is None else str(source.path), folder)


def _local(source: Source, hub: Hub) -> Path | None:
    return find_local(hub, source.repo or "", source.revision, need_weights=False, needs=FILES)


def _source(name: str) -> Source:
    try:
        return resolve(f"./{name}" if name in BUILT_IN else name)  # none is built in
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"There is no adapter {quoted(name)}: name the folder that holds {WEIGHTS}, or a repository as org/name."
        ) from error


def _checked(name: str, folder: Path) -> Adapter:
    for file in FILES:
        if not (folder / file).exists():
            if (folder / _PEFT).exists():
                raise ModelNotFoundError(
                    f"{name} holds an adapter of PEFT ({_PEFT}), which mlx-lm cannot load; "
                    "use one that mlx_lm.lora made, or a model with it fused in."
                )
            raise ModelNotFoundError(f"{name} is not an adapter: it holds no {file}; name a folder with both.")
    kind = _check_config(folder / CONFIG)
    header = check_weights(folder / WEIGHTS)
    if not header.tensors:
        raise ModelFileError(f"The adapter {name} holds no tensors; train it again.")
    for tensor in header.tensors:
        if tensor.dtype not in _FLOATS:
            raise ModelFileError(
                f"The adapter {name} holds {escaped(tensor.name)} as {tensor.dtype}; it must be one of "
                f"{', '.join(_FLOATS)}."
            )
    if any("\ud800" <= c <= "\udfff" for c in str(folder)):
        raise ModelFileError(f"mlx-lm cannot read an adapter from {folder}, whose path is not UTF-8; rename it.")
    return Adapter(name, folder, kind, header)


def _check_config(path: Path) -> str:
    """Check what mlx-lm takes from adapter_config.json; returns the kind of the adapter."""
    table = read_json(path) or {}

    def refuse(key: str, rule: str, found: object) -> NoReturn:
        raise ModelFileError(f"In {path} `{key}` must be {rule}, found {escaped(found)}; train the adapter again.")

    kind = table.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        refuse("fine_tune_type", "lora, dora or full", kind)
    if kind == "full":
        return kind
    if type(layers := table.get("num_layers")) is not int:
        refuse("num_layers", "a whole number", layers)
    parameters = table.get("lora_parameters")
    if not isinstance(parameters, dict):
        refuse("lora_parameters", "an object with rank, scale and dropout", parameters)
    rank, scale, dropout = (parameters.get(key) for key in ("rank", "scale", "dropout"))
    if type(rank) is not int or not 1 <= rank <= _MOST_RANK:
        refuse("rank", f"a whole number from 1 to {_MOST_RANK:,}", rank)
    if not _is_number(scale):
        refuse("scale", "a number", scale)
    if not (_is_number(dropout) and 0 <= dropout < 1):
        refuse("dropout", "a number from 0 to less than 1", dropout)
    keys = parameters.get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        refuse("keys", "a list of names of layers", keys)
    return kind


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


def _reason(error: Exception) -> str:
    """The first thing that mlx-lm found wrong, which it lists below a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, MlxkvError) or len(lines) < 2:
        return first_line(error)
    return printable(lines[1][:200])
