"""Digests of a model and of a cache's layout: saved KV rows may be reused only if both are equal.

`parts` hold each input by name, so that a mismatch can name the one that differs. Hashes files, loads no weights,
imports neither mlx nor mlx_lm. Any thread; hashing gigabytes takes seconds.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from mlxkv.errors import ModelFileError
from mlxkv.system.regular_file import opened

if TYPE_CHECKING:
    from mlxkv.models import LoadedModel

RACY_NS = 2_000_000_000  # the coarsest clock of a file system in use

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMAPPING = re.compile(r"^MODEL_REMAPPING *= *(\{[^{}]*\})", re.M)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
_ADAPTER = ("adapters.safetensors", "adapter_config.json")  # beside them mlx-lm leaves the steps of its training
_ADAPTER_NAME = "source.adapter"
_OTHER = ("template.", "code.", "rope.", "source.")  # prefixes of parts that are not in `model_id`
_TEMPLATE = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
_ROPE = ("rope_scaling", "rope_theta", "rope_parameters", "partial_rotary_factor", "max_position_embeddings")


class FileHashes(Protocol):
    """Stores the sha256 of local files by (path, device, inode, size, mtime, ctime)."""

    def get(self, path: str, info: os.stat_result) -> str | None: ...

    def has(self, path: str) -> bool:
        """Whether `path` was ever put, with any content."""
        ...

    def put(self, path: str, info: os.stat_result, sha256: str) -> None:
        """Store a digest; an empty `sha256` means that the file was seen and has to be read."""
        ...


@dataclass(frozen=True)
class ModelIdentity:
    """The identity of a model. Rows fit if `model_id` is equal; another `template_id` only deserves a warning.

    `parts` by prefix: `template.` makes `template_id`; `code.` and `rope.` belong to the cache's spec; `source.` says
    what to load again; all others (`config.<key>`, `file.<name>`, `adapter.<name>`, `shard`) make `model_id`.
    """

    name: str
    model_id: str
    template_id: str
    parts: Mapping[str, str]

    @classmethod
    def of(cls, name: str, parts: Mapping[str, str]) -> ModelIdentity:
        template = {k: v for k, v in parts.items() if k.startswith("template.")}
        return cls(name, digest_of("model", model_parts(parts)), digest_of("template", template), dict(parts))

    @classmethod
    def foreign(cls, name: str) -> ModelIdentity:
        """The model of a chat that another program made: a name to show, which no model here has or is loaded by."""
        return cls.of(name, {})

    def of_part(self, shard: str) -> ModelIdentity:
        """The identity of the rows of one part of the model ("tensor 0/2")."""
        return ModelIdentity.of(self.name, {**self.parts, "shard": shard})

    @property
    def is_foreign(self) -> bool:
        return not self.parts

    @property
    def adapter(self) -> str | None:
        """The folder or repository of its LoRA adapter."""
        return self.parts.get(_ADAPTER_NAME)

    @property
    def spec_extra(self) -> dict[str, str]:
        """The parts that belong to the spec: mlx-lm's model code and the rope settings."""
        return {k: v for k, v in self.parts.items() if k.startswith(("code.", "rope."))}


def model_parts(parts: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in parts.items() if not k.startswith(_OTHER)}


def identify(
    path: Path, config: Mapping[str, Any], remember: FileHashes | None = None, *, name: str | None = None,
    module: str | None = None, adapter: Path | None = None, adapter_name: str | None = None,
) -> ModelIdentity:  # fmt: skip
    """Identify the model in the folder `path`, loaded with `config` (config.json and any overrides).

    `module`: mlx-lm's module for it, if not `config["model_type"]`. `adapter`: the folder of a LoRA adapter on top of
    it, `adapter_name` what loads it again.

    Raises:
        ModelFileError: a file cannot be read.
    """
    parts = {f"config.{key}": _short(value) for key, value in config.items()}
    parts |= {f"rope.{key}": _short(config[key]) for key in _ROPE if key in config}
    try:
        for file in _matching(path, _WEIGHTS):
            parts[f"file.{file.name}"] = f"{file.stat().st_size}:{sha256_of(file, remember)}"
        for file in _matching(adapter, _ADAPTER) if adapter is not None else ():
            parts[f"adapter.{file.name}"] = f"{file.stat().st_size}:{sha256_of(file, remember)}"
        for file in _matching(path, _TEMPLATE):
            parts[f"template.{file.name}"] = sha256_of(file, remember)
    except OSError as error:
        raise ModelFileError(
            f"The model file {error.filename} cannot be read ({error.strerror}); download the model again."
        ) from error
    if adapter_name is not None:
        parts[_ADAPTER_NAME] = adapter_name
    parts |= code_part(module or str(config.get("model_type", "")))
    return ModelIdentity.of(name or path.name, parts)


