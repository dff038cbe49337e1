"""SmolLM2's logits and greedy tokens on our caches, in float32, beside mlx-lm's own and a slow reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as theirs

import mlxkv
from mlxkv.model import Model
from tests.reference import FullRecomputation, largest, logits_of
from tests.thorough import THOROUGH

pytestmark = [pytest.mark.real, pytest.mark.slow]

TEXT = (
    "The heart is a muscle that pumps blood through the body. It has four chambers: two atria, which receive blood, "
    "and two ventricles, which send it on. Valves between them keep the blood from flowing back. In an adult at rest "
    "it beats between sixty and a hundred times a minute."
)
CLOSE = 1e-4  # of the largest logit: sums of float32 in another order


@pytest.fixture(scope="module")
def model(smollm2: Model) -> Model:
    smollm2.loaded.model.set_dtype(mx.float32)  # before a cache is made: its rows have the dtype of the weights
    return smollm2


@pytest.fixture(scope="module")
def ids(model: Model) -> list[int]:
    return list(model.tokenizer.encode(TEXT))


def differ(network: nn.Module, ours: list[Any], other: list[Any], ids: list[int]) -> float:
    """The largest difference of any logit while both process `ids` one by one."""
    return largest(logits_of(network, ours, ids, [1]) - logits_of(network, other, ids, [1]))


def test_greedy_tokens_are_those_of_mlx_lms_loop(model: Model) -> None:
    prompt, network = "The capital of France is", model.loaded.model
    expected = [t for t, _ in generate_step(mx.array(model.tokenizer.encode(prompt)), network, max_tokens=10)]
    done = model.generate(prompt, temperature=0.0, max_tokens=10)
    assert list(done.tokens) == expected
    assert done.text.startswith(" Paris")


def test_logits_are_those_of_mlx_lms_cache(model: Model, ids: list[int]) -> None:
    network, cache = model.loaded.model, model.make_cache(mlxkv.CacheConfig(window=64, block=16, sinks=4))
    own = logits_of(network, list(theirs.make_prompt_cache(network)), ids[:24], [20, 1])
    assert largest(logits_of(network, cache.layers, ids[:24], [20, 1]) - own) == 0.0


def test_a_wrapped_window_attends_the_rows_of_the_slow_reference(model: Model, ids: list[int]) -> None:
    """Two blocks are evicted, and the sinks' keys are rotated after them."""
    network: Any = model.loaded.model
    cache = model.make_cache(mlxkv.CacheConfig(window=32, block=8, sinks=4))
    reference = [FullRecomputation(4, 32, 8, layer.self_attn.rope) for layer in network.layers]
    expected = logits_of(network, reference, ids[:46], [1])
    got = logits_of(network, cache.layers, ids[:46], [36, 8, 1])
    assert largest(got - expected) < CLOSE * largest(expected)


def test_after_a_rewind_the_continuation_is_as_if_the_rest_had_never_been(model: Model, ids: list[int]) -> None:
    config = mlxkv.CacheConfig(window=32, block=8, sinks=4, slack=16)
    straight, back = model.prefill(ids[:40], config), model.prefill([*ids[:40], *ids[60:66]], config)
    assert back.num_evicted > 0
    assert back.reuse([*ids[:40], *ids[40:44]]).cached == 40
    expected = logits_of(model.loaded.model, straight.layers, ids[40:44], [1])
    got = logits_of(model.loaded.model, back.layers, ids[40:44], [1])
    assert largest(got - expected) < CLOSE * largest(expected)


BOUNDS = {8: 0.03, (8, 4): 0.2, 4: 0.5}  # the largest difference of a logit, as a part of the largest


def test_quantized_rows_change_logits_and_perplexity_little(model: Model, ids: list[int]) -> None:
    network, ids = model.loaded.model, ids[: 64 if THOROUGH else 40]

    def measured(bits: Any) -> tuple[mx.array, float]:
        cache = model.make_cache(mlxkv.CacheConfig(window=128, block=16, sinks=4, bits=bits))
        logits = logits_of(network, cache.layers, ids, [16])
        scores = mx.take_along_axis(nn.log_softmax(logits[:-1], axis=-1), mx.array(ids[1:])[:, None], axis=-1)
        return logits, float(mx.exp(-mx.mean(scores)).item())  # type: ignore[arg-type]

    exact, perplexity = measured(None)
    assert 2 < perplexity < 30  # it is English to this model
    for bits, bound in BOUNDS.items():
        logits, quantized = measured(bits)
        difference = largest(logits - exact) / largest(exact)
        print(f"{bits} bits: logits {difference:.4f} of the largest, perplexity {quantized / perplexity:.4f} times")
        assert 0 < difference < bound, bits
        if bits == 8:
            assert quantized / perplexity < 1.02


def test_prompt_cache_files_of_mlx_lm_both_ways(model: Model, ids: list[int], tmp_path: Path) -> None:
    network, more = model.loaded.model, ids[24:27]
    cache = model.prefill(ids[:24], mlxkv.CacheConfig(window=64, block=16))
    cache.export_mlx_lm(tmp_path / "ours.safetensors")
    there = list(theirs.load_prompt_cache(str(tmp_path / "ours.safetensors")))
    assert {type(layer).__name__ for layer in there} == {"KVCache"}
    theirs.save_prompt_cache(str(tmp_path / "theirs.safetensors"), there)
    here = model.import_mlx_lm(tmp_path / "theirs.safetensors")
    expected = logits_of(network, cache.layers, more, [1])
    assert largest(logits_of(network, there, more, [1]) - expected) == 0.0
    assert largest(logits_of(network, here.layers, more, [1]) - expected) == 0.0
