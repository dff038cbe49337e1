"""Prefill and decode beside mlx-lm's own loop, by context; memory and bandwidth: `python -m bench --only speed`.

SmolLM2 itself at short contexts, by what `mlxkv bench` measures; by context two random layers of its shape, since its
prefill takes minutes on a CPU. Decode there follows random rows: its speed does not depend on what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.utils import load_model

from bench.measure import make_part, real_model
from bench.rows import SMOLLM2, Pair
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cli.bench.measure import ROUNDS, Filled, decode_speeds, prefill_speeds, random_ids
from mlxkv.cli.bench.parts import Options, Subject, measure, speed_row
from mlxkv.cli.bench.report import Part, Row, Unit
from mlxkv.inference.runner import ModelRunner

VOCAB = 4096
COLUMNS = {
    "context": Unit.COUNT, "mlxkv": Unit.TOKENS_PER_SECOND, "mlx-lm": Unit.TOKENS_PER_SECOND, "ratio": Unit.RATIO,
    "worst pair": Unit.RATIO,
}  # fmt: skip
NAME = f"2 of SmolLM2-135M's 30 layers, random weights, bfloat16, vocabulary {VOCAB:,}"


def few_layers(hidden: int = 576, mlp: int = 1536, layers: int = 2, vocab: int = VOCAB, heads: int = 9) -> Model:
    """Random layers of SmolLM2's shape, in its precision."""
    mx.random.seed(0)
    args = ModelArgs(model_type="llama", hidden_size=hidden, num_hidden_layers=layers, intermediate_size=mlp,
                     num_attention_heads=heads, num_key_value_heads=SMOLLM2.heads, head_dim=SMOLLM2.dim,
                     rms_norm_eps=1e-5, vocab_size=vocab, max_position_embeddings=1 << 15,
                     tie_word_embeddings=True)  # fmt: skip
    model = Model(args)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


def by_context(model: Any, prefills: Sequence[int], decodes: Sequence[int], steps: int = 8, rounds: int = 21) -> Part:
    """Prefill of, and decode after, so many tokens.

    Decode in many short turns: a shared machine changes its speed by a half for seconds, the length of a long turn.
    """
    runner, rows = ModelRunner(model), list[Row]()
    for context in prefills:
        plan = plan_cache(model, CacheConfig(window=context + steps))
        found = prefill_speeds(runner, plan, random_ids(context, VOCAB), ROUNDS)
        rows.append(speed_row(f"prefill, {context:,} tokens", found, context))
    shape = replace(SMOLLM2, layers=len(model.layers))
    for context in decodes:
        pair = Pair(shape, CacheConfig(window=context + steps + 1), model)
        pair.feed(context)
        found = decode_speeds(runner, Filled(pair.ours, pair.theirs, 0, 0), 5, steps, rounds)
        rows.append(speed_row(f"decode, {context:,} tokens", found, context))
    settings = (
        f"a window that holds all; {steps} tokens generated, greedy; the sides in turns, medians of {ROUNDS} for"
        f" prefill and {rounds} for decode"
    )
    return make_part("speed", "Speed beside mlx-lm, by context", NAME, settings, COLUMNS, rows)


def parts(full: bool) -> Iterator[Part]:
    prefills = (512, 2048, 4096, 8192, 16_384) if full else (512,)
    yield by_context(few_layers(), prefills, prefills if full else (512, 4096, 16_384))
    if (path := real_model("smollm2")) is not None:
        model, config = load_model(path)
        weights = sum(array.nbytes for array in _arrays(model))
        subject = Subject("SmolLM2-135M-Instruct, bfloat16", model, weights, config["vocab_size"])
        options = Options((512, 2048), 32) if full else Options((64,), 8)
        for part in measure(subject, options):
            yield replace(part, name=f"smollm2-{part.name}", title=f"SmolLM2: {part.title.lower()}")


def _arrays(model: Any) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(model.parameters())]  # type: ignore[union-attr]
