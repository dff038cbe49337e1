"""The log-probabilities of the tokens of a reply, computed with the tokens, by the model's own distribution.

Natural logarithms in float32, before anything that sampling changes. Evaluates nothing until `pop`. On the MLX thread.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import mlx.core as mx

from mlxkv.events import TokenLogprobs

Row = tuple[mx.array, mx.array, mx.array, mx.array]  # a token (1,), its logprob (1,), the likeliest (n,), theirs (n,)


class LogprobRows:
    """Collects the log-probabilities of one reply.

    Args:
        num_top: how many of the likeliest tokens are reported with each token.
    """

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._rows: deque[Row] = deque()

    def row(self, logits: mx.array, token: mx.array) -> Row:
        """Of one token (1,), drawn from the model's logits (1, vocab)."""
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        logprobs = logprobs[0]
        most = min(self._num_top, logprobs.size)
        if not most:
            return token, logprobs[token], mx.zeros((0,), mx.uint32), mx.zeros((0,))
        top = mx.argpartition(-logprobs, kth=most - 1)[:most]  # a whole vocabulary takes long to sort
        top = top[mx.argsort(-logprobs[top])]
        return token, logprobs[token], top, logprobs[top]

    def add(self, row: Row) -> mx.array:
        """Keep the row of the next token; returns the token (1,), which is computed after its row."""
        token = mx.depends([row[0]], list(row[1:]))[0]
        self._rows.append((token, *row[1:]))
        return token

    def pop(self) -> TokenLogprobs:
        """The oldest row that was not returned yet."""
        values: list[Any] = [array.tolist() for array in self._rows.popleft()]
        (token,), (logprob,), top, theirs = values
        return TokenLogprobs(token, logprob, tuple(zip(top, theirs, strict=True)))
