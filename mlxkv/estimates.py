"""What a model and its cache would take, before anything is allocated: from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.cache.config import CacheConfig


@dataclass(frozen=True)
class Estimate:
    """Bytes and tokens. `fits` compares weights and cache with what this machine lets a process use."""

    model: str
    weight_bytes: int
    bytes_per_token: int
    cache_bytes: int
    window: int
    sinks: int
    memory_limit: int
    description: str

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def fits(self) -> bool:
        return not self.memory_limit or self.total_bytes <= self.memory_limit


def estimate(name: str, config: CacheConfig | None = None) -> Estimate:
    """What `name` (built-in, folder or repository id) takes with this cache; no weights are read, nothing computed.

    Raises:
        ModelError: and its kinds, when there is no such model.
    """
    from mlx.utils import tree_flatten

    from mlxkv.cache.plan import plan_cache
    from mlxkv.device import current_device
    from mlxkv.models import skeleton

    _, model = skeleton(name)
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()) if not isinstance(array, str))
    limit = current_device().memory_limit
    budget = max(int((limit - weights) * 0.8), 0) if limit else 1 << 62
    plan = plan_cache(model, config, budget=budget, is_loaded=False)
    geometry = plan.geometry
    return Estimate(
        model=name,
        weight_bytes=weights,
        bytes_per_token=plan.bytes_per_token,
        cache_bytes=plan.nbytes,
        window=geometry.window if geometry else 0,
        sinks=geometry.sinks if geometry else 0,
        memory_limit=limit,
        description=plan.description,
    )
