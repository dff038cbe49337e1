"""Draws: the tokens of one reply, drawn from logits.

The n-th token of a reply is drawn with its n-th random key, whatever was drafted, so that drafting changes no text at
any seed. With a seed these are the keys that mlx-lm's loop uses. Evaluates nothing. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxkv.inference.sampling import PENALISED, SamplingParams, reply_key

_SKIPPED_AT_ONCE = 256  # keys of one evaluation


class Draws:
    """Draws the tokens of one reply.

    Args:
        seen: the prompt's ids, for penalties.
        num_before: tokens that a reply to continue has already.

    Attributes:
        is_argmax: the likeliest token is drawn, whatever came before.
    """

    def __init__(self, params: SamplingParams, seen: Sequence[int], num_before: int = 0) -> None:
        self._processors = params.make_logits_processors()
        self._sample = params.make_sampler()
        self._needs_keys = not params.is_greedy
        # Greedy sampling needs no normalised probabilities.
        self.is_argmax = params.is_greedy and not self._processors
        # An imported cache's tokens have no ids.
        penalised = [i for i in seen[-PENALISED:] if i >= 0] if self._processors else []
        self._tokens = mx.array(penalised, mx.int32)
        self._key = reply_key(params.seed) if self._needs_keys else mx.zeros((2,), mx.uint32)
        if params.seed is not None and self._needs_keys:
            for n in range(1, num_before + 1):
                self._key = mx.random.split(self._key)[0]
                if n % _SKIPPED_AT_ONCE == 0:
                    mx.eval(self._key)
        self._keys: list[mx.array] = []  # after each position of the last `all`

    def next(self, logits: mx.array, y: mx.array) -> mx.array:
        """The id (1,) that follows `y` (1,), from its logits (1, vocab)."""
        if self.is_argmax:
            return mx.argmax(logits, axis=-1)
        if self._processors:
            self._tokens = mx.concatenate([self._tokens, y.astype(mx.int32)])[-PENALISED:]
        if not self._needs_keys:
            return self._drawn(logits, self._tokens, None)
        self._key, key = mx.random.split(self._key)
        return self._drawn(logits, self._tokens, [key])

    def all(self, logits: mx.array, ids: Sequence[int]) -> mx.array:
        """The ids (S,) that would follow each of `ids`, from the logits (S, vocab) of a call that was fed them.

        Nothing counts as drawn until `keep` says how many do.
        """
        if self.is_argmax:
            return mx.argmax(logits, axis=-1)
        keys, following = [], self._key
        self._keys = []
        for _ in ids if self._needs_keys else ():
            following, key = mx.random.split(following)
            self._keys.append(following)
            keys.append(key)
        if not self._processors:
            return self._drawn(logits, self._tokens, keys or None)
        told = mx.concatenate([self._tokens, mx.array(list(ids), mx.int32)])
        first = self._tokens.size + 1
        rows = [
            self._drawn(logits[i : i + 1], told[max(first + i - PENALISED, 0) : first + i], keys[i : i + 1] or None)
            for i in range(len(ids))
        ]
        return mx.concatenate(rows)

    def keep(self, ids: Sequence[int]) -> None:
        """The first `len(ids)` ids of the last `all` are drawn, and `ids` are the tokens they followed."""
        if self._keys:
            self._key = self._keys[len(ids) - 1]
        if self._processors:
            self._tokens = mx.concatenate([self._tokens, mx.array(list(ids), mx.int32)])[-PENALISED:]

    def _drawn(self, logits: mx.array, tokens: mx.array, keys: Sequence[mx.array] | None) -> mx.array:
        for processor in self._processors:
            logits = processor(tokens, logits)
        return self._sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True), keys)
