"""QuantizedRingKVCache against recomputation with quantized rows, mlx-lm's own quantized cache, and itself uncut."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import QuantizedKVCache

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan, plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.quantized import QuantizedRingKVCache
from mlxkv.cache.rings.rows import Codec
from mlxkv.device import Device
from mlxkv.errors import ConfigError
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from tests.reference import FullRecomputation, largest, logits_of, random_ids, tiny_llama

BITS = [8, 4, (8, 4)]


def config(bits: Any, **more: Any) -> CacheConfig:
    return CacheConfig(**{"window": 64, "block": 16, "slack": 32, "sinks": 4, "bits": bits, "group_size": 32, **more})


@pytest.fixture(scope="module")
def model() -> Any:
    """Heads of 32 numbers, so that groups of 32 fit."""
    return tiny_llama(hidden=128)


def caches(model: Any, bits: Any, **more: Any) -> list[Any]:
    return plan_cache(model, config(bits, **more)).make(model)


def scored(model: Any, ids: list[int], bits: Any, chunk: int) -> mx.array:
    cache = PromptCache(plan_cache(model, config(bits)), model)
    return ModelRunner(model, chunk).score(cache, ids)


class QuantizedRecomputation(FullRecomputation):
    """The slow reference, on rows that went through the codec once, and sinks that go through it when they move."""

    def __init__(self, codecs: tuple[Codec, Codec], rope: Any) -> None:
        super().__init__(4, 64, 16, rope)
        self.codecs = codecs

    def moved(self, key: mx.array, by: int) -> mx.array:
        return self.stored(super().moved(key, by), 0)

    def stored(self, rows: mx.array, which: int) -> mx.array:
        return self.codecs[which].decode(self.codecs[which].encode(rows))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return super().update_and_fetch(self.stored(keys, 0), self.stored(values, 1))


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_logits_equal_recomputation_with_quantized_rows(model: Any, bits: Any) -> None:
    ids = random_ids(150)
    k, v = bits if isinstance(bits, tuple) else (bits, bits)
    slow = [QuantizedRecomputation((Codec(k, 32), Codec(v, 32)), layer.self_attn.rope) for layer in model.layers]
    expected = logits_of(model, slow, ids, [1])
    got = logits_of(model, caches(model, bits), ids, [1])
    assert largest(got - expected) < 1e-3 * largest(expected)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("chunk", [7, 512])
def test_any_chunking_sees_the_same(model: Any, bits: Any, chunk: int) -> None:
    """One token at a time takes the packed path, more the fused one: the rows are the same."""
    ids = random_ids(150)
    assert largest(scored(model, ids, bits, chunk) - scored(model, ids, bits, 1)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_callers_that_do_not_cut_see_the_same(model: Any, bits: int) -> None:
    ids = random_ids(150)
    cut = logits_of(model, caches(model, bits), ids, [1])
    assert largest(logits_of(model, caches(model, bits), ids, [90, 1, 40]) - cut) < 1e-3 * largest(cut)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_before_wrapping_it_is_mlx_lms_quantized_cache(model: Any, bits: int) -> None:
    ids = random_ids(60)
    theirs = [QuantizedKVCache(group_size=32, bits=bits) for _ in model.layers]
    expected = logits_of(model, theirs, ids, [40, 1])
    assert largest(logits_of(model, caches(model, bits), ids, [40, 1]) - expected) < 1e-3 * largest(expected)


def test_only_a_decode_step_is_handed_packed_rows(model: Any) -> None:
    ring = caches(model, 8)[0]
    assert not hasattr(ring, "bits")
    rows = mx.random.normal((1, 2, 5, 32))
    keys, _ = ring.update_and_fetch(rows, rows)
    assert isinstance(keys, mx.array)
    assert not hasattr(ring, "bits")
    keys, _ = ring.update_and_fetch(rows[..., :1, :], rows[..., :1, :])
    assert len(keys) == 3
    assert (ring.bits, ring.group_size) == (8, 32)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_rewinding_after_wrapping_is_exact(model: Any, bits: Any) -> None:
    ids, other = random_ids(150), random_ids(40, seed=4)
    runner = ModelRunner(model)
    for n in (1, 16, 32):
        rewound, straight = (PromptCache(plan_cache(model, config(bits)), model) for _ in range(2))
        list(runner.prefill(rewound, ids))
        list(runner.prefill(straight, ids[: 150 - n]))
        rewound.rewind(150 - n)
        assert largest(runner.score(rewound, other) - runner.score(straight, other)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("fed", [3, 60, 163])
def test_exported_rows_come_back_bit_by_bit(model: Any, bits: Any, fed: int) -> None:
    ids, runner = random_ids(200), ModelRunner(model)
    cache, back = (PromptCache(plan_cache(model, config(bits)), model) for _ in range(2))
    list(runner.prefill(cache, ids[:fed]))
    back.begin_restore(ids[:fed])
    for group, fresh in zip(cache.groups, back.groups, strict=True):
        for a, b in group.held():
            rows = group.export_rows(a, b)
            assert {name: tuple(r.shape) for name, r in rows.items()} == {
                n: s for n, (s, _) in group.shapes(b - a).items()
            }
            fresh.import_rows(a, b, rows)
    back.finish_restore()
    assert largest(runner.score(cache, ids[fed:190]) - runner.score(back, ids[fed:190])) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(8, 0.57), (4, 0.32), ((8, 4), 0.45)])
def test_bytes(bits: Any, share: float) -> None:
    """Of 16-bit rows, at group size 64; and exactly what the plan says."""
    wide = tiny_llama(hidden=256)
    wide.set_dtype(mx.bfloat16)
    plain, packed = (plan_cache(wide, config(b, group_size=64)) for b in (None, bits))
    assert packed.nbytes <= share * plain.nbytes
    assert packed.bytes_per_token <= share * plain.bytes_per_token
    assert allocated(packed, wide) == packed.nbytes


def allocated(plan: CachePlan, model: Any) -> int:
    cache = PromptCache(plan, model)
    list(ModelRunner(model).prefill(cache, random_ids(200)))
    return cache.nbytes


@pytest.mark.slow
def test_prefill_takes_no_more_memory_than_the_unquantized_ring_and_one_layer() -> None:
    """Beside the rows themselves: those of one layer are decoded at a time, and of the next while that one ends."""
    deep = tiny_llama(layers=9, hidden=64, heads=2)
    plans = {bits: plan_cache(deep, config(bits, window=1024, block=64)) for bits in (None, 4)}
    taken = {}
    for bits, plan in plans.items():
        cache = PromptCache(plan, deep)
        list(ModelRunner(deep).prefill(cache, random_ids(512)))
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        list(ModelRunner(deep).prefill(cache, random_ids(768)))  # past the window
        taken[bits] = mx.get_peak_memory() - before
        del cache
    assert taken[4] <= taken[None] + 1.5 * plans[None].layers[0].nbytes


def test_groups_of_32_are_taken_where_64_do_not_divide(model: Any) -> None:
    assert caches(model, 8, group_size=64)[0].group_size == 32


def test_rows_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="groups of 32"):
        plan_cache(tiny_llama(), config(8))


@pytest.mark.slow
def test_sliding_windows_are_quantized_too(model: Any) -> None:
    sliding = tiny_llama(hidden=128, layer_types=["sliding_attention", "full_attention"], sliding_window=20)
    plain, packed = caches(sliding, None), caches(sliding, 8)
    assert all(isinstance(c, QuantizedRingKVCache) for c in packed)
    ids = random_ids(150)
    expected = logits_of(sliding, plain, ids, [40, 1])
    assert largest(logits_of(sliding, packed, ids, [40, 1]) - expected) < 0.05 * largest(expected)


@pytest.mark.slow
def test_learned_sinks_get_decoded_rows() -> None:
    """gpt-oss: mlx-lm's packed attention refuses its learned sinks, in mid-generation."""
    from mlx_lm.models.gpt_oss import Model, ModelArgs

    mx.random.seed(0)
    model = Model(
        ModelArgs(
            num_hidden_layers=2, num_local_experts=2, num_experts_per_tok=1, vocab_size=64, hidden_size=64,
            intermediate_size=64, head_dim=32, num_attention_heads=2, num_key_value_heads=1, sliding_window=20,
            layer_types=["sliding_attention", "full_attention"],
        )
    )  # fmt: skip
    mx.eval(model.parameters())
    packed = caches(model, 8)
    assert all(ring.is_fused for ring in packed)
    ids = random_ids(120)
    expected = logits_of(model, caches(model, None), ids, [40, 1])
    assert largest(logits_of(model, packed, ids, [40, 1]) - expected) < 0.05 * largest(expected)


