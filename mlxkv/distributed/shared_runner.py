"""SharedRunner: rank 0's ModelRunner of a model that is split between processes. On the MLX thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import mlx.core as mx

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.distributed.lead_model import LeadModel
from mlxkv.distributed.link import Link
from mlxkv.distributed.shared_cache import SharedCache
from mlxkv.errors import CacheError
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget


class SharedRunner(ModelRunner):
    """Runs the model on all machines. A lost connection ends a reply with a MachineError."""

    def __init__(self, model: Any, chunk: int | None, budget: Budget, link: Link) -> None:
        super().__init__(model, chunk, budget)
        self.model = LeadModel(model, link)
        self._link, self._is_scoring = link, False

    def prefill(self, *args: Any, **kwargs: Any) -> Iterator[int]:
        return self._connected(super().prefill(*args, **kwargs))

    def decode(self, cache: PromptCache, *args: Any, **kwargs: Any) -> Generator[int]:
        if not isinstance(cache, SharedCache):
            raise CacheError("This model is split between machines; use caches from its own methods.")
        cache.compare()
        yield from self._connected(super().decode(cache, *args, **kwargs))

    def score(self, cache: PromptCache, ids: Sequence[int]) -> mx.array:
        self._is_scoring = True
        try:
            return super().score(cache, ids)
        except RuntimeError as error:
            raise self._link.lost(error) from error
        finally:
            self._is_scoring = False
            self._link.rest()

    def _feed(self, cache: PromptCache, ids: Sequence[int], done: int, most: int) -> tuple[int, mx.array]:
        if self._is_scoring:  # the logits are used
            return super()._feed(cache, ids, done, most)
        with self.model.rows_only():
            return super()._feed(cache, ids, done, most)

    def _connected(self, steps: Iterator[int]) -> Generator[int]:
        try:
            yield from steps
        except RuntimeError as error:  # how MLX reports a lost connection
            raise self._link.lost(error) from error
        finally:
            self._link.rest()
