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
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.distributed.cache_peers import CachePeers, SharedLayers
from mlxkv.distributed.link import Link, Op, shielded
from mlxkv.errors import CacheError

_ANOTHER = "This model is split between machines; use caches from its own methods."


class LeadModel:
    """Callable as the mlx-lm model that it wraps, on caches that every process has."""

    def __init__(self, model: Any, link: Link) -> None:
        self._model, self._link = model, link
        self._mlxkv_traits = traits_of(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, ids: mx.array, cache: Sequence[Any]) -> mx.array:
        """Logits (1, S, vocab) of ids (1, S).

        Raises:
            CacheError: not a cache of all machines. MachineError: one is gone.
        """
        return self._told(ids, cache, Op.STEP if ids.shape[1] == 1 else Op.VERIFY)

    def rows_only(self, ids: mx.array, cache: Sequence[Any]) -> mx.array:
        """The same, where the caller evaluates the rows and drops the logits."""
        return self._told(ids, cache, Op.STEP if ids.shape[1] == 1 else Op.FEED)

    def _told(self, ids: mx.array, cache: Sequence[Any], op: Op) -> mx.array:
        if not isinstance(cache, SharedLayers):
            raise CacheError(_ANOTHER)
        peers = cache.peers
        with shielded():
            if op == Op.STEP:
                self._link.send_step(peers.number, ids[0])
            else:
                self._link.send(op, peers.number, ids=ids[0].tolist())  # type: ignore[arg-type]
            if op != Op.VERIFY:
                peers.logged_by_others(ids.shape[1])
            logits = self._model(ids, cache=cache)
            self._link.expect(lambda: [layer.state for layer in cache] if op == Op.FEED else logits)
        return logits

    @contextmanager
    def running(self, cache: PromptCache, *, compares: bool = False) -> Iterator[None]:
        """In here the model is called on `cache`. At the end the others rest.

        Args:
            compares: compare the logs of all processes first.

        Raises:
            CacheError: not a cache of all machines. MachineError: one is gone, or has another log.
        """
        if not isinstance(cache.peers, CachePeers):
            raise CacheError(_ANOTHER)
        with self._link.held():
            if compares:
                cache.peers.compare()
            yield
