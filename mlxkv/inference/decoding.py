"""Decoding: the loop that feeds a model the tokens it samples, one step ahead of those it yields.

Keeps the cache's token log equal to the cache's rows, however it ends. Knows no text and no disk; `runner.py` checks
lengths and memory before. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import mlx.core as mx

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.sampling import PENALISED, SamplingParams

_CLEAR_EVERY = 256  # decode steps between returns of MLX's free buffers


class Decoder:
    """Decodes one reply; iterate `tokens` once.

    Attributes:
        one_step_ahead: evaluate the next step before the token of this one has arrived; its graph is built before in
            any case.
    """

    def __init__(
        self, model: Any, cache: PromptCache, params: SamplingParams, seen: Sequence[int], *, one_step_ahead: bool
    ) -> None:
        self._model, self._cache, self._params = model, cache, params
        self._step = self._stepper(seen)
        self.one_step_ahead = one_step_ahead

    def tokens(self, last: int, most: int) -> Generator[int]:
        """Feed `last`, the end of the prompt, and yield up to `most` sampled ids; see `ModelRunner.decode`."""
        cache, step = self._cache, self._step
        try:
            y = step(mx.array([last]))
            cache.advance([last])
            mx.async_eval(y)
            for n in range(1, most + 1):
                following = y
                if n < most:
                    following = step(y)
                    if self.one_step_ahead:
                        mx.async_eval(following)
                token = int(y.item())  # type: ignore[arg-type]
                if n < most:
                    mx.async_eval(following)
                    cache.advance([token])
                yield token
                if n % _CLEAR_EVERY == 0:
                    mx.clear_cache()
                y = following
        except GeneratorExit:  # between two steps: nothing to recover
            raise
        except BaseException:
            cache.recover()
            raise

    def _stepper(self, seen: Sequence[int]) -> Callable[[mx.array], mx.array]:
        """One decode step: token ids (1,) in, sampled ids (1,) out, nothing evaluated."""
        model, layers, params = self._model, self._cache.layers, self._params
        processors = params.make_logits_processors()
        if params.temperature == 0 and not processors:
            # Greedy sampling needs no normalised probabilities.
            return lambda y: mx.argmax(model(y[None], cache=layers)[:, -1, :], axis=-1)
        sampler = params.make_sampler()
        # An imported cache's tokens have no ids.
        tokens = mx.array([i for i in seen[-PENALISED:] if i >= 0] if processors else [], mx.int32)

        def step(y: mx.array) -> mx.array:
            nonlocal tokens
            logits = model(y[None], cache=layers)[:, -1, :]
            if processors:
                tokens = mx.concatenate([tokens, y.astype(mx.int32)])[-PENALISED:]
                for processor in processors:
                    logits = processor(tokens, logits)
            return sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

        return step
