"""LeadModel: the model as rank 0's loops call it: each call is told to the other processes before it is begun.

A token that is still being computed is sent as it is, so that decoding one step ahead waits for nothing. On the MLX
thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlxkv.cache.planning.traits import traits_of
from mlxkv.distributed.link import Link, Op, shielded
from mlxkv.distributed.shared_cache import SharedLayers
from mlxkv.errors import CacheError


class LeadModel:
    """Callable as the mlx-lm model that it wraps, on caches that every process has."""

    def __init__(self, model: Any, link: Link) -> None:
        self._model, self._link, self._has_rows_only = model, link, False
        self._mlxkv_traits = traits_of(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextmanager
    def rows_only(self) -> Iterator[None]:
        """In here the caller evaluates the rows and drops the logits."""
        self._has_rows_only = True
        try:
            yield
        finally:
            self._has_rows_only = False

    def __call__(self, ids: mx.array, cache: Sequence[Any]) -> mx.array:
        """Logits (1, S, vocab) of ids (1, S).

        Raises:
            CacheError: not a cache of all machines. MachineError: one is gone.
        """
        if not isinstance(cache, SharedLayers):
            raise CacheError("This model is split between machines; use caches from its own methods.")
        shared, n = cache.owner, ids.shape[1]
        with shielded():
            if n == 1:
                self._link.send_step(shared.number, ids[0])
                shared.logged_by_others(1)
            elif self._has_rows_only:
                self._link.send(Op.FEED, shared.number, ids=ids[0].tolist())  # type: ignore[arg-type]
                shared.logged_by_others(n)
            else:
                self._link.send(Op.VERIFY, shared.number, ids=ids[0].tolist())  # type: ignore[arg-type]
            logits = self._model(ids, cache=cache)
            if self._has_rows_only and n > 1:
                self._link.expect(lambda: [layer.state for layer in cache])
            else:
                self._link.expect(lambda: logits)
        return logits
