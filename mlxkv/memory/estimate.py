"""Memory estimate of a model and its cache, from the configuration alone, before anything is allocated.

Puts together the numbers of `budget` and `cache.plan`. On the MLX thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from mlxkv.arguments import instance, model_name, optional, public, shown
from mlxkv.cache.config import CacheConfig
from mlxkv.stats import bytes_text, value_text
from mlxkv.system.inspection import table


@dataclass(frozen=True)
class Estimate:
    """The memory that a model and its cache will take: names with `bytes` are bytes, other numbers tokens.

    Attributes:
        model: its name.
        weight_bytes: of the weights that are loaded.
        bytes_per_token: of the rows of one token in all layers.
        cache_bytes: of the rings, of the state of recurrent layers and of its checkpoints.
        window: tokens attended beyond the sinks.
        sinks: tokens that are never evicted.
        memory_limit: bytes that this machine lets a process use; 0 if it is unknown.
        description: the cache in words.
        prefill_bytes: of a prefill in chunks of `prefill_chunk` tokens beside these, by a generous formula.
        prefill_chunk: tokens of one prefill call.
        advice: the window or model that would fit, if this one does not, else "".
        not_loaded: parts of the repository that `weight_bytes` does not count, such as "images (812 MB)".
        state_bytes: the part of `cache_bytes` that is the state of recurrent layers.
        checkpoint_bytes: the part of `cache_bytes` that is earlier states.
    """

    model: str
    weight_bytes: int
    bytes_per_token: int
    cache_bytes: int
    window: int
    sinks: int
    memory_limit: int
    description: str
    prefill_bytes: int = 0
    prefill_chunk: int = 0
    advice: str = ""
    not_loaded: str = ""
    state_bytes: int = 0
    checkpoint_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of weights, cache and prefill together, which is the peak."""
        return self.weight_bytes + self.cache_bytes + self.prefill_bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is within `memory_limit`."""
        return not self.memory_limit or self.total_bytes <= self.memory_limit

    def __repr__(self) -> str:
        parts = ", ".join(f"{n} {bytes_text(getattr(self, f'{n}_bytes'))}" for n in ("weight", "cache", "prefill"))
        facts = [f"{bytes_text(self.total_bytes)} ({parts})", f"window {self.window:,}"]
        return f"<Estimate {shown(self.model)} {', '.join(facts)}, {'fits' if self.fits else 'does not fit'}>"

    def _repr_markdown_(self) -> str:
        """A table for a notebook of the figures that are not zero."""
        figures = {f.name: getattr(self, f.name) for f in fields(self)} | {"total_bytes": self.total_bytes}
        return table([*((n, value_text(n, v)) for n, v in figures.items() if v), ("fits", str(self.fits))])


@public(name=model_name, config=optional(instance(CacheConfig)), adapter_path=optional(model_name))
def estimate(
    name: str | os.PathLike[str],
    config: CacheConfig | None = None,
    *,
    adapter_path: str | os.PathLike[str] | None = None,
) -> Estimate:
    """Estimate the memory of `name` (built-in, folder or repository id) with this cache; no weights are read.

    Weights are the sum of the model's arrays as config.json describes them; the prefill is that of the largest chunk
    that fits. `adapter_path`: a LoRA adapter to load with it, which is downloaded if it is missing.

    Raises:
        ModelError: and its kinds, if there is no such model.
    """
    from mlx.utils import tree_flatten

    from mlxkv.cache.planning.trained_length import trained_length
    from mlxkv.device import current_device
    from mlxkv.memory import CHUNKS, Budget
    from mlxkv.models import parts_not_loaded, skeleton
    from mlxkv.models.loading.adapter import load_adapter

    name = os.fspath(name)
    settings, model = skeleton(name)
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()) if not isinstance(array, str))
    weights += 0 if adapter_path is None else load_adapter(os.fspath(adapter_path)).added_bytes
    budget = Budget(model, current_device().memory_limit, trained_length(settings))
    plan = budget.plan(config or CacheConfig(), weights, is_loaded=False)
    chunk = budget.largest_chunk(plan, weights) or CHUNKS[-1]
    geometry = plan.geometry
    return Estimate(
        model=name,
        weight_bytes=weights,
        bytes_per_token=plan.bytes_per_token,
        cache_bytes=budget.cache_bytes(plan),
        window=geometry.window if geometry else 0,
        sinks=geometry.sinks if geometry else 0,
        memory_limit=budget.limit,
        description=plan.description,
        prefill_bytes=budget.prefill_bytes(plan, chunk),
        prefill_chunk=chunk,
        advice="" if budget.fits(plan, weights) else budget.advice(plan.config, weights, is_loaded=False),
        not_loaded=parts_not_loaded(name),
        state_bytes=budget.state_bytes(plan),
        checkpoint_bytes=budget.checkpoint_bytes(plan),
    )