def half_precision(kind: str) -> Any:
    """A bfloat16 model; gemma3's layers see 32 tokens but for every third."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    arguments = {
        "model_type": kind, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-5, "vocab_size": 256,
        "rope_theta": 1e4, "max_position_embeddings": 512, "sliding_window": 32, "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 64,
    }  # fmt: skip
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(arguments))
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


KINDS = [("gemma3_text", 4), ("gemma3_text", (8, 4)), ("llama", 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_a_decode_step_sees_in_16_bits_what_a_prefill_sees(kind: str, bits: Any) -> None:
    """MLX's CPU product of packed rows adds up in bfloat16: logits were off by a third in gemma3, past its window."""
    model, ids = half_precision(kind), random_ids(150, 256)
    decoded = logits_of(model, caches(model, bits), ids, [1])
    prefilled = logits_of(model, caches(model, bits), ids, [40, 16])
    assert largest(decoded - prefilled) <= 0.01 * largest(prefilled)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_logits_in_16_bits_equal_recomputation_with_decoded_rows(bits: Any) -> None:
    model, ids = half_precision("llama"), random_ids(150, 256)
    k, v = bits if isinstance(bits, tuple) else (bits, bits)
    slow = [QuantizedRecomputation((Codec(k, 32), Codec(v, 32)), layer.self_attn.rope) for layer in model.layers]
    expected = logits_of(model, slow, ids, [1])
    assert largest(logits_of(model, caches(model, bits), ids, [1]) - expected) <= 0.01 * largest(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_a_cache_that_was_deleted_says_the_same_again(kind: str, bits: Any) -> None:
    """Greedy replies differed from the 12th token on; the cache is prefilled anew after each eighth of them."""
    model, ids = half_precision(kind), random_ids(60, 256)
    runner, greedy = ModelRunner(model), SamplingParams(temperature=0.0, max_tokens=80)
    cache = PromptCache(plan_cache(model, config(bits)), model)
    list(runner.prefill(cache, ids[:-1]))
    said = list(runner.decode(cache, ids[-1], greedy))
    assert cache.num_evicted
    for n in range(0, 80, 8):
        again = PromptCache(plan_cache(model, config(bits)), model)
        whole = [*ids, *said[:n]]
        list(runner.prefill(again, whole[:-1]))
        assert next(runner.decode(again, whole[-1], greedy)) == said[n], n
    assert cache.reuse([*ids, *said[:10]]).cached == 0  # back to where the rows have rotated out
    list(runner.prefill(cache, [*ids, *said[:9]]))
    assert list(runner.decode(cache, said[9], SamplingParams(temperature=0.0, max_tokens=70))) == said[10:]


def test_the_device_decides_whether_packed_rows_are_attended() -> None:
    """Metal's kernel adds up in float32; so does the CPU's for float32 rows."""
    cpu = Device("any", False, 1, 1, False, is_cpu=True)
    gpu = Device("any", True, 1, 1, True)

    def is_fused(model: Any, device: Device) -> set[bool]:
        return {leaf.is_fused for leaf in plan_cache(model, config(8), device=device).leaves}

    half, full = half_precision("llama"), tiny_llama(hidden=128)
    assert (is_fused(half, cpu), is_fused(half, gpu)) == ({True}, {False})
    assert (is_fused(full, cpu), is_fused(full, gpu)) == ({False}, {False})
    half.set_dtype(mx.float16)
    assert is_fused(half, cpu) == {True}
