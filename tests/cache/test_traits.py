"""What a model puts into its caches is found out once per model, and from one layer of each kind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.smollm3 import NoPE

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning import traits
from mlxkv.cache.planning.equal_layers import layer_kinds
from mlxkv.cache.planning.plan import make_cache, plan_cache
from mlxkv.cache.planning.probe import sink_rotations
from mlxkv.cache.planning.traits import native_cache, traits_of
from mlxkv.cache.prompt_cache import PromptCache
from tests import hybrids
from tests.cache.architectures import ARCHITECTURES
from tests.reference import largest, tiny_llama

CONFIG = CacheConfig(window=64, sinks=4, block=16, slack=32, group_size=32)


def counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all calls of this kind of model from now on."""
    calls: list[int] = []
    original = type(model).__call__

    def call(self: Any, ids: mx.array, *args: Any, **more: Any) -> Any:
        calls.append(ids.shape[1])
        return original(self, ids, *args, **more)

    monkeypatch.setattr(type(model), "__call__", call)
    return calls


@pytest.mark.parametrize("bits", [None, 8])
def test_a_second_cache_asks_the_model_nothing(bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was two decode steps and a graph of one for each, and twelve calls more for quantized rows."""
    model = tiny_llama(hidden=128)
    calls = counted(model, monkeypatch)
    config = CacheConfig(window=64, bits=bits, group_size=32)
    make_cache(model, config)
    assert calls
    calls.clear()
    assert len(make_cache(model, config)) == len(make_cache(model, CacheConfig(window=128))) == 2
    assert calls == []


def test_a_second_cache_of_a_loaded_model_asks_it_nothing(model: mlxkv.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(model.loaded.model, monkeypatch)
    model.make_cache(CONFIG)
    calls.clear()
    model.make_cache(CONFIG)
    model.chat(cache=CONFIG).close()
    assert calls == []


def test_a_second_cache_compares_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walking through its modules is a third of what a second cache costs; state_shapes are for saved states alone."""
    compared: list[Any] = []
    original = traits._same
    monkeypatch.setattr(traits, "_same", lambda a, b: compared.append(a) or original(a, b))
    model = tiny_llama()
    PromptCache(plan_cache(model, CONFIG), model)
    assert compared == []
    PromptCache(plan_cache(model, CONFIG), model)
    assert len(compared) == 1


def test_frames_of_states_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hybrids.tiny("mamba2")
    calls = counted(model, monkeypatch)
    first, second = (PromptCache(plan_cache(model, CacheConfig()), model) for _ in range(2))
    layout = first.layout()
    assert first.can_save
    calls.clear()
    assert second.layout() == layout
    assert second.can_save
    assert calls == []


def test_exchanged_weights_are_noticed() -> None:
    model = tiny_llama()
    assert plan_cache(model, CONFIG).leaves[0].shape.dtype == mx.float32  # type: ignore[union-attr]
    model.set_dtype(mx.bfloat16)
    assert plan_cache(model, CONFIG).leaves[0].shape.dtype == mx.bfloat16  # type: ignore[union-attr]
    model.layers[1].self_attn.rope = NoPE()  # type: ignore[assignment]
    assert [leaf.rotation is None for leaf in plan_cache(model, CONFIG).leaves] == [False, True]


def test_the_traits_do_not_keep_the_model() -> None:
    """Without a cycle its weights go with the last reference, not at some later collection."""
    model = tiny_llama()
    plan_cache(model, CONFIG)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_one_layer_of_each_kind_is_run() -> None:
    """Keys of the others were computed too, and with them the whole model."""
    model = tiny_llama(layers=4)
    model.layers[3].self_attn.rope = NoPE()  # type: ignore[assignment]
    plan = plan_cache(model, CONFIG)
    assert [leaf.rotation is None for leaf in plan.leaves] == [False, False, False, True]
    rotations = [leaf.rotation for leaf in plan.leaves]
    assert rotations[0] is rotations[1] is rotations[2]  # of the first one


def test_layers_are_alike_weights_aside() -> None:
    model = tiny_llama(layers=5)
    model.layers[1].self_attn.layer_idx = 1  # its number says nothing
    model.layers[2].self_attn.is_local = True
    model.layers[3].self_attn.rope._freqs = mx.arange(4.0)
    a, b, c, d, e = layer_kinds(model.layers)
    assert a == b == e
    assert len({a, c, d}) == 3
    model.layers[4].self_attn.rope._freqs = mx.arange(4.0)
    assert layer_kinds(model.layers)[4] == d


def test_a_norm_of_one_number_is_not_like_one_of_many() -> None:
    """Keys normalised after their rotation can be moved where that does the same to every number of them."""
    model = ARCHITECTURES["hunyuan_v1_dense"].build()
    model.layers[0].self_attn.key_layernorm.weight = mx.ones((32,))
    assert [leaf.rotation is None for leaf in plan_cache(model, CONFIG).leaves] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama", "gemma3_text", "smollm3", "cohere2", "exaone4", "llama4_text", "iquestloopcoder", "youtu_llm"]
)
def test_it_is_what_asking_every_layer_gives(name: str) -> None:
    model = ARCHITECTURES[name].build()
    traits = traits_of(model)
    found = traits.sinks(model, is_loaded=True)
    modules = [None] * len(found)
    layers = list(model.layers)
    if len(found) % len(layers) == 0:
        modules = [layers[i % len(layers)] for i in range(len(found))]
    every = sink_rotations(model, native_cache(model), native_cache(model), modules, range(len(found)))
    assert [sinks.is_streaming for sinks in found] == [sinks.is_streaming for sinks in every]
    rows = mx.random.normal((1, 2, 3, 32))
    for a, b in zip(found, every, strict=True):
        assert (a.rotation is None) == (b.rotation is None)
        if a.rotation is not None and b.rotation is not None and traits.leaves[0].shape.k_dim == 32:  # type: ignore[union-attr]
            assert largest(a.rotation(rows, 50) - b.rotation(rows, 50)) == 0.0
