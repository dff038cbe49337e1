"""Checks before a model is loaded that it fits with a usable KV cache, from its configuration alone.

Metal ends the process when memory runs out, so callers ask first. Caches and prompts of a loaded model are `budget.py`.
On the MLX thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.errors import ConfigError, MlxkvError
from mlxkv.protocol.status import ModelTooLarge
from mlxkv.settings.schema import KV_BITS

WINDOW = 4096  # tokens that a chat should have at least, where the user names no window
_HEADROOM = 4 << 30  # bytes: with twice the weights' files (float32 of float16), always enough for such a window


def check_fit(
    name: str, config: CacheConfig, *, size: int = 0, adapter: str | None = None, draft: str | None = None
) -> ModelTooLarge | None:
    """The bytes that `name` needs if they are more than this machine has; None if it fits, or if that is unknown.

    Args:
        config: of the cache; if it names no window, one of 4,096 tokens must fit.
        size: bytes of a model that is not on this disk, where only they are known.
        adapter, draft: the LoRA adapter and the draft model to load with it, as far as they are on this disk.
    """
    from mlxkv.device import current_device

    device = current_device()
    if size:
        need = size if size > device.memory_limit else 0
        return ModelTooLarge(name, need, device.memory_limit, device.total_memory) if need else None
    try:
        files = _file_bytes(name)
        drafts = draft if draft is not None and _file_bytes(draft) else None
        added = _adapter_bytes(adapter)
        most = 2 * (files + added) + _HEADROOM + (2 * _file_bytes(drafts) + _HEADROOM if drafts else 0)
        if not files or (most <= device.memory_limit and (config.window or 0) <= WINDOW):
            return None
        added += _draft_bytes(drafts, device.memory_limit) if drafts else 0
        need, fits, kv_bits = _needs(name, config, device.memory_limit, added)
    except (MlxkvError, OSError):
        return None  # loading reports what is wrong with this model
    if fits:
        return None
    return ModelTooLarge(name, need, device.memory_limit, device.total_memory, kv_bits, drafts or "")


def alternatives(found: ModelTooLarge) -> str:
    """Options that work instead, for an error message."""
    from mlxkv.device import current_device
    from mlxkv.models import BUILT_IN, suggestions

    smaller = next((s.entry.id for s in suggestions(current_device().memory_limit)), BUILT_IN[0])
    ways = [f"--kv-bits {found.kv_bits} makes it fit"] if found.kv_bits else []
    ways += ["--draft-model none leaves the draft model out"] if found.draft else []
    return ", ".join([*ways, f"-m {smaller} fits", "--load-anyway tries it"])


def usable_window(trained: int | None) -> int:
    """The window of a model where the user names none."""
    return min(trained or WINDOW, WINDOW)


def _file_bytes(name: str) -> int:
    """Bytes of a model's weights on this disk; 0 if it is not there."""
    from mlxkv.models import Hub, resolve
    from mlxkv.models.hub.hub import find_local

    source = resolve(name)
    path = source.path or (find_local(Hub(), source.repo, source.revision) if source.repo else None)
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path is not None else 0


def _adapter_bytes(name: str | None) -> int:
    from mlxkv.models.loading.adapter import local_adapter

    found = None if name is None else local_adapter(name)
    return 0 if found is None else found.added_bytes


def _draft_bytes(name: str, limit: int) -> int:
    """Bytes of a draft model's weights and of its cache, at the window that a chat should have."""
    from mlxkv.cache.planning.trained_length import trained_length
    from mlxkv.memory import Budget
    from mlxkv.models import skeleton

    settings, model = skeleton(name)
    weights, length = _weights(model), trained_length(settings)
    budget = Budget(model, limit, length)
    return weights + budget.cache_bytes(
        budget.plan(CacheConfig(window=usable_window(length)), weights, is_loaded=False)
    )


def _weights(model: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(array.nbytes for _, array in tree_flatten(model.parameters()) if not isinstance(array, str))


def _needs(name: str, config: CacheConfig, limit: int, added: int) -> tuple[int, bool, int | str | None]:
    """Bytes at the peak, whether they fit, and else the most bits of a KV cache with which they would.

    `added`: bytes of what is loaded with it.
    """
    from mlxkv.cache.planning.plan import plan_cache
    from mlxkv.cache.planning.trained_length import trained_length
    from mlxkv.memory import CHUNKS, Budget
    from mlxkv.models import skeleton

    settings, model = skeleton(name)
    weights = _weights(model) + added
    budget = Budget(model, limit)
    wanted = replace(config, window=config.window or usable_window(trained_length(settings)))
    try:
        plan = plan_cache(model, wanted, is_loaded=False)
    except ConfigError:  # a cache that no window bounds grows with the chat
        return weights, weights <= limit, None
    need = weights + plan.nbytes + budget.prefill_bytes(plan, CHUNKS[-1])
    if budget.fits(plan, weights):
        return need, True, None

    def fits(bits: int | str) -> bool:
        try:
            return budget.fits(plan_cache(model, replace(wanted, bits=bits), is_loaded=False), weights)
        except ConfigError:  # such rows are not for this model
            return False

    return need, False, next(filter(fits, KV_BITS), None) if config.bits is None else None
