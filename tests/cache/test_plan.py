"""What becomes of each of mlx-lm's cache classes, and what is refused."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ConcatenateKVCache, KVCache, RotatingKVCache
from mlx_lm.models.llama import Model, ModelArgs

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import make_cache, plan_cache
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.errors import ConfigError, UnboundedError
from tests.cache.architectures import ARCHITECTURES
from tests.reference import largest, logits_of, random_ids, tiny_llama

CONFIG = CacheConfig(window=64, sinks=4, block=16, slack=32)


class Asking:
    """A model that asks for caches of its own choice."""

    def __init__(self, model: Any, *caches: Any) -> None:
        self.model, self.layers, self.caches = model, model.layers, caches

    def __call__(self, ids: mx.array, cache: Any) -> mx.array:
        return self.model(ids, cache=cache)

    def make_cache(self) -> list[Any]:
        return [make() for make in self.caches]


@pytest.mark.slow
@pytest.mark.parametrize("calls", [[1], [40, 1], [7]])
def test_a_rotating_cache_that_keeps_the_first_tokens_still_does(calls: list[int]) -> None:
    """mlx-lm's prefill masks the kept ones away, its decode steps see them: those are what counts."""
    model = Asking(tiny_llama(), *[lambda: RotatingKVCache(max_size=24, keep=4)] * 2)
    ids = random_ids(120)
    expected = logits_of(model, model.make_cache(), ids, [1])  # type: ignore[arg-type]
    (ring, _) = caches = plan_cache(model, CONFIG).make(model)  # type: ignore[arg-type]
    assert (ring.native_window, ring.geometry.sinks) == (20, 4)
    got = logits_of(model, caches, ids, calls)  # type: ignore[arg-type]
    assert largest(got - expected) < 1e-4 * largest(expected)


def test_a_concatenating_cache_becomes_a_ring() -> None:
    model = Asking(tiny_llama(), ConcatenateKVCache, KVCache)
    caches = make_cache(model, CONFIG)
    assert [type(cache) for cache in caches] == [RingKVCache, RingKVCache]
    ids = random_ids(60)
    expected = logits_of(model, model.make_cache(), ids, [40, 1])  # type: ignore[arg-type]
    assert largest(logits_of(model, caches, ids, [40, 1]) - expected) == 0.0  # type: ignore[arg-type]


def test_a_class_that_is_not_known_stays_and_is_named() -> None:
    class Peculiar(KVCache):
        pass

    model = Asking(tiny_llama(), Peculiar, KVCache)
    with pytest.warns(UserWarning, match=r"\(Peculiar\) is used unchanged and grows with every token"):
        caches = make_cache(model, CacheConfig(sinks=4))
    assert [type(cache) for cache in caches] == [Peculiar, RingKVCache]
    with pytest.raises(UnboundedError, match="`window` is 64, and Peculiar cannot be held to it"):
        make_cache(model, CONFIG)


def test_a_model_that_counts_rows_is_not_bounded_and_says_why() -> None:
    model = ARCHITECTURES["afm7"].build()
    with pytest.raises(UnboundedError, match="number of rows for the position of the query; leave it out"):
        plan_cache(model, CONFIG)
    plan = plan_cache(model, CacheConfig())
    assert "since its last layers take the number of rows" in plan.description
    assert plan.resolved == CacheConfig()
    with pytest.raises(ConfigError, match="`bits` is 8, and KVCache cannot be quantized"):
        plan_cache(model, CacheConfig(bits=8))


def test_rings_inside_a_cache_list_are_counted() -> None:
    plan = plan_cache(ARCHITECTURES["deepseek_v32"].build(), CONFIG)
    assert plan.nbytes == sum(leaf.nbytes for leaf in plan.leaves) > 0
    assert [leaf.name for leaf in plan.leaves] == ["0.0", "0.1", "1.0", "1.1"]
    assert plan.passed_through == ()


def test_keys_normalised_after_their_rotation_are_not_moved() -> None:
    """Hunyuan: the rope composes, the keys do not, unless every weight of the norm is the same."""
    model = ARCHITECTURES["hunyuan_v1_dense"].build()
    assert all(leaf.rotation is None for leaf in plan_cache(model, CONFIG).leaves)
    for layer in model.layers:
        layer.self_attn.key_layernorm.weight = mx.ones((32,))
    assert all(leaf.rotation is not None for leaf in plan_cache(model, CONFIG).leaves)


def test_latent_rows_are_not_taken_for_keys() -> None:
    """DeepSeek-V3 keeps the latent as keys and the rotated part as values; its rope would rotate the latent."""
    plan = plan_cache(ARCHITECTURES["deepseek_v3"].build(), CONFIG)
    assert all(leaf.rotation is None for leaf in plan.leaves)
    assert "its positions cannot be moved" in plan.description


@pytest.mark.parametrize("name", ["youtu_llm", "deepseek_v2"])
def test_the_end_of_a_row_is_moved_where_that_is_what_the_rope_sees(name: str) -> None:
    (leaf, _) = plan_cache(ARCHITECTURES[name].build(), CONFIG).leaves
    assert leaf.rotation is not None
    assert leaf.rotation.start == 32


@pytest.mark.parametrize("name", ["nanochat", "talkie"])
def test_a_rope_that_is_a_table_of_frequencies_is_found(name: str) -> None:
    assert all(leaf.rotation is not None for leaf in plan_cache(ARCHITECTURES[name].build(), CONFIG).leaves)


def test_an_estimate_computes_nothing() -> None:
    """The weights of a model that is not loaded are numbers nobody has drawn yet: 400 MB here."""
    args = ModelArgs(
        model_type="llama", hidden_size=1024, num_hidden_layers=2, intermediate_size=1024, num_attention_heads=8,
        rms_norm_eps=1e-5, vocab_size=50_000,
    )  # fmt: skip
    model = Model(args)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    plan = plan_cache(model, CONFIG, is_loaded=False)
    assert mx.get_peak_memory() - before < 1 << 20
    assert all(leaf.rotation is not None for leaf in plan.leaves)