def identity_of(loaded: LoadedModel, name: str, remember: FileHashes | None = None) -> ModelIdentity:
    """The identity of a loaded model; one of its own, which no saved rows match, if its files have changed since."""
    tuned = loaded.adapter
    folder, adapter_name = (None, None) if tuned is None else (tuned.folder, tuned.name)
    found = identify(loaded.path, loaded.config, remember, name=name, adapter=folder, adapter_name=adapter_name)
    if not loaded.files_changed():
        return found
    return ModelIdentity.of(found.name, {**found.parts, "file.replaced": secrets.token_hex()})


def sha256_of(file: Path, remember: FileHashes | None = None) -> str:
    """The sha256 of a file's content; reads the file only if needed.

    A remembered digest is valid while device, inode, size, mtime and ctime are the same; no program can set the ctime.
    A digest is remembered only of a file that did not just change: one whose ctime is the current clock tick, or in the
    future (the clock was set back, or is a server's), could change again unnoticed.

    In the Hugging Face cache an LFS file is a link into `blobs`, whose target is named by its sha256. That is trusted
    for a file seen for the first time, since the download verified it; a file that has changed since is read.
    """
    info = file.stat()
    if remember is not None and (known := remember.get(str(file), info)):
        return known
    found = _by_name(file) if remember is None or not remember.has(str(file)) else None
    now = time.time_ns()  # before reading, so that a change meanwhile is noticed next time
    if found is None:
        with opened(file) as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    if remember is not None:
        remember.put(str(file), info, found if info.st_ctime_ns < now - RACY_NS else "")
    return found


def _by_name(file: Path) -> str | None:
    if not file.is_symlink():
        return None
    target = Path(os.readlink(file))
    return target.name if target.parent.name == "blobs" and _SHA256.fullmatch(target.name) else None


def code_part(module: str) -> dict[str, str]:
    """{"code.<module>": sha256 of mlx-lm's models/<module>.py}, found without importing mlx_lm."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations or not re.fullmatch(r"\w+", module):
        return {f"code.{module}": "unknown"}
    folder = Path(next(iter(spec.submodule_search_locations)))
    module = _remapped(folder / "utils.py").get(module, module)
    file = folder / "models" / f"{module}.py"
    return {f"code.{module}": sha256_of(file) if file.is_file() else "unknown"}


def _remapped(utils: Path) -> dict[str, str]:
    """mlx-lm's MODEL_REMAPPING, read from its source: importing it takes a second, parsing all of it 40 ms."""
    try:
        found = _REMAPPING.search(utils.read_text(encoding="utf-8"))
        return ast.literal_eval(found[1]) if found else {}
    except (OSError, ValueError, SyntaxError):
        return {}


def spec_parts(layout: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, str]:
    """A cache layout flattened to dotted names, with `extra` (`ModelIdentity.spec_extra`)."""
    return dict(_spec(json.dumps(layout), tuple(extra.items()))[0])


def spec_id(layout: Mapping[str, Any], extra: Mapping[str, str]) -> str:
    return _spec(json.dumps(layout), tuple(extra.items()))[1]


@lru_cache(maxsize=8)  # needed by every save and restore; constant while a model is loaded
def _spec(layout: str, extra: tuple[tuple[str, str], ...]) -> tuple[Mapping[str, str], str]:
    parts = dict(_flat("", json.loads(layout))) | dict(extra)
    return MappingProxyType(parts), digest_of("spec", parts)


def digest_of(tag: str, parts: Mapping[str, str]) -> str:
    """sha256 (64 hex digits) over a tagged, length-prefixed, sorted list: different tables never collide by joining."""
    h = hashlib.sha256(tag.encode())
    for text in (text for pair in sorted(parts.items()) for text in pair):
        data = text.encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


def first_difference(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    """The alphabetically first name whose value differs or that only one table has; None if the tables are equal."""
    return next((key for key in sorted({*a, *b}) if a.get(key) != b.get(key)), None)


def _matching(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    return sorted(found)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _flat(f"{name}.{i}", item)
    else:
        yield name, json.dumps(value)
