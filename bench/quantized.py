"""Decode on quantized rows, beside mlx-lm's quantized cache and beside 16 bits: `python -m bench --only quantized`.

Random rows in two random layers of SmolLM2's shape, as in `speed`. A float32 model attends to packed rows; in bfloat16
on the CPU, and with other bits for keys than for values, each step decodes the rows first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

from bench.measure import make_part
from bench.rows import SMOLLM2, Pair
from bench.speed import VOCAB, few_layers
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.layer_plan import LayerPlan
from mlxkv.cli.bench.measure import ROUNDS, compare, decode_ours, decode_theirs
from mlxkv.cli.bench.parts import FASTEST
from mlxkv.cli.bench.report import Part, Row, Unit
from mlxkv.inference.runner import ModelRunner
from mlxkv.settings.schema import KV_BITS

_LAST = 5  # the token that is fed first


def by_rows(dtype: mx.Dtype, contexts: Sequence[int], steps: int = 16, rounds: int = ROUNDS) -> Part:
    """Decode with so many rows in the cache, in each number of bits."""
    name, model, rows = str(dtype).rpartition(".")[2], few_layers(), list[Row]()
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    for context in contexts:
        plain = _pair(model, dtype, context, steps, None)
        rows += [_row(model, dtype, context, steps, rounds, bits, plain) for bits in KV_BITS]
    return make_part(
        f"quantized-{name}", f"Decode on quantized rows, {name}",
        f"2 of SmolLM2-135M's 30 layers, random weights, {name}, vocabulary {VOCAB:,}",
        f"{steps} tokens generated, greedy; medians of {rounds}, the sides in turns",
        {"context": Unit.COUNT, "rows": Unit.TEXT, "mlxkv": Unit.TOKENS_PER_SECOND, "mlx-lm": Unit.TOKENS_PER_SECOND,
         "ratio": Unit.RATIO, "worst pair": Unit.RATIO, "to the model's own": Unit.RATIO}, rows,
        "`to the model's own` is the speed on rows in the model's own precision as 1.",
    )  # fmt: skip


def _pair(model: object, dtype: mx.Dtype, context: int, steps: int, bits: int | str | None) -> Pair:
    shape, config = replace(SMOLLM2, layers=2), CacheConfig(window=context + steps + 1, bits=bits)
    pair = Pair(shape, config, model, dtype)
    pair.theirs = [QuantizedKVCache(64, bits) for _ in range(2)] if isinstance(bits, int) else []
    pair.feed(context)
    return pair


def _row(model: object, dtype: mx.Dtype, context: int, steps: int, rounds: int, bits: int | str, plain: Pair) -> Row:
    runner = ModelRunner(model)  # type: ignore[arg-type]
    pair = _pair(model, dtype, context, steps, bits)
    leaf: LayerPlan = pair.plan.leaves[0]
    is_packed = not leaf.is_fused and leaf.key_codec == leaf.value_codec

    def ours() -> float:
        return decode_ours(runner, pair.ours, _LAST, steps)

    own = compare(ours, lambda: decode_ours(runner, plain.ours, _LAST, steps), rounds)
    values: dict[str, float | int | str | None] = {
        "context": context, "rows": "packed" if is_packed else "decoded", "mlxkv": steps / own.ours,
        "to the model's own": own.median,
    }  # fmt: skip
    if pair.theirs:
        beside = compare(ours, lambda: decode_theirs(runner, pair.theirs, _LAST, steps), rounds)
        values |= {"mlxkv": steps / beside.ours, "mlx-lm": steps / beside.theirs, "ratio": beside.median,
                   "worst pair": beside.worst}  # fmt: skip
    return Row(f"{bits} bits, {context:,} rows", values, FASTEST if pair.theirs and is_packed else None)


def parts(full: bool) -> Iterator[Part]:
    if full:
        yield by_rows(mx.float32, (4096, 16_384))
        yield by_rows(mx.bfloat16, (4096, 16_384))
