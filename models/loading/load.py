"""Loads a model: resolves its name, downloads it if needed, checks headers and memory, then reads the weights.

Runs on the thread that owns MLX and evaluates every weight there. Errors of mlx-lm, transformers, JSON and safetensors
become one sentence. Independent of caches and generation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.device import Device, check_temporary_folder, current_device
from mlxkv.errors import ModelError, ModelFileError, escaped, first_line
from mlxkv.models.files.architecture import (
    check_files,
    model_classes,
    read_config,
    read_generation_config,
    repository_like,
    runnable,
)
from mlxkv.models.files.chat_template import FoundTemplate
from mlxkv.models.files.completeness import WEIGHTS, check_complete
from mlxkv.models.files.end_tokens import EndToken
from mlxkv.models.files.text_part import classes, forget_names, kv_b_rank
from mlxkv.models.files.weight_memory import check_fits, predict_weights
from mlxkv.models.hub.download import ensure
from mlxkv.models.hub.hub import Hub, check_hub_settings
from mlxkv.models.loading.adapter import FILES, Adapter, load_adapter
from mlxkv.models.loading.rope import normalize_ropes
from mlxkv.models.loading.tokenizer import load_tokenizer
from mlxkv.models.resolve import resolve
from mlxkv.safetensors.header import Header, check_weights

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

_STEP = 64 << 20  # bytes evaluated between two checks of `cancel`


@dataclass(frozen=True)
class LoadProgress:
    """`phase`: "downloading" or "loading"; bytes, `total` 0 while unknown."""

    name: str
    phase: str
    done: int
    total: int


class ModelSplit(Protocol):
    """Leaves a model with the part of it that this process computes, one of `size`; see `distributed.split`."""

    size: int

    def apply(self, model: Any, name: str) -> None: ...


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run. `weight_bytes` counts the arrays in memory, `load_s` excludes the download."""

    name: str
    path: Path
    config: dict[str, Any]
    model: nn.Module
    tokenizer: TokenizerWrapper
    weight_bytes: int
    load_s: float
    trained_length: int | None  # tokens
    generation: dict[str, Any]
    ends: tuple[EndToken, ...] = ()  # tokens that end a reply
    template: FoundTemplate | None = None
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the weights files, before they were read
    adapter: Adapter | None = None
    machines: Any = None  # where it is one part of the model: `distributed.machines.Machines`

    def files_changed(self) -> bool:
        """Whether a weights file has changed since: then its hash does not describe the weights in memory."""
        return bool(self.stamps) and file_stamps(self.path, self.adapter) != self.stamps


def file_stamps(folder: Path, adapter: Adapter | None = None) -> dict[str, tuple[int, ...]]:
    """Device, inode, size, mtime and ctime of each weights file, which change with its content."""
    files = {path.name: path for path in folder.glob("*.safetensors")}
    if adapter is not None:
        files |= {f"adapter/{name}": adapter.folder / name for name in FILES}
    infos = {name: path.stat() for name, path in files.items() if path.is_file()}
    return {name: (i.st_dev, i.st_ino, i.st_size, i.st_mtime_ns, i.st_ctime_ns) for name, i in infos.items()}


