"""Flushes of all layers together: the bytes of the layer-wise way, at most 4 evaluations, and no ring copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings import flushes
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from tests.reference import random_ids, tiny_llama
from tests.thorough import part

DIMS = {"hidden": 128}  # heads of 32, which can be quantized
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16, "layers": 4}
CAPACITY = 68


def cache_of(model: Any, **more: Any) -> PromptCache:
    config = CacheConfig(**{"window": 64, "sinks": 4, "block": 16, "slack": 32, "group_size": 32, **more})
    return PromptCache(plan_cache(model, config), model)


def feed(model: Any, cache: PromptCache, ids: list[int], step: int = 512) -> None:
    list(ModelRunner(model, step).prefill(cache, ids))


def bits_of(cache: PromptCache) -> list[Any]:
    """Everything that a ring holds: rows as numbers that can be compared exactly."""
    rings = [ring for ring in cache.layers if isinstance(ring, RingKVCache)]
    arrays = [array for ring in rings for array in ring._arrays]
    assert len(rings) == len(cache.layers)
    return [[ring.offset, ring.undo_blocks] for ring in rings] + [
        array.view(mx.uint32 if array.dtype.size == 4 else mx.uint16).tolist() for array in arrays
    ]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The evaluations that wait, or begin, inside the block."""
    calls = list[str]()

    def watched(name: str) -> Callable[..., Any]:
        own = getattr(mx, name)

        def call(*arrays: Any) -> Any:
            calls.append(name)
            return own(*arrays)

        return call

    with monkeypatch.context() as patch:
        for name in ("eval", "async_eval"):
            patch.setattr(mx, name, watched(name))
        yield calls


MODELS = [{"layers": 2}, {**SLIDING, "layers": 36, "layer_types": SLIDING["layer_types"] * 9}]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, (8, 4)])
@pytest.mark.parametrize("more", MODELS, ids=["2 layers", "36 layers, half of them sliding"])
def test_a_flush_takes_4_evaluations_whatever_the_depth(
    more: dict[str, Any], bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(**{**DIMS, **more})
    together, apart = cache_of(model, bits=bits, sinks=0), cache_of(model, bits=bits, sinks=0)
    for cache in (together, apart):
        feed(model, cache, random_ids(64 + 64), step=16)  # the next token evicts in both kinds of layers
    assert all(flushes.is_due(ring, 1) for ring in together._rings)
    with counted(monkeypatch) as calls:
        together.make_room(1)
        assert 0 < len(calls) <= 4
        done = len(calls)
        model(mx.array([[3]]), cache=together.layers)
        assert len(calls) == done  # nothing was left to the layers
    with counted(monkeypatch) as calls:
        model(mx.array([[3]]), cache=apart.layers)
        assert len(calls) == 4 * len(apart._rings)  # as in mlx-lm's own loops


@pytest.mark.slow
def test_the_runner_evicts_so_in_prefill_and_in_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=36)
    runner, cache = ModelRunner(model), cache_of(model)
    feed(model, cache, random_ids(CAPACITY))
    with counted(monkeypatch) as calls:
        list(runner.prefill(cache, random_ids(16)))
    assert 1 < len(calls) <= 4 + 1  # one evaluates the chunk
    with counted(monkeypatch) as calls:
        list(runner.decode(cache, 5, SamplingParams(temperature=0.0, max_tokens=18)))
    starts = calls.count("async_eval")
    assert calls.count("eval") == 2 * 4
    assert starts <= 2 * 18


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"layers": 2}, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("bits", [None, 8, (8, 4)])
@pytest.mark.parametrize(("sinks", "slack"), part([(4, 32), (0, 32), (4, 0), (0, 0)], 3))
def test_the_bytes_are_those_of_the_layer_wise_way(
    more: dict[str, Any], bits: Any, sinks: int, slack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny_llama(**{**DIMS, **more}), random_ids(200)
    together, apart = (cache_of(model, bits=bits, sinks=sinks, slack=slack) for _ in range(2))
    for step, a, b in ((64, 0, 90), (1, 90, 118), (5, 118, 200)):
        feed(model, together, ids[a:b], step)
        with monkeypatch.context() as patch:
            patch.setattr(PromptCache, "make_room", lambda self, n: None)
            feed(model, apart, ids[a:b], step)
        assert bits_of(together) == bits_of(apart)
    assert together.num_evicted >= 128
    if not slack:
        return
    target = together.offset - together.rewindable
    assert together.num_evicted > together.plan.geometry.flushes(target) * 16  # type: ignore[union-attr]
    together.rewind(target)
    for ring in apart._rings:
        ring.trim(200 - target)
    assert bits_of(together) == bits_of(apart)


@pytest.mark.slow
def test_a_rewind_over_two_boundaries_takes_8_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=36)
    cache = cache_of(model)
    feed(model, cache, random_ids(CAPACITY + 32 + 1))
    with counted(monkeypatch) as calls:
        cache.rewind(CAPACITY + 1)
    assert 0 < len(calls) <= 2 * 4


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4])
def test_a_flush_copies_no_ring(heads: int) -> None:
    """Its blocks are the only memory it takes, in prefill, in decode and in a rewind."""
    model = tiny_llama(layers=4, hidden=128, kv_heads=heads)
    cache = cache_of(model, window=2048, block=16, slack=32)
    feed(model, cache, random_ids(2048 + 4))
    ring = cache._rings[0].nbytes
    for _ in range(3):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        cache.make_room(1)
        mx.eval([layer.state for layer in cache.layers])
        assert 16 * cache.plan.bytes_per_token <= mx.get_peak_memory() - before < ring / 4
        feed(model, cache, [3] * 16)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    cache.rewind(cache.offset - 20)
    assert mx.get_peak_memory() - before < ring / 4


