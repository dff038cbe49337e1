"""Hooks: what a caller adds to the sampling of one reply: functions of mlx-lm's kinds, and a grammar.

They stand beside SamplingParams, which are numbers that can be saved. `draws.py` calls them, `schema.py` compiles
schemas. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxkv.arguments import shown
from mlxkv.errors import ArgumentError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxkv.inference.schema import Grammar, Grammars

HOOKS = ("processors", "sampler", "schema")
"""The keywords of methods that sample, beside the fields of SamplingParams."""


@dataclass(frozen=True)
class Hooks:
    """What a caller adds to the sampling of one reply.

    Attributes:
        processors: functions of (all token ids so far (tokens,), logits (1, vocab)) that return changed logits, as
            mlx-lm's; called after penalties and `logit_bias`, in this order.
        sampler: a function of log-probabilities (1, vocab) that returns a token id (1,), as mlx-lm's, in place of
            temperature and all that filters.
        schema: what the answer must be; it has the last word on what the sampler sees.
    """

    processors: tuple[Callable[[mx.array, mx.array], mx.array], ...] = ()
    sampler: Callable[[mx.array], mx.array] | None = None
    schema: Grammar | None = None

    @property
    def has_functions(self) -> bool:
        """Whether functions of the caller's are called, which may raise anything."""
        return bool(self.processors) or self.sampler is not None


def take_hooks(given: MutableMapping[str, Any], grammars: Grammars) -> Hooks:
    """Take the hooks out of the keywords `given`.

    Raises:
        ArgumentError: one is not callable, or no schema. ConfigError: see `Grammars.compile`.
    """
    processors, sampler, schema = (given.pop(name, None) for name in HOOKS)
    function: Any = sampler
    if sampler is not None and not callable(sampler):
        raise ArgumentError(f"`sampler` is {shown(sampler)}; it must be a function of log-probabilities.")
    grammar = None if schema is None else grammars.compile(schema)
    return Hooks(_functions(processors), function, grammar)


def _functions(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if wrong := next((value for value in found if not callable(value)), None):
        raise ArgumentError(f"`processors` has {shown(wrong)}; it must be a list of functions of (token ids, logits).")
    return found
