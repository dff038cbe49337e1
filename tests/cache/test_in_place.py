"""Steps that copy rings are found by what they take, and evaluated one at a time from then on."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.in_place import InPlace
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams

GEOMETRY = Geometry(4, 16_384, 256, 2)
HEADS, WIDTH = 4, 64


class BareLoop:
    """Write, attend and a few products: so few operations that MLX runs ahead of the attention."""

    def __init__(self) -> None:
        self.ring = RingKVCache(GEOMETRY)
        self.weights = mx.random.normal((WIDTH, WIDTH), key=mx.random.key(1)) * 0.05
        rows = mx.random.normal((1, HEADS, 16_000, WIDTH), key=mx.random.key(2))
        self.ring.update_and_fetch(rows, rows)
        mx.eval(self.ring._arrays)
        self.y = self.step(mx.ones((1, HEADS, 1, WIDTH)))  # (B, heads, 1, head_dim)
        mx.eval(self.y, self.ring._arrays)
        mx.clear_cache()

    def step(self, x: mx.array) -> mx.array:
        keys, values = self.ring.update_and_fetch(x, x)
        x = mx.fast.scaled_dot_product_attention(x, keys, values, scale=0.1)
        for _ in range(4):
            x = x @ self.weights
        return x

    def run(self, steps: int, check: InPlace) -> int:
        """Decode one step ahead as far as `check` allows; the bytes taken at the peak."""
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        for _ in range(steps):
            following = self.step(self.y)  # the graph is built before in any case
            if check.one_step_ahead:
                mx.async_eval(following)
            mx.eval(self.y)
            if not check.one_step_ahead:
                mx.async_eval(following)
            self.y = following
            check.step()
        mx.eval(self.y)
        return max(check.peak, mx.get_peak_memory()) - before


def test_a_bare_loop_copies_its_ring_and_stops_doing_so() -> None:
    loop = BareLoop()
    buffer = loop.ring._arrays[0].nbytes
    check = InPlace(buffer)
    assert loop.run(20, check) >= buffer  # as it was before
    assert check.copies
    assert not check.one_step_ahead
    check.peak = 0
    assert loop.run(20, check) < 0.1 * buffer


def test_steps_that_write_in_place_stay_one_ahead() -> None:
    """A loop whose attention has ended when the next write comes: here, since each step is waited for."""
    loop, check = BareLoop(), InPlace(1 << 20)
    for _ in range(10):
        loop.y = loop.step(loop.y)
        mx.eval(loop.y)
        check.step()
    assert check.copies is False
    assert check.one_step_ahead


def test_memory_that_waiting_does_not_save_is_no_copy() -> None:
    """Such as rows that are decoded for attention, as large as a ring: both ways take it."""
    check = InPlace(1 << 20)
    for _ in range(20):
        mx.eval(mx.zeros((1 << 20,)))
        check.step()
    assert check.copies is False
    assert check.one_step_ahead


def test_small_rings_are_not_measured() -> None:
    check = InPlace(1000)
    mx.reset_peak_memory()
    peak = mx.get_peak_memory()
    for _ in range(10):
        check.step()
    assert (check.copies, check.one_step_ahead, check.peak) == (False, True, 0)
    assert mx.get_peak_memory() == peak


def test_a_step_that_took_memory_for_something_else_is_left_out() -> None:
    check, took = InPlace(1 << 20), 0
    for n in range(40):
        if n % 4 == 3:
            took += 1
            mx.eval(mx.zeros((1 << 20,)))  # as an eviction in every fourth step would
        check.step(took)
    assert check.copies is None
    for _ in range(10):
        check.step(took)
    assert check.copies is False


class BareModel(nn.Module):
    """The bare loop as a model of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Identity()]
        self.embed = nn.Embedding(64, HEADS * WIDTH)

    def __call__(self, ids: mx.array, cache: Any) -> mx.array:
        x = self.embed(ids).reshape(1, ids.shape[1], HEADS, WIDTH).swapaxes(1, 2)  # (B, heads, S, head_dim)
        keys, values = cache[0].update_and_fetch(x, x)
        mask = cache[0].make_mask(1) if ids.shape[1] == 1 else "causal"
        x = mx.fast.scaled_dot_product_attention(x, keys, values, scale=0.1, mask=mask)
        return self.embed.as_linear(x.swapaxes(1, 2).reshape(1, ids.shape[1], HEADS * WIDTH))


@pytest.mark.slow
def test_the_runner_stops_looking_ahead_where_steps_copy_a_ring() -> None:
    model: Any = BareModel()
    cache = PromptCache(plan_cache(model, CacheConfig(window=16_384, sinks=0)), model)
    rows = mx.random.normal((1, HEADS, 16_000, WIDTH), key=mx.random.key(2))
    cache.layers[0].update_and_fetch(rows, rows)
    cache.advance([1] * 16_000)
    mx.eval(cache.layers[0].state[:-1])
    runner, params = ModelRunner(model), SamplingParams(temperature=0.0, max_tokens=30)

    def peak() -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        runner.reset_peak_memory()
        assert len(list(runner.decode(cache, 1, params))) == 30
        return runner.peak_memory - before

    fork = cache.fork()  # has a buffer of another size once it decodes, and tells nothing of this one
    cache.rewind(200)
    small = cache.fork()
    assert len(list(runner.decode(small, 1, params))) == 30
    del small
    cache = fork
    assert peak() >= cache.largest_buffer
    assert runner.in_place(cache).copies
    assert peak() < 0.1 * cache.largest_buffer
