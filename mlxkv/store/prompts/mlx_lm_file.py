"""mlx-lm's prompt-cache files, both generations: written atomically, read strictly. Knows no model and no token ids.

mlx-lm's own loader trusts class names, integers and tree paths. Here every name that a file of so many layers of these
classes can have is computed, and the file must have exactly those. On the MLX thread.

    0.32       tensors `i.0` keys, `i.1` values (quantized `i.0.0` to `i.1.2`), then the integers as scalar tensors;
               metadata `0.<key>` the user's, `1.<i>` classes, `2.0` "", `2.<n>.0|1` name and kind of each scalar
    to 0.31    tensors `i.0`, `i.1` likewise; metadata `0.<i>[.<j>]` the integers as text, `1.<key>`, `2.<i>` classes
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlxkv.cache.interchange import KINDS, LayerState
from mlxkv.errors import ConfigError, CorruptError, StoreError, escaped
from mlxkv.safetensors.header import MAX_DIM, Header, Tensor, read_header
from mlxkv.safetensors.writer import encode_header, flat_bytes
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.kv.arrays import dtype_name, load_arrays
from mlxkv.store.kv.disk_usage import CheckSize, no_limit

if TYPE_CHECKING:
    import mlx.core as mx

VERSIONS = ("0.32", "0.31")
OUR_NAME = "mlxkv_model"  # in the metadata of exports: mlxkv's name of the model, where mlx-lm needs its folder
MAX_LAYERS = 1024
_FIELDS = {  # the integers of a layer, in mlx-lm's order
    "KVCache": {"0.32": ("offset",), "0.31": ()},
    "RotatingKVCache": {"0.32": ("offset", "keep", "max_size", "idx"), "0.31": ("keep", "max_size", "offset", "idx")},
    "QuantizedKVCache": {"0.32": ("offset", "group_size", "bits"), "0.31": ("offset", "group_size", "bits")},
}
_PARTS = {"KVCache": ("",), "RotatingKVCache": ("",), "QuantizedKVCache": (".0", ".1", ".2")}
_FLOATS = ("F32", "F16", "BF16")
_INTEGERS = ("I32", "I64", "U32")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True)
class MlxLmFile:
    """A file that passed every rule: its layers, the user's metadata, and the generation of the format."""

    layers: tuple[LayerState, ...]
    metadata: Mapping[str, str]
    version: str


# -- writing ---------------------------------------------------------------------------------------------------------


def write_mlx_lm(
    path: Path, layers: Sequence[LayerState], version: str, metadata: Mapping[str, str], before: Step = no_step,
    check_size: CheckSize = no_limit,
) -> int:  # fmt: skip
    """Write `layers` so that mlx-lm `version` loads them; returns the file's size. Evaluates one array at a time.

    `check_size` is called with the file's size before the first byte is written.

    Raises:
        ConfigError: no such version, or a name mlx-lm would not load. StoreError: the disk refuses, or too many layers.
    """
    if version not in VERSIONS:
        raise ConfigError(f"`version` is {version!r}; it must be {' or '.join(map(repr, VERSIONS))}.")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path.name} must end in .safetensors, or mlx-lm does not load it.")
    tensors: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        tensors |= {f"{i}.{side}{part}": x for side, part, x in _arrays(layer)}
        if version == "0.32":
            tensors |= {f"{i}.{2 + n}": getattr(layer, f) for n, f in enumerate(_FIELDS[layer.kind][version])}
    sized = [
        (name, "I32", (), 4) if isinstance(x, int) else (name, dtype_name(x), tuple(x.shape), x.nbytes)
        for name, x in tensors.items()
    ]
    try:
        header = encode_header(sized, _metadata(layers, version, metadata))
    except ValueError as error:
        raise StoreError(f"This cache does not fit into a file of mlx-lm's ({error}).") from error
    check_size(len(header) + sum(size for *_, size in sized))
    return Files(before).overwrite(path, _bytes(header, tensors), "The prompt cache ")


def _arrays(layer: LayerState) -> Iterator[tuple[int, str, mx.array]]:
    for side, arrays in enumerate((layer.keys, layer.values)):
        for part, x in zip(_PARTS[layer.kind], arrays, strict=True):
            yield side, part, x


def _metadata(layers: Sequence[LayerState], version: str, user: Mapping[str, str]) -> dict[str, str]:
    if version == "0.32":
        scalars = [f"{i}.{2 + n}" for i, layer in enumerate(layers) for n in range(len(_FIELDS[layer.kind][version]))]
        out = {f"0.{key}": value for key, value in user.items()}
        out |= {f"1.{i}": layer.kind for i, layer in enumerate(layers)} | {"2.0": ""}
        for n, name in enumerate(scalars, 1):
            out |= {f"2.{n}.0": name, f"2.{n}.1": "scalar"}
        return out
    out = {f"1.{key}": value for key, value in user.items()}
    for i, layer in enumerate(layers):
        fields = _FIELDS[layer.kind][version]
        out |= {f"0.{i}.{n}": str(getattr(layer, f)) for n, f in enumerate(fields)} if fields else {f"0.{i}": ""}
        out[f"2.{i}"] = layer.kind
    return out


