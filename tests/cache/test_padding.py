"""Buffers are whole pages, and nothing but the allocation knows: not sizes, not rows, not what is saved."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.groups.ring_group import RingGroup
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.rows import PAGE, Codec
from mlxkv.inference.runner import ModelRunner
from tests.reference import random_ids, tiny_llama

CODECS = [Codec(), Codec(8), Codec(4, 32)]


@pytest.mark.parametrize("codec", CODECS, ids=["16 bits", "8 bits", "4 bits"])
@pytest.mark.parametrize(("heads", "dim"), [(8, 128), (3, 64), (4, 256), (1, 576), (2, 192), (10, 128)], ids=str)
def test_buffers_are_whole_pages(heads: int, dim: int, codec: Codec) -> None:
    """KV heads of Llama, SmolLM2, Qwen3.5, latent attention and others, in windows with odd numbers of rows."""
    for geometry in (Geometry(37, 4096, 256, 2), Geometry(4, 8192, 256, 2), Geometry(0, 32_768, 256, 1)):
        ring = RingKVCache(geometry, None, None, codec, codec)
        ring.allocate((1, heads, 0, dim), dim, mx.bfloat16, mx.bfloat16)
        rows = sum(2 * heads * p.width * p.dtype.size for p in codec.planes(dim, mx.bfloat16))
        assert ring.nbytes == geometry.rows * rows
        assert [rows.arrays[0].nbytes % PAGE for rows in ring.buffers] == [0, 0]  # scales may be of any size
        assert sum(x.nbytes for x in ring._arrays) <= ring.nbytes * (1 + 1 / 8)


def test_small_buffers_are_not_enlarged() -> None:
    ring = RingKVCache(Geometry(4, 64, 16, 1))
    ring.allocate((1, 1, 0, 8), 8, mx.float32, mx.float32)
    assert {x.shape[-2] for x in ring._arrays} == {ring.geometry.rows}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, 8])
def test_nothing_else_counts_the_rows_that_fill_a_page(bits: Any) -> None:
    """Sizes, what is exported and what is restored are those of the geometry; wrapped, too."""
    model = tiny_llama(hidden=192, heads=6, kv_heads=3)
    plan = plan_cache(model, CacheConfig(window=1024, sinks=430, block=32, slack=64, bits=bits, group_size=32))
    cache, ids = PromptCache(plan, model), random_ids(1200)
    list(ModelRunner(model).prefill(cache, ids))
    assert plan.geometry is not None
    assert any(x.shape[-2] > plan.geometry.rows for x in cache.layers[0]._arrays)
    assert cache.nbytes == plan.nbytes
    assert cache.live_nbytes == plan.geometry.live(1200) * plan.bytes_per_token
    (group,) = cache.groups
    assert isinstance(group, RingGroup)
    rows = {a: (group.export_rows(a, b), group.views(a, b), b) for a, b in group.held()}
    for a, (copied, views, b) in rows.items():
        shapes = group.shapes(b - a)
        assert {name: tuple(x.shape) for name, x in copied.items()} == {n: shape for n, (shape, _) in shapes.items()}
        assert {name: sum(map(len, pieces)) for name, pieces in views.items()} == {
            n: x.nbytes for n, x in copied.items()
        }
    twin = PromptCache(plan, model)
    twin.begin_restore(ids)
    for a, (copied, _, b) in rows.items():
        twin.groups[0].import_rows(a, b, copied)  # type: ignore[union-attr]
    twin.finish_restore()
    allocated = [[x.shape for rows in layer.buffers for x in rows.arrays] for layer in cache.layers]
    assert [[x.shape for rows in layer.buffers for x in rows.arrays] for layer in twin.layers] == allocated
    assert twin.nbytes == plan.nbytes
    more = random_ids(40, seed=3)
    assert mx.array_equal(ModelRunner(model).score(twin, more), ModelRunner(model).score(cache, more))