@pytest.mark.slow
@pytest.mark.parametrize("slack", [32, 0])
def test_a_call_that_fails_after_the_eviction_is_undone(slack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an undo area the block is gone, and all tokens are forgotten."""
    model, ids = tiny_llama(), random_ids(120)
    cache, straight = cache_of(model, slack=slack), cache_of(model, slack=slack)
    for one in (cache, straight):
        feed(model, one, ids[: CAPACITY + 16])

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("of the model")

    runner = ModelRunner(model)
    runner.model = fails
    with pytest.raises(RuntimeError, match="of the model"):
        list(runner.prefill(cache, ids[CAPACITY + 16 :]))
    if not slack:
        assert cache.offset == 0
        return
    assert cache.offset == CAPACITY + 16
    for one in (cache, straight):
        one.rewind(CAPACITY)
        feed(model, one, ids[CAPACITY:])
    assert bits_of(cache) == bits_of(straight)


@pytest.mark.parametrize("rewinds", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_an_eviction_that_is_interrupted_forgets_the_tokens(
    stage: int, rewinds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    cache = cache_of(model)
    feed(model, cache, random_ids(CAPACITY + 16 + rewinds))
    own, calls = mx.eval, []

    def interrupted(*arrays: Any) -> None:
        calls.append(1)
        if len(calls) == stage:
            raise KeyboardInterrupt
        own(*arrays)

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.rewind(CAPACITY + 10) if rewinds else feed(model, cache, [5])
    assert cache.offset == 0
    feed(model, cache, random_ids(90))
    assert cache.offset == 90


def test_a_reply_whose_first_eviction_is_interrupted_forgets_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    cache = cache_of(model)
    feed(model, cache, random_ids(CAPACITY + 16))

    def interrupted(*moves: Any) -> None:
        if any(moves):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flushes, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(ModelRunner(model).decode(cache, 5, SamplingParams(temperature=0.0, max_tokens=4)))
    assert cache.offset == 0
    feed(model, cache, random_ids(90))
    assert cache.offset == 90
