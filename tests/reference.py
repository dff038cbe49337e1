"""Slow, obvious references that the real caches are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import Model, ModelArgs


class FullRecomputation:
    """One layer's cache that keeps every key and picks the visible ones anew for each query; one token at a time.

    The rule, as ring-cache.md words it: the query at p sees the sinks and every position >= K + E(p) up to p, where
    E(p) = 0 if p < K + W, else (floor((p - K - W) / R) + 1) * R; the sinks' keys are moved forward by E(p).
    """

    def __init__(self, sinks: int, window: int, block: int, rope: Any = None) -> None:
        self.sinks, self.window, self.block, self.rope = sinks, window, block, rope
        self.rows: list[mx.array] = []  # of keys and of values, all that ever were: (1, heads, offset, dim) each
        self.offset = 0
        self._moved: tuple[int, list[mx.array]] = (0, [])  # the sinks' keys, and how far forward

    def visible(self, p: int) -> list[int]:
        first = self.sinks + self.evicted(p)
        return [j for j in range(p + 1) if j < self.sinks or j >= first]

    def evicted(self, p: int) -> int:
        K, W, R = self.sinks, self.window, self.block
        return 0 if p < K + W else ((p - K - W) // R + 1) * R

    def moved(self, key: mx.array, by: int) -> mx.array:
        return key if self.rope is None else self.rope(key, offset=by)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        assert keys.shape[2] == 1
        new = [keys, values]
        self.rows = (
            [mx.concatenate(list(pair), axis=2) for pair in zip(self.rows, new, strict=True)] if self.rows else new
        )
        p, self.offset = self.offset, self.offset + 1
        seen = mx.array(self.visible(p))
        k, v = (rows[:, :, seen] for rows in self.rows)
        if by := self.evicted(p):
            if by != self._moved[0]:
                self._moved = by, [self.moved(self.rows[0][:, :, j : j + 1], by) for j in range(self.sinks)]
            k = mx.concatenate([*self._moved[1], k[:, :, self.sinks :]], axis=2)
        return k, v

    def make_mask(self, N: int, **_: Any) -> None:
        assert N == 1

    @property
    def state(self) -> list[mx.array]:
        return []


def tiny_llama(
    layers: int = 2, hidden: int = 32, heads: int = 4, kv_heads: int = 2, vocab: int = 64, seed: int = 0, **more: Any
) -> Model:
    """A random float32 llama that builds in milliseconds."""
    mx.random.seed(seed)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=2 * hidden,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=vocab,
            max_position_embeddings=more.pop("max_position_embeddings", 512),
            **more,
        )
    )
    mx.eval(model.parameters())
    return model


def logits_of(model: nn.Module, cache: list[Any], ids: Sequence[int], sizes: Sequence[int]) -> mx.array:
    """Feed `ids` in calls of the given sizes (the last repeats); the logits of every position (len(ids), vocab)."""
    out, at, calls = [], 0, list(sizes)
    while at < len(ids):
        n = calls.pop(0) if len(calls) > 1 else calls[0]
        out.append(model(mx.array([list(ids[at : at + n])]), cache=cache)[0])
        mx.eval(out[-1])
        at += n
    return mx.concatenate(out)


def random_ids(n: int, vocab: int = 64, seed: int = 1) -> list[int]:
    ids = mx.random.randint(0, vocab, (n,), key=mx.random.key(seed)).tolist()
    assert isinstance(ids, list)
    return [int(i) for i in ids]  # type: ignore[call-overload]


def largest(a: mx.array) -> float:
    return float(mx.max(mx.abs(a)).item())  # type: ignore[arg-type]
