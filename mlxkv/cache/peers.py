"""Peers: where a model is split between machines, the caches of the other processes, with their parts of the same rows.

A PromptCache that has peers tells them of each change, and they make it too. `distributed/cache_peers.py` implements
this. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache


@dataclass(frozen=True)
class SessionKey:
    """A session to other stores: the id of the `store` that has it, its own id, and those of the sessions that it was
    forked from, nearest first."""

    store: str
    lineage: tuple[str, ...]


Agree = Callable[[int], Sequence[int]]
"""Tells a number to all processes, and returns that of each; all call it at the same point."""


class Peers(Protocol):
    """What a cache tells the others. Methods may raise MachineError: one of them is gone."""

    @property
    def names(self) -> Sequence[str]:
        """Of the machines, in the order of the numbers of `Agree`."""
        ...

    def check(self) -> None:
        """Raises MachineError: one is known to be gone."""
        ...

    def told(self, name: str, a: int = 0, b: int = 0) -> AbstractContextManager[None]:
        """Let them change in the way of the method `name`, whose arguments are numbers, and change this cache in the
        block. What the block calls is part of the same change."""
        ...

    def fed(self, ids: Sequence[int]) -> None:
        """Let them log the tokens that follow, unless they have with their call of the model."""
        ...

    def fork(self, fork: PromptCache) -> None:
        """Let them fork, and give `fork` peers of its own."""
        ...

    def saving(
        self, session: SessionKey, num_tokens: int, occasion: str, resume_at: int
    ) -> AbstractContextManager[list[str]]:
        """Let them save their rows of the first tokens, beside what the block saves here. At its end the list has a
        sentence of each that could not. `occasion`, `resume_at`: see `SessionStore.save_kv`."""
        ...

    def restoring(
        self, session: SessionKey | None, ids: Sequence[int], held: int, prefill_tps: float | None
    ) -> AbstractContextManager[Agree]:
        """Let them restore rows of `ids` as the block does, beyond the `held` tokens of the cache. `prefill_tps`: see
        `SessionStore.set_prefill_speed`; None: it was not measured."""
        ...
