"""Scores: how probable a text is after what a prompt cache holds, and which of several is the most probable.

On token ids, which the model decides; `ModelRunner.score` computes. Prompt caches are not changed. On the MLX thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from mlxkv.arguments import shown, text, wrong_type
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import CacheError, ConfigError, PromptError
from mlxkv.inference.runner import ModelRunner
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import common_prefix

Normalize = Literal["none", "tokens", "characters"]
_PER: Mapping[str, Callable[[Score, str], int]] = {
    "none": lambda score, option: 1,
    "tokens": lambda score, option: score.num_tokens,
    "characters": lambda score, option: len(option),
}


@dataclass(frozen=True)
class Score:
    """How probable a text is, by the model's own distribution: no temperature, no penalties.

    Attributes:
        tokens: the ids of the text.
        logprobs: of each of them, given all before it: natural logarithms.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """The natural logarithm of the text's probability, the sum of `logprobs`."""
        return math.fsum(self.logprobs)

    @property
    def num_tokens(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @property
    def perplexity(self) -> float:
        """The inverse of the mean probability of a token (the geometric mean)."""
        return math.exp(-self.logprob / self.num_tokens)


@dataclass(frozen=True)
class Choice:
    """The most probable of several texts.

    Attributes:
        option: it.
        index: its index.
        scores: of all, in their order.
    """

    option: str
    index: int
    scores: tuple[Score, ...]


class Scorer:
    """Scores texts that follow what a cache holds; what two of them share is computed once.

    Args:
        cache: is not changed.
    """

    def __init__(self, runner: ModelRunner, cache: PromptCache) -> None:
        self._runner, self._source = runner, cache
        self._work: PromptCache | None = None  # holds the text that was scored last
        self._ids: Sequence[int] = ()
        self._logprobs: list[float] = []

    def steps(self, texts: Sequence[Sequence[int]]) -> Generator[tuple[int, int], None, list[Score]]:
        """The score of each text, in their order; yields the number of tokens scored so far, and of all, after each
        chunk.

        Raises:
            PromptError, OutOfMemoryError, CacheError: see `_score`.
        """
        found, done, total = dict[int, Score](), 0, sum(map(len, texts))
        for i in sorted(range(len(texts)), key=lambda i: list(texts[i])):  # neighbours share the most
            steps = self._score(texts[i])
            while True:
                try:
                    yield done + next(steps), total
                except StopIteration as end:
                    found[i], done = end.value, done + len(texts[i])
                    break
        return [found[i] for i in range(len(texts))]

    def _score(self, ids: Sequence[int]) -> Generator[int, None, Score]:
        """The score of what `ids` have beyond the cache; of the first token of all there is no probability. Yields the
        number of ids that are done.

        Raises:
            PromptError: there is nothing to score. OutOfMemoryError, CacheError: as for `ModelRunner.prefill`.
        """
        start = max(common_prefix(self._source.log, ids), 1)
        if len(ids) <= start:
            raise PromptError(
                "There is nothing to score: the first token of a text has no probability; give more text, or a `cache`."
            )
        if self._source.log and self._source.log[-1] < 0:
            raise CacheError(
                "The last token of this imported cache is unknown, and so is how probable a text is after it; generate "
                "a token with it first."
            )
        known = self._logprobs[: max(common_prefix(self._ids, ids) - start, 0)]
        if (at := start + len(known)) < len(ids):
            work, cached = self._begun(ids, at)
            self._runner.check(work, len(ids) - cached)
            found: list[float] = []
            for scores in self._runner.score_chunks(work, ids[cached:]):
                found += cast(list[float], scores.tolist())
                yield cached + len(found) + 1
            known = [*known, *found[at - cached - 1 :]]
        self._ids, self._logprobs = ids, known
        return Score(tuple(ids[start:]), tuple(known))

    def _begun(self, ids: Sequence[int], at: int) -> tuple[PromptCache, int]:
        """A cache that holds as many of the tokens before number `at` as can be, but the last one; and how many."""

        def num_held(cache: PromptCache) -> int:
            return cache.rewind_target(min(common_prefix(cache.log, ids), at - 1))

        if self._work is None or num_held(self._work) < num_held(self._source):
            self._work = self._source.fork()
        return self._work, self._work.reuse(ids[:at]).cached


def check_options(name: str, value: Any) -> list[str]:
    """The rule of an argument: several texts, none of them empty."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        wrong_type(name, value, "a list of texts")
    found = [well_formed(text(f"{name}[{i}]", option)) for i, option in enumerate(value)]
    if not found or not all(found):
        raise ConfigError(f"`{name}` is {shown(value)}; it must have at least one text, and none that is empty.")
    return found


def check_normalize(name: str, value: Any) -> str:
    """The rule of an argument: how scores of different lengths are compared."""
    if value not in _PER:
        raise ConfigError(f"`{name}` is {shown(value)}; it must be {', '.join(map(repr, _PER))}.")
    return value


def most_probable(options: Sequence[str], scores: Sequence[Score], normalize: str) -> Choice:
    """The option with the highest log-probability, divided as `normalize` says; the first of equals."""
    per = _PER[normalize]
    index = max(range(len(options)), key=lambda i: scores[i].logprob / per(scores[i], options[i]))
    return Choice(options[index], index, tuple(scores))
