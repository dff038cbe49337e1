"""The bytes of rows where they lie are those that `export_rows` copies out: wrapped, rewound, forked, quantized."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.groups.ring_group import RingGroup
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.runner import ModelRunner
from tests.reference import random_ids, tiny_llama

pytestmark = pytest.mark.slow

SLIDING = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2}


def exported(group: RingGroup, a: int, b: int) -> dict[str, bytes]:
    return {name: bytes(memoryview(cast(Any, x)).cast("B")) for name, x in group.export_rows(a, b).items()}


def seen(group: RingGroup, a: int, b: int) -> dict[str, bytes]:
    return {name: b"".join(pieces) for name, pieces in group.views(a, b).items()}


def check(cache: PromptCache, rng: random.Random) -> None:
    for group in cache.groups:
        for low, high in group.held():
            a, b = sorted(rng.sample(range(low, high + 1), 2))
            for part in ((low, high), (a, b)):
                assert seen(cast(RingGroup, group), *part) == exported(cast(RingGroup, group), *part)


@pytest.mark.parametrize(
    ("more", "bits"), [({}, None), (SLIDING, None), ({}, 8), ({}, (8, 4))], ids=["plain", "sliding", "8", "8-4"]
)
@pytest.mark.parametrize("fed", [3, 64, 69, 163])
def test_they_are_what_is_exported(more: dict[str, Any], bits: Any, fed: int) -> None:
    model, rng = tiny_llama(hidden=128, **more), random.Random(fed)
    runner = ModelRunner(model)
    cache = PromptCache(plan_cache(model, CacheConfig(window=64, sinks=4, block=16, bits=bits, group_size=32)), model)
    list(runner.prefill(cache, random_ids(fed)))
    check(cache, rng)
    twin = cache.fork()
    list(runner.prefill(twin, random_ids(10, seed=2)))
    check(cache, rng)
    check(twin, rng)
    twin.rewind(max(1, twin.offset - twin.rewindable))
    check(twin, rng)
