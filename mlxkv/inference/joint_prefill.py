"""JointPrefill: prompts that begin at one position, prefilled in one model call for a chunk of each.

They stand side by side in mlx-lm's batch caches, without padding: a call has as many tokens of each as the shortest
still needs; a prompt that is done leaves with its rows, and the others go on. So each has the rows that it has alone.
Knows no text; `scheduler` chooses the prompts, `batch` decodes them. On the MLX thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlxkv.inference.batch_check import merge
from mlxkv.inference.chunk_size import ChunkSize


class Rows(Protocol):
    """The cache of one prompt; see `RowCache`."""

    layers: list[Any]

    def put_rows(self, ids: Sequence[int], layers: Sequence[Any]) -> None: ...


@dataclass(eq=False)
class Member:
    """One prompt: the `ids` to prefill, `done` of them so far; `cache` gets its rows once it has all."""

    cache: Rows
    ids: Sequence[int]
    done: int = 0


class JointPrefill:
    """Prefills several prompts; all are added before the first step.

    Args:
        model: an mlx-lm model whose caches can be merged.
        start: the position of their first tokens.
        chunk_size: of all prompts together.
        clock: seconds.
    """

    def __init__(
        self, model: Any, start: int, chunk_size: ChunkSize, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._model, self._chunk_size, self._clock = model, chunk_size, clock
        self.start = self._position = start
        self._members: list[Member] = []  # in the order of the batch caches
        self._layers: list[Any] = []

    def add(self, cache: Rows, ids: Sequence[int]) -> Member:
        """A prompt to prefill, which is not empty; `cache` holds what is before it."""
        self._members.append(member := Member(cache, ids))
        return member

    def drop(self, member: Member) -> None:
        """Leave a prompt out from now on; it may have left already."""
        self._keep([other is not member for other in self._members])

    def step(self) -> None:
        """Prefill the next chunk of every prompt; those that are done get their rows and leave."""
        members, begun = self._members, self._clock()
        if not self._layers:
            self._layers = merge([member.cache.layers for member in members])
            for layer in self._layers:
                layer.finalize()  # no padding, also where there are no rows yet
        most = self._chunk_size.at(self._position) // len(members)
        num_tokens = min(max(most, 1), *(len(member.ids) - member.done for member in members))
        parts = [list(member.ids[member.done : member.done + num_tokens]) for member in members]
        self._model(mx.array(parts), cache=self._layers)  # its logits, which refer to the rows, are dropped
        mx.eval([layer.state for layer in self._layers])
        self._chunk_size.took(num_tokens * len(members), self._clock() - begun)
        self._position += num_tokens
        for i, member in enumerate(members):
            member.done += num_tokens
            if member.done == len(member.ids):
                member.cache.put_rows(member.ids, [layer.extract(i) for layer in self._layers])
        self._keep([member.done < len(member.ids) for member in members])

    def _keep(self, is_kept: Sequence[bool]) -> None:
        if all(is_kept):
            return
        kept = [i for i, keep in enumerate(is_kept) if keep]
        self._members = [self._members[i] for i in kept]
        if not kept:
            self._layers = []
            mx.clear_cache()
        for layer in self._layers:
            layer.filter(kept)
