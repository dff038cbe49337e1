"""Groups of a model's caches that the store saves together: rings of one geometry, the model's own row caches, states.

Used on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxkv.cache.groups.native_group import NativeGroup
from mlxkv.cache.groups.ring_group import RingGroup
from mlxkv.cache.groups.state_group import StateGroup
from mlxkv.cache.planning.plan import CachePlan, LayerPlan
from mlxkv.cache.recurrent.checkpoints import Checkpoints
from mlxkv.cache.recurrent.state import is_recurrent
from mlxkv.cache.recurrent.state_shapes import StateShapes
from mlxkv.cache.rings.ring import RingKVCache

Group = RingGroup | NativeGroup | StateGroup


def make_groups(
    plan: CachePlan, caches: Sequence[Any], shapes: StateShapes, checkpoints: Checkpoints, tokens: Sequence[int]
) -> tuple[Group, ...]:
    """Group `caches`, given in the order of `plan.leaves`.

    Names: "full" and "window<n>" for rings, "rows" and "chunked<n>" for rows in the model's own caches, "state".
    """
    rings: dict[str, list[tuple[LayerPlan, RingKVCache]]] = {}
    rows: dict[str, list[int]] = {}
    states: list[int] = []
    for i, (leaf, cache) in enumerate(zip(plan.leaves, caches, strict=True)):
        if leaf.geometry is not None:
            name = "full" if leaf.native_window is None else f"window{leaf.native_window}"
            rings.setdefault(name, []).append((leaf, cache))
        elif is_recurrent(cache):
            states.append(i)
        else:
            chunk = getattr(cache, "chunk_size", None)
            rows.setdefault(f"chunked{chunk}" if chunk else "rows", []).append(i)
    groups: list[Group] = []
    for name, pairs in rings.items():
        geometry = pairs[0][0].geometry
        assert geometry is not None
        groups.append(RingGroup(name, geometry, [p for p, _ in pairs], [r for _, r in pairs]))
    for name, members in rows.items():
        groups.append(NativeGroup(name, {i: (plan.leaves[i].name, caches[i]) for i in members}, shapes))
    if states:
        groups.append(StateGroup({i: plan.leaves[i].name for i in states}, checkpoints, shapes, tokens))
    return tuple(groups)
