"""RingKVCache against full recomputation, against mlx-lm's own caches, and against never having fed the tokens."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.sink_rotation import SinkRotation
from mlxkv.errors import RewindError
from tests.reference import FullRecomputation, largest, logits_of, random_ids, tiny_llama
from tests.thorough import part

G = Geometry(sinks=4, window=32, block=8, undo=2)


def rings(model: Any, geometry: Geometry = G, streaming: bool = True) -> list[RingKVCache]:
    rope = [layer.self_attn.rope for layer in model.layers]
    dim = model.layers[0].self_attn.head_dim
    return [RingKVCache(geometry, SinkRotation(r, dim) if streaming else None) for r in rope]


def reference(model: Any, g: Geometry = G, streaming: bool = True) -> list[FullRecomputation]:
    ropes = [layer.self_attn.rope if streaming else None for layer in model.layers]
    return [FullRecomputation(g.sinks, g.window, g.block, rope) for rope in ropes]


def cut(ring: RingKVCache, n: int) -> int:
    return min(n, ring.geometry.tokens_to_boundary(ring.offset))


def feed_cut(model: Any, cache: list[RingKVCache], ids: list[int], step: int) -> mx.array:
    """Feed as the runner does: never across a block boundary."""
    out, at = [], 0
    while at < len(ids):
        n = min(cut(cache[0], step), len(ids) - at)
        out.append(model(mx.array([ids[at : at + n]]), cache=cache)[0])
        mx.eval(out[-1])
        at += n
    return mx.concatenate(out)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_logits_equal_full_recomputation(streaming: bool) -> None:
    model, ids = tiny_llama(), random_ids(150)
    expected = logits_of(model, reference(model, streaming=streaming), ids, [1])
    got = feed_cut(model, rings(model, streaming=streaming), ids, 1)
    assert largest(got - expected) < 1e-4 * largest(expected)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8, 512])
def test_any_chunking_cut_at_boundaries_gives_the_same_logits(step: int) -> None:
    model, ids = tiny_llama(), random_ids(150)
    one = feed_cut(model, rings(model), ids, 1)
    assert largest(feed_cut(model, rings(model), ids, step) - one) < 1e-5 * largest(one)


@pytest.fixture(scope="module", params=[True, False], ids=["streaming", "absolute"])
def one_by_one(request: pytest.FixtureRequest) -> tuple[Any, list[RingKVCache], mx.array]:
    """A model, the rings of 150 tokens fed one at a time, and their logits."""
    model = tiny_llama(layers=1)
    fed = rings(model, streaming=request.param)
    return model, fed, feed_cut(model, fed, random_ids(150), 1)


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_callers_that_do_not_cut_see_the_same_and_leave_the_same_ring(
    one_by_one: tuple[Any, list[RingKVCache], mx.array], sizes: list[int]
) -> None:
    model, ours, expected = one_by_one
    foreign = rings(model, streaming=ours[0].rotation is not None)
    got = logits_of(model, foreign, random_ids(150), sizes)
    assert largest(got - expected) < 1e-4 * largest(expected)
    assert foreign[0].offset == ours[0].offset
    for a, b in zip(foreign[0]._arrays, ours[0]._arrays, strict=True):
        assert largest(a - b) < 1e-4


def test_before_wrapping_it_is_mlx_lms_kv_cache() -> None:
    model, ids = tiny_llama(), random_ids(36)
    expected = logits_of(model, [KVCache() for _ in model.layers], ids, [20, 5, 1])
    assert largest(logits_of(model, rings(model), ids, [20, 5, 1]) - expected) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("window", [5, 16, 24])
@pytest.mark.parametrize("sizes", [[1], [7], [64, 1], [3, 40, 1]])
def test_native_sliding_windows_equal_mlx_lms_rotating_cache(window: int, sizes: list[int]) -> None:
    """Sliding layers see exactly their window, before and after wrapping, in any chunking."""
    model = tiny_llama(layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                       sliding_window=window)  # fmt: skip
    ids = random_ids(120)
    native = model.make_cache()
    expected = logits_of(model, native, ids, sizes)
    block = 4
    rows = -(-(window + block - 1) // block) * block
    small = Geometry(0, max(rows, 2 * block), block, 1)
    ours = [RingKVCache(small, None, window) if isinstance(c, RotatingKVCache) else c for c in model.make_cache()]
    assert largest(logits_of(model, ours, ids, sizes) - expected) < 1e-4 * largest(expected)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1], [7], [20, 40, 1]])
def test_a_model_that_masks_a_full_cache_to_a_window_gets_exactly_its_window(sizes: list[int]) -> None:
    """Some models keep KVCache and pass `window_size` to the mask: the pinned rows must not show through it."""
    ring, full = RingKVCache(Geometry(4, 64, 8, 1), SinkRotation(nn.RoPE(16), 16)), KVCache()
    rows = mx.random.normal((1, 2, 150, 16), key=mx.random.key(2))
    query, at, calls = mx.random.normal((1, 2, 150, 16), key=mx.random.key(3)), 0, list(sizes)
    while at < 150:
        n = min(calls.pop(0) if len(calls) > 1 else calls[0], 150 - at)
        outputs = []
        for cache in (ring, full):
            mask = cache.make_mask(n, window_size=20, return_array=False)
            fetched: Any = cache.update_and_fetch(rows[..., at : at + n, :], rows[..., at : at + n, :])
            keys, values = fetched
            outputs.append(
                mx.fast.scaled_dot_product_attention(query[..., at : at + n, :], keys, values, scale=0.25, mask=mask)
            )
        assert largest(outputs[0] - outputs[1]) < 1e-5
        at += n


@pytest.mark.slow
@pytest.mark.parametrize("fed", part([36, 61, 101, 30, 37, 44], 3))
@pytest.mark.parametrize("step", [1, 64])
def test_rewinding_within_the_slack_is_exact(fed: int, step: int) -> None:
    """The continuation after rewind(n) differs by exactly 0.0 from never having fed the n tokens."""
    model, ids = tiny_llama(layers=1), random_ids(150)
    other = random_ids(30, seed=9)
    for n in range(min(G.undo * G.block, fed) + 1):
        straight = rings(model)
        feed_cut(model, straight, ids[: fed - n], step)
        rewound = rings(model)
        feed_cut(model, rewound, ids[:fed], step)
        assert rewound[0].trim(n) == n
        assert rewound[0].offset == straight[0].offset
        assert largest(feed_cut(model, rewound, other, step) - feed_cut(model, straight, other, step)) == 0.0


def test_rewinding_further_raises_and_changes_nothing() -> None:
    model, ids = tiny_llama(layers=1), random_ids(150)
    (ring,) = rings(model)
    feed_cut(model, [ring], ids[:100], 64)
    assert ring.rewindable >= G.undo * G.block
    with pytest.raises(RewindError, match=f"can rewind {ring.rewindable}"):
        ring.trim(ring.rewindable + 1)
    (same,) = rings(model)
    feed_cut(model, [same], ids[:100], 64)
    again = feed_cut(model, [ring], ids[100:], 64)
    assert largest(again - feed_cut(model, [same], ids[100:], 64)) == 0.0


def test_rewinding_twice_uses_each_undo_block_once() -> None:
    model, ids = tiny_llama(layers=1), random_ids(150)
    (ring,) = rings(model)
    feed_cut(model, [ring], ids[:100], 64)
    ring.trim(ring.rewindable)
    assert ring.rewindable == 0 or ring.offset <= G.capacity
    with pytest.raises(RewindError):
        ring.trim(1)


def test_a_fork_is_independent() -> None:
    model, ids = tiny_llama(layers=1), random_ids(150)
    ours, straight = rings(model), rings(model)
    feed_cut(model, ours, ids[:60], 64)
    feed_cut(model, straight, ids[:60], 64)
    twin = [r.fork() for r in ours]
    feed_cut(model, twin, random_ids(40, seed=5), 64)
    assert largest(feed_cut(model, ours, ids[60:], 64) - feed_cut(model, straight, ids[60:], 64)) == 0.0


@pytest.mark.parametrize("heads", [1, 4])
def test_writes_stay_in_place(heads: int) -> None:
    """A turn on a full window raises peak memory by little more than the block that a flush moves."""
    g = Geometry(4, 4096, 256, 2)
    ring = RingKVCache(g, SinkRotation(nn.RoPE(32), 32))

    def turn(n: int) -> None:
        rows, at = mx.random.normal((1, heads, n, 32)), 0
        while at < n:
            step = min(n - at, cut(ring, n))
            ring.update_and_fetch(rows[..., at : at + step, :], rows[..., at : at + step, :])
            at += step
        mx.eval(ring.state)

    for _ in range(65):
        turn(64)
    mx.clear_cache()
    before, buffers = mx.get_active_memory(), ring.nbytes
    mx.reset_peak_memory()
    for _ in range(8):  # two flushes among them
        turn(64)
    block = buffers * g.block // g.rows
    assert mx.get_peak_memory() - before < 1.25 * block
    assert ring.nbytes == buffers


@pytest.mark.slow
def test_a_wrapped_ring_decodes_one_step_ahead_without_copies() -> None:
    """200 tokens under async_eval on a 32,768-row ring: peak memory rises by less than 5 % of the cache."""
    model = tiny_llama(layers=4)
    cache = rings(model, Geometry(4, 32_768, 256, 2))
    logits_of(model, cache, random_ids(500), [500])
    total = sum(c.nbytes for c in cache)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    y = mx.array([1])
    for _ in range(200):
        following = mx.argmax(model(y[None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(following)
        y.item()
        y = following
    assert mx.get_peak_memory() - before < 0.05 * total


@pytest.mark.slow
def test_it_can_be_used_with_a_batch() -> None:
    model, ids = tiny_llama(), random_ids(80)
    batch = mx.array([ids, list(reversed(ids))])
    ours, one = rings(model), rings(model)
    out = mx.concatenate([model(batch[:, i : i + 1], cache=ours) for i in range(80)], axis=1)
    assert largest(out[0] - feed_cut(model, one, ids, 1)) < 1e-4


def test_truth_value_is_never_the_length() -> None:
    """mlx-lm asks `if cache`: an empty ring must still count as a cache."""
    assert RingKVCache(G)
    assert not hasattr(RingKVCache, "__len__")
