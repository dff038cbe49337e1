"""Prompt caches of one model as files: mlxkv's own, and mlx-lm's in and out. `PromptCache.save` calls this.

Decides which model a file belongs to and how large a cache it needs; the bytes are written and read by
`store/prompts/kv_file.py` and `store/prompts/mlx_lm_file.py`. On the MLX thread.
"""

from __future__ import annotations

import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.cache.config import DEFAULT_SINKS, CacheConfig
from mlxkv.cache.mlx_lm import ImportedCache, to_mlx_lm, to_model_dtype, window_for
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import FileMissingError, MismatchError
from mlxkv.models.resolve import is_repo
from mlxkv.safetensors import num_bytes
from mlxkv.store import describe_prompt_file, read_prompt_file, write_prompt_file
from mlxkv.store.prompts.mlx_lm_file import OUR_NAME, read_mlx_lm, write_mlx_lm
from mlxkv.text.clean import clean

if TYPE_CHECKING:
    from mlxkv.chat.runtime import ModelRuntime

_MODEL_ID = "mlxkv_model_id"  # in the metadata of exports


class PromptCacheFiles:
    """Reads and writes prompt caches of one model; files in the store's folder count towards the disk limit."""

    def __init__(self, runtime: ModelRuntime) -> None:
        self._runtime = runtime

    @property
    def model_id(self) -> str:
        return self._runtime.identity.model_id

    def write(self, path: Path, cache: PromptCache) -> int:
        config, identity = asdict(cache.plan.resolved), self._runtime.identity
        with self._runtime.store.saving_named(path) as check_size:
            return write_prompt_file(path, cache, identity, config, prompt=cache.prompt, check_size=check_size)

    def check_space(self, path: Path, cache: PromptCache, num_tokens: int) -> None:
        """Raises StoreError: the disk limit leaves too little space to save the cache with this many tokens."""
        self._runtime.store.check_named(path, _least_size(cache, num_tokens))

    def read(self, path: Path) -> PromptCache:
        """See Model.load_cache."""
        _check_there(path)
        config = CacheConfig.from_table(describe_prompt_file(path).get("config"))
        if config.sinks == "system":  # an older version wrote this for them
            config = replace(config, sinks=DEFAULT_SINKS)
        cache = self._runtime.new_cache(config)
        cache.prompt = read_prompt_file(path, cache, self._runtime.identity).prompt
        return cache

    def export(self, path: Path, cache: PromptCache, version: str) -> int:
        # What `mlx_lm.generate --prompt-cache-file` looks for.
        name = self._runtime.name
        # mlx-lm knows no built-in model and no revision in a name.
        source = name if is_repo(name) and "@" not in name else str(self._runtime.loaded.path)
        about = {"model": source, "tokenizer_config": "{}", _MODEL_ID: self.model_id}
        if source != name:
            about[OUR_NAME] = name
        with self._runtime.store.saving_named(path) as check_size:
            return write_mlx_lm(path, to_mlx_lm(cache), version, about, check_size=check_size)

    def import_mlx_lm(self, path: Path, config: CacheConfig | None) -> PromptCache:
        """See Model.import_mlx_lm."""
        _check_there(path)
        file = read_mlx_lm(path)
        held = self._runtime.new_cache(config or CacheConfig())
        layers, notes = to_model_dtype(file.layers, held.plan, path.name)
        model_id = self.model_id
        if file.metadata.get(_MODEL_ID, model_id) != model_id:
            name = self._runtime.name
            why = f"{path.name} was made with other weights than {name} has; load the model it was made with."
            raise MismatchError(why, "model_id")
        if config is None and held.capacity < layers[0].offset:
            held = self._runtime.new_cache(CacheConfig(window=window_for(layers[0].offset)))
        return ImportedCache(held.plan, self._runtime.model, layers, self, notes)


def _check_there(path: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissingError(f"There is no file {clean(str(path))!r}; check the path.") from error
    except OSError:
        return  # reading it reports the error
    if is_folder:
        raise FileMissingError(f"{clean(str(path))} is a folder; name the file in it.")


def _least_size(cache: PromptCache, num_tokens: int) -> int:
    """The smallest file of this cache with this many tokens, in bytes; it may still be empty."""
    shapes = [s for g in cache.groups for a, b in g.required(num_tokens) for s in g.shapes(b - a).values()]
    return 4 * num_tokens + sum(num_bytes(dtype, shape) for shape, dtype in shapes)