def load_model(
    name: str,
    *,
    progress: Callable[[LoadProgress], None] | None = None,
    cancel: threading.Event | None = None,
    hub: Hub | None = None,
    device: Device | None = None,
    adapter: str | None = None,
    split: ModelSplit | None = None,
) -> LoadedModel:
    """Load a built-in model, a folder, or `org/name[@revision]`, downloading what the hub's cache lacks.

    `adapter`: a LoRA adapter for it, see `load_adapter`. `progress` is called on this thread; its exceptions end the
    load. `cancel` may be set from any thread. `split`: load one part.

    Raises:
        ModelNotFoundError: no such name, folder, repository or revision; or the folder holds no model.
        ModelUnsupportedError: mlx-lm lacks the architecture, or the repository requires running its own code.
        ModelDownloadError: offline, gated, disk too small, interrupted, cancelled.
        ModelFileError: a file is damaged or invalid.
        OutOfMemoryError: the weights would not fit this machine; raised before they are downloaded or read.
        ModelError: cancelled while loading. ConfigError: no temporary folder, or see `check_hub_settings`.
    """
    device = device or current_device()
    check_temporary_folder(device)
    check_hub_settings()
    tuned = None
    if adapter is not None:  # first: it is the smaller download
        tuned = load_adapter(adapter, hub=hub, progress=_downloading(adapter, progress), cancel=cancel)
    parts = 1 if split is None else split.size
    folder = _folder(name, progress, cancel, hub, device, parts)
    start = time.perf_counter()
    given = read_config(folder, name)
    config = runnable(given)
    generation = read_generation_config(folder)
    check_files(folder)
    _, args_class = model_classes(config, name)  # refused before a gigabyte is read
    normalized = normalize_ropes(config, name)
    check_complete(folder, name)
    changed = {key: value for key, value in normalized.items() if key not in given or value is not given[key]}
    stamps = file_stamps(folder, tuned)
    headers = _check_weight_files(folder) + ([tuned.header] if tuned is not None and tuned.added_bytes else [])
    need, slow = predict_weights(headers, device, kv_b_rank(args_class, config))
    check_fits(name, need // parts, device)
    model, config = _read_weights(folder, name, config, changed)
    if tuned is not None:
        tuned.apply(model, name)
    _convert(model, slow)
    if split is not None:
        split.apply(model, name)
        check_fits(f"this part of {name}", sum(array.nbytes for array in _arrays(model)), device)
    weight_bytes = _evaluate(model, name, config, progress, cancel)
    text = load_tokenizer(folder, name, given, generation)
    load_s = time.perf_counter() - start
    length = trained_length(config)
    return LoadedModel(
        name, folder, config, model, text.tokenizer, weight_bytes, load_s, length, generation, text.ends, text.template,
        stamps, tuned,
    )  # fmt: skip


def _folder(
    name: str,
    progress: Callable[[LoadProgress], None] | None,
    cancel: threading.Event | None,
    hub: Hub | None,
    device: Device,
    parts: int = 1,
) -> Path:
    source = resolve(name)
    if source.path is not None or source.repo is None:
        return source.path or Path(name)
    return ensure(
        source.repo,
        source.revision,
        hub=hub,
        progress=_downloading(name, progress),
        cancel=cancel,
        check=lambda plan: check_fits(name, plan.weight_bytes // parts, device),
    )


def _downloading(name: str, progress: Callable[[LoadProgress], None] | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(LoadProgress(name, "downloading", done, total))


def _check_weight_files(folder: Path) -> list[Header]:
    """The headers of the files mlx-lm will read; every safetensors file in the folder is checked."""
    headers = {path.name: check_weights(path) for path in sorted(folder.glob("*.safetensors"))}
    read = [headers[path.name] for path in sorted(folder.glob(WEIGHTS))]
    if any("\ud800" <= c <= "\udfff" for c in str(folder)):  # MLX and tokenizers require a UTF-8 path
        raise ModelFileError(f"mlx-lm cannot read a model from {folder}, whose path is not UTF-8; rename it.")
    if any(c in str(folder) for c in "*?["):
        raise ModelFileError(f"mlx-lm cannot read weights from {folder}, whose path contains *, ? or [; rename it.")
    return read


def _read_weights(
    folder: Path, name: str, config: dict[str, Any], changed: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with lazy weights, and mlx-lm's completed config with the `changed` keys."""
    from mlx_lm.utils import load_model as mlx_lm_load_model

    with _weights_errors(name, config):
        model, config = mlx_lm_load_model(
            folder,
            lazy=True,
            strict=True,
            model_config=changed,
            get_model_classes=lambda config: classes(model_classes(config, name)),  # type: ignore[arg-type]
        )
        forget_names(model)
    return model, config


def _convert(model: nn.Module, slow: Collection[str]) -> None:
    """Convert the `slow` types to float32. Packed weights are integers and unaffected; their scales are converted."""
    import mlx.core as mx

    dtypes = {getattr(mx, name) for name in slow}
    if dtypes:
        model.set_dtype(mx.float32, lambda dtype: dtype in dtypes)


def _evaluate(
    model: nn.Module,
    name: str,
    config: dict[str, Any],
    progress: Callable[[LoadProgress], None] | None,
    cancel: threading.Event | None,
) -> int:
    """Load the weights into memory in steps, for progress and cancellation; return their bytes."""
    import mlx.core as mx

    arrays = _arrays(model)
    total = sum(array.nbytes for array in arrays)
    done = waiting = 0
    step: list[mx.array] = []
    for number, array in enumerate(arrays, 1):
        step.append(array)
        waiting += array.nbytes
        if waiting < _STEP and number < len(arrays):
            continue
        if cancel is not None and cancel.is_set():
            raise ModelError(f"Loading {name} was stopped; load it again when you need it.")
        with _weights_errors(name, config):
            mx.eval(step)
        done, step, waiting = done + waiting, [], 0
        if progress is not None:
            progress(LoadProgress(name, "loading", done, total))
    return total


def _arrays(model: nn.Module) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(model.parameters())]  # type: ignore[misc]


@contextmanager
def _weights_errors(name: str, config: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kind, why = config["model_type"], first_line(error)
        quantized = config.get("quantization_config")
        if "quantization" not in config and isinstance(quantized, dict) and "quant_method" in quantized:
            other = repository_like(kind) or "a repository in MLX format, such as mlx-community's"
            raise ModelFileError(
                f"{name} is quantized in the format {escaped(quantized['quant_method'])}, which mlx-lm's {kind} "
                f"cannot load ({why}); use {other}."
            ) from error
        raise ModelFileError(
            f"The weights of {name} do not fit the {kind} model that its config.json describes "
            f"({why}); download it again or use another model."
        ) from error