def _bytes(header: bytes, tensors: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    import mlx.core as mx

    yield header
    for name in sorted(tensors):
        x = tensors[name]
        if isinstance(x, int):
            yield x.to_bytes(4, "little", signed=True)
            continue
        dense = mx.contiguous(x)
        mx.eval(dense)
        yield flat_bytes(dense)


# -- reading ---------------------------------------------------------------------------------------------------------


def describe_mlx_lm(path: Path) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Generation, classes and the user's metadata of a file. Reads no rows.

    Raises:
        CorruptError: it is not a prompt cache of mlx-lm's, or has a class that is not on the list.
    """
    about = _about(path, read_header(path))
    return about.version, about.classes, about.user


def made_with(user: Mapping[str, str]) -> str:
    """The name of the model in a file's metadata, mlxkv's own if it has one; "" if there is none."""
    return user.get(OUR_NAME) or user.get("model", "")


def read_mlx_lm(path: Path) -> MlxLmFile:
    """Check and load a file. Its rows are in memory when this returns.

    Raises:
        CorruptError: one sentence with the rule that the file breaks.
    """
    header = read_header(path)
    about = _about(path, header)
    shapes = _check_tensors(about, header)
    arrays = dict(load_arrays(path, header))
    layers = []
    for i, kind in enumerate(about.classes):
        numbers = _numbers(about, i, kind, arrays)
        keys, values = (tuple(arrays[f"{i}.{side}{part}"] for part in _PARTS[kind]) for side in (0, 1))
        layers.append(_layer(about, i, kind, shapes[i], numbers, keys, values))
    if len({layer.offset for layer in layers}) != 1:
        about.refuse("all layers must be equally long", sorted({layer.offset for layer in layers}))
    return MlxLmFile(tuple(layers), about.user, about.version)


@dataclass(frozen=True)
class _About:
    file: str
    version: str
    classes: tuple[str, ...]
    user: dict[str, str]
    metadata: dict[str, str]

    def refuse(self, rule: str, found: object) -> NoReturn:
        raise CorruptError(_sentence(self.file, rule, found))


def _sentence(file: str, rule: str, found: object) -> str:
    return f"{file} is not a prompt cache of mlx-lm's: {rule}, found {escaped(found)}."


def _about(path: Path, header: Header) -> _About:
    found = header.metadata
    marker = found.get("2.0")
    version = "0.32" if marker == "" else "0.31"
    at, mine = ("1", "0") if version == "0.32" else ("2", "1")
    classes = []
    while (name := found.get(f"{at}.{len(classes)}")) is not None and len(classes) <= MAX_LAYERS:
        if name not in KINDS:
            raise CorruptError(_sentence(path.name, f"each layer must be a {', '.join(KINDS)}", name))
        classes.append(name)
    if not 1 <= len(classes) <= MAX_LAYERS:
        raise CorruptError(_sentence(path.name, f"it must name the classes of 1 to {MAX_LAYERS} layers", len(classes)))
    user = {key[2:]: value for key, value in found.items() if key.startswith(f"{mine}.")}
    about = _About(path.name, version, tuple(classes), user, found)
    unknown = found.keys() - _known_keys(about) - {f"{mine}.{key}" for key in user}
    if unknown:
        about.refuse("its metadata must be layers, classes and the user's own", min(unknown))
    return about


def _known_keys(about: _About) -> set[str]:
    if about.version == "0.32":
        scalars = sum(len(_FIELDS[kind]["0.32"]) for kind in about.classes)
        numbered = {f"2.{n}.{part}" for n in range(1, scalars + 1) for part in (0, 1)}
        return {f"1.{i}" for i in range(len(about.classes))} | {"2.0"} | numbered
    keys = {f"2.{i}" for i in range(len(about.classes))}
    for i, kind in enumerate(about.classes):
        keys |= {f"0.{i}.{n}" for n in range(len(_FIELDS[kind]["0.31"]))} or {f"0.{i}"}
    return keys


def _check_tensors(about: _About, header: Header) -> list[int]:
    """Check names, dtypes and shapes of all tensors, and return the rows of each layer."""
    tensors = {t.name: t for t in header.tensors}
    wanted: set[str] = set()
    rows = []
    for i, kind in enumerate(about.classes):
        names = [f"{i}.{side}{part}" for side in (0, 1) for part in _PARTS[kind]]
        numbers = [f"{i}.{2 + n}" for n in range(len(_FIELDS[kind]["0.32"]))] if about.version == "0.32" else []
        for name in (*names, *numbers):
            if name not in tensors:
                about.refuse("every layer must have keys, values and its integers", f"no tensor {name}")
        rows.append(_check_rows(about, i, kind, [tensors[name] for name in names]))
        for name in numbers:
            if tensors[name].dtype not in _INTEGERS or tensors[name].shape != ():
                about.refuse(f"tensor {name} must be one integer", (tensors[name].dtype, tensors[name].shape))
        wanted |= {*names, *numbers}
    if extra := tensors.keys() - wanted:
        about.refuse("it must hold the layers' tensors and no others", min(extra))
    if about.version == "0.32":
        _check_scalars(about)
    return rows


def _check_rows(about: _About, i: int, kind: str, tensors: list[Tensor]) -> int:
    shapes = {t.shape[:3] for t in tensors}
    if len(shapes) != 1 or any(len(t.shape) != 4 or t.shape[0] != 1 or 0 in t.shape for t in tensors):
        about.refuse(
            f"layer {i} must be one sequence of (1, heads, rows, width) with equal rows", [t.shape for t in tensors]
        )
    types = [t.dtype for t in tensors]
    floats = types if kind != "QuantizedKVCache" else [types[n] for n in (1, 2, 4, 5)]
    packed = [] if kind != "QuantizedKVCache" else [types[0], types[3]]
    if len({*floats}) != 1 or floats[0] not in _FLOATS or any(t != "U32" for t in packed):
        about.refuse(f"layer {i} must hold numbers of one floating type, packed ones U32", types)
    return tensors[0].shape[2]


def _check_scalars(about: _About) -> None:
    names = {f"{i}.{2 + n}" for i, kind in enumerate(about.classes) for n in range(len(_FIELDS[kind]["0.32"]))}
    listed = [about.metadata.get(f"2.{n}.0") for n in range(1, len(names) + 1)]
    kinds = {about.metadata.get(f"2.{n}.1") for n in range(1, len(names) + 1)}
    if {*listed} != names or kinds != {"scalar"}:
        about.refuse("its list of scalars must name the layers' integers", (listed, kinds))


def _numbers(about: _About, i: int, kind: str, arrays: Mapping[str, mx.array]) -> dict[str, int]:
    """The integers of a layer by name, each from 0 to 2^31 - 1."""
    out = {}
    for n, field in enumerate(_FIELDS[kind][about.version]):
        if about.version == "0.32":
            value = int(arrays[f"{i}.{2 + n}"].item())  # type: ignore[arg-type]
        else:
            text = about.metadata.get(f"0.{i}.{n}", "")
            if not _NUMBER.fullmatch(text):
                about.refuse(f"`{field}` of layer {i} must be a whole number", text)
            value = int(text)
        if not 0 <= value <= MAX_DIM:
            about.refuse(f"`{field}` of layer {i} must be from 0 to {MAX_DIM}", value)
        out[field] = value
    if about.version == "0.31" and kind == "KVCache" and about.metadata.get(f"0.{i}"):
        about.refuse(f"layer {i} must have no state besides its rows", about.metadata[f"0.{i}"])
    return out


def _layer(
    about: _About, i: int, kind: str, rows: int, numbers: dict[str, int], keys: tuple[mx.array, ...],
    values: tuple[mx.array, ...],
) -> LayerState:  # fmt: skip
    offset = numbers.get("offset", rows)
    if not offset:
        about.refuse(f"layer {i} must hold tokens", "offset 0")
    if kind == "RotatingKVCache":
        keep, size, at = numbers["keep"], numbers["max_size"], numbers["idx"]
        in_order = offset <= rows and at == offset
        wrapped = offset >= rows >= size and keep < at <= rows
        if not (keep < size and (in_order or wrapped)):
            about.refuse(f"layer {i} must be a window that mlx-lm can produce", {**numbers, "rows": rows})
        length = offset if in_order else rows
        keys, values = (tuple(x[..., :length, :] for x in side) for side in (keys, values))
        return LayerState("RotatingKVCache", keys, values, offset, keep, size, at)
    if offset > rows:
        about.refuse(f"`offset` of layer {i} must be at most its {rows} rows", offset)
    keys, values = (tuple(x[..., :offset, :] for x in side) for side in (keys, values))
    if kind == "KVCache":
        return LayerState("KVCache", keys, values, offset)
    size, bits = numbers["group_size"], numbers["bits"]
    if size not in (32, 64, 128) or bits not in (2, 3, 4, 5, 6, 8):
        about.refuse(f"layer {i} must be quantized in 2 to 8 bits and groups of 32, 64 or 128", (bits, size))
    for packed, scales, biases in (keys, values):
        if packed.shape[-1] * 32 != scales.shape[-1] * size * bits or scales.shape != biases.shape:
            about.refuse(
                f"layer {i} must have a scale and a bias per group", [tuple(x.shape) for x in (packed, scales)]
            )
    return LayerState("QuantizedKVCache", keys, values, offset, group_size=size, bits=bits)
