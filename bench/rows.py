"""Caches that hold random KV rows of a real shape, on both sides, without a run of a model.

What a cache costs depends on the shape of its rows alone, so that long contexts are affordable on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache
from mlx_lm.models.llama import Model, ModelArgs

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache

_CUT = 512  # tokens fed at once


@dataclass(frozen=True)
class Shape:
    """The KV rows of a published model: layers, KV heads and numbers per head, in 16 bits."""

    model: str
    layers: int
    heads: int
    dim: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a token in all layers."""
        return self.layers * 2 * self.heads * self.dim * 2

    def __str__(self) -> str:
        return f"rows of {self.model}: {self.layers} layers x {self.heads} KV heads x {self.dim}, bfloat16"


SMOLLM2 = Shape("SmolLM2-135M", 30, 3, 64)
QWEN3 = Shape("Qwen3-0.6B", 28, 8, 128)


def bare_model(shape: Shape) -> Model:
    """A model whose layers have rows of this shape; it is never run."""
    args = ModelArgs(model_type="llama", hidden_size=64, num_hidden_layers=shape.layers, intermediate_size=64,
                     num_attention_heads=shape.heads, num_key_value_heads=shape.heads, head_dim=shape.dim,
                     rms_norm_eps=1e-5, vocab_size=256, max_position_embeddings=1 << 17)  # fmt: skip
    model = Model(args)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


class Pair:
    """The same rows in a PromptCache and in caches of mlx-lm, one per layer; those may be missing."""

    def __init__(self, shape: Shape, config: CacheConfig, model: Any = None, dtype: mx.Dtype = mx.bfloat16) -> None:
        self.shape, self.model, self.dtype = shape, model or bare_model(shape), dtype
        self.plan = plan_cache(self.model, config)
        self.ours = self.fresh()
        self.theirs: list[Any] = [KVCache() for _ in range(shape.layers)]
        self.num_tokens = 0

    def fresh(self) -> PromptCache:
        return PromptCache(self.plan, self.model)

    def feed(self, num: int) -> tuple[int, ...]:
        """Random rows for `num` new tokens; their ids."""
        ids = range(self.num_tokens, self.num_tokens + num)
        while self.num_tokens < ids.stop:
            n = min(ids.stop - self.num_tokens, _CUT, self.ours.tokens_to_boundary() or _CUT)
            feed_ours(self.ours, self._rows(n), range(self.num_tokens, self.num_tokens + n))
            if self.theirs:
                feed_theirs(self.theirs, self._rows(n))
            self.num_tokens += n
        return tuple(ids)

    def _rows(self, n: int) -> Any:
        """A function that makes the keys and values of a layer for the next `n` tokens."""
        seed, shape = self.num_tokens * self.shape.layers, (1, self.shape.heads, n, self.shape.dim)
        return lambda layer: tuple(
            mx.random.uniform(-1, 1, shape, self.dtype, key=mx.random.key(2 * (seed + layer) + i)) for i in (0, 1)
        )


def feed_ours(cache: PromptCache, rows: Any, ids: range) -> None:
    """Feed each layer `rows(layer)`, which end within a block, and log the ids."""
    for layer, ring in enumerate(cache.layers):
        ring.update_and_fetch(*rows(layer))
        mx.eval(ring.state)
    cache.advance(ids)


def feed_theirs(caches: list[Any], rows: Any) -> None:
    """The same for caches of mlx-lm."""
    for layer, cache in enumerate(caches):
        cache.update_and_fetch(*rows(layer))
        mx.eval(cache.keys, cache.values)
