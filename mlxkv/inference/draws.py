"""Draws: the tokens of one reply, drawn from logits.

The n-th token of a reply is drawn with its n-th random key, whatever was drafted, so that drafting changes no text at
any seed. With a seed these are the keys that mlx-lm's loop uses. Evaluates nothing, but waits for each token where a
schema is followed. On the MLX thread.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxkv.arguments import shown
from mlxkv.errors import ConfigError
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.logprobs import LogprobRows, Row
from mlxkv.inference.reasoning_cut import ReasoningCut
from mlxkv.inference.sampling import SamplingParams, reply_key
from mlxkv.inference.schema import Constraint

_SKIPPED_AT_ONCE = 256  # keys of one evaluation
_NONE = 2**32 - 1  # the id of no token
_ALL = 1 << 40  # tokens

Keys = list[mx.array]  # of one token


class Draws:
    """Draws the tokens of one reply.

    Args:
        seen: the prompt's ids, for penalties.
        num_before: tokens that a reply to continue has already.
        hooks: its schema is not looked at: see `constraint`.
        constraint: what the tokens must follow.
        logprobs: collects the log-probabilities of the tokens.
        spared: ids that XTC never excludes.
        cut: ends the reasoning; what it says is drawn.

    Attributes:
        is_argmax: the likeliest token is drawn, whatever came before.
    """

    def __init__(
        self,
        params: SamplingParams,
        seen: Sequence[int],
        num_before: int = 0,
        *,
        hooks: Hooks | None = None,
        constraint: Constraint | None = None,
        logprobs: LogprobRows | None = None,
        spared: Sequence[int] = (),
        cut: ReasoningCut | None = None,
    ) -> None:
        hooks = hooks or Hooks()
        self.cut = cut
        self._params, self._constraint, self._logprobs = params, constraint, logprobs
        self._processors, self._hooked = params.make_logits_processors(), hooks.processors
        self._sample, self._sampler = params.make_sampler(spared), hooks.sampler
        self._num_keys = params.num_keys if hooks.sampler is None else 0
        # Greedy sampling needs no normalised probabilities.
        is_plain = not (self._processors or self._hooked or hooks.sampler or constraint or logprobs)
        self.is_argmax = params.is_greedy and is_plain
        # An imported cache's tokens have no ids.
        self._most_told = _ALL if self._hooked else params.num_penalised
        told = [i for i in seen[len(seen) - min(self._most_told, len(seen)) :] if i >= 0]
        self._tokens = mx.array(told, mx.int32)
        self._key = reply_key(params.seed) if self._num_keys else mx.zeros((2,), mx.uint32)
        if params.seed is not None:
            for n in range(1, self._num_keys * num_before + 1):
                self._key = mx.random.split(self._key)[0]
                if n % _SKIPPED_AT_ONCE == 0:
                    mx.eval(self._key)
        self._keys: Keys = []  # after each position of the last `all`
        self._rows: list[Row] = []  # of each position of the last `all`
        self._is_begun = False
        self._vocab: int | None = None  # of the logits, for a draft model

    @property
    def can_draft(self) -> bool:
        """Whether `all` draws what `next` would, here: what a caller's functions remember cannot be taken back."""
        if self._hooked or self._sampler is not None or (self.cut is not None and not self.cut.can_draft):
            return False
        return self._constraint is None or self._constraint.is_answer

    def ahead(self, vocab: int) -> Draws:
        """The draws of a draft model from here on, which change nothing here: where its probabilities are the same, so
        are its tokens, since the random keys are.

        Args:
            vocab: the size of the model's logits; a draft model's are cut or filled up to it, as the random numbers of
                a key depend on how many there are.
        """
        twin = copy.copy(self)
        twin._constraint = twin._logprobs = twin.cut = (
            None  # what they hold cannot be copied; the reply's own checks the draft
        )
        twin._vocab = vocab
        return twin

    def next(self, logits: mx.array, y: mx.array) -> mx.array:
        """The id (1,) that follows `y` (1,), from its logits (1, vocab)."""
        if self._vocab is not None:
            missing = self._vocab - logits.shape[-1]
            logits = mx.pad(logits[:, : self._vocab], [(0, 0), (0, max(missing, 0))], constant_values=-mx.inf)
        forced = None if self.cut is None else self.cut.next(y)
        if self.is_argmax:
            return mx.argmax(logits, axis=-1) if forced is None else mx.array([forced], mx.uint32)
        if self._constraint is not None and self._is_begun:
            self._constraint.follow(int(y.item()))  # type: ignore[arg-type]
            mx.async_eval(logits)  # while the mask is computed
        self._is_begun = True
        if self._most_told:
            self._tell(y)
        self._key, keys = self._split(self._key)
        drawn, row = self._drawn(logits, self._tokens, keys, forced)
        return drawn if row is None or self._logprobs is None else self._logprobs.add(row)

    def all(self, logits: mx.array, ids: Sequence[int]) -> mx.array:
        """The ids (S,) that would follow each of `ids`, from the logits (S, vocab) of a call that was fed them.

        Nothing but the first of `ids` counts until `keep` says how many do. After one of `ids` that a schema does not
        allow, no id of a token follows.
        """
        if self.is_argmax:
            return mx.argmax(logits, axis=-1)
        self._keys, self._rows = [], []
        following, keys = self._key, list[Keys]()
        for _ in ids:
            following, of_token = self._split(following)
            self._keys.append(following)
            keys.append(of_token)
        if not (self._most_told or self._constraint or self._logprobs):
            return self._sample(_normalised(self._biased(logits)), keys if self._num_keys else None)
        told = mx.concatenate([self._tokens, mx.array(list(ids), mx.int32)])
        first, rows = self._tokens.size + 1, list[mx.array]()
        for i in range(len(ids)):
            if self._constraint is not None and not self._may_follow(i, ids[i]):
                break
            before = told[max(first + i - self._most_told, 0) : first + i]
            drawn, row = self._drawn(logits[i : i + 1], before, keys[i])
            rows.append(drawn)
            self._rows += [row] if row is not None else []
        if self._constraint is not None:
            self._constraint.take_back()
        none = mx.full((len(ids) - len(rows),), _NONE, mx.uint32)
        return mx.concatenate([*rows, none])

    def keep(self, ids: Sequence[int]) -> None:
        """The first `len(ids)` ids of the last `all` are drawn, and `ids` are the tokens they followed."""
        if self.cut is not None:
            self.cut.keep(ids)
        if self._keys:
            self._key = self._keys[len(ids) - 1]
        if self._most_told:
            self._tell(mx.array(list(ids), mx.int32))
        if self._constraint is not None:
            for token in ids[1:]:
                self._constraint.follow(token)
        if self._logprobs is not None:
            for row in self._rows[: len(ids)]:
                self._logprobs.add(row)

    def _may_follow(self, index: int, token: int) -> bool:
        """Whether the schema allows the token number `index` of a draft; the first one is no guess."""
        assert self._constraint is not None
        if index == 0:
            self._constraint.follow(token)
            return True
        return self._constraint.is_answer and self._constraint.tries(token)

    def _tell(self, ids: mx.array) -> None:
        tokens = mx.concatenate([self._tokens, ids.astype(mx.int32)])
        self._tokens = tokens[max(tokens.size - self._most_told, 0) :]

    def _split(self, key: mx.array) -> tuple[mx.array, Keys]:
        """The key that follows, and those of one token."""
        keys: Keys = []
        for _ in range(self._num_keys):
            key, one = mx.random.split(key)
            keys.append(one)
        return key, keys

    def _biased(self, logits: mx.array, tokens: mx.array | None = None) -> mx.array:
        """Logits after penalties and `logit_bias`."""
        if self._processors:
            self._params.check_ids(logits.shape[-1])
            tokens = mx.zeros((0,), mx.int32) if tokens is None else tokens
            for processor in self._processors:
                logits = processor(tokens, logits)
        return logits

    def _drawn(
        self, logits: mx.array, tokens: mx.array, keys: Keys, forced: int | None = None
    ) -> tuple[mx.array, Row | None]:
        """The id (1,) drawn after `tokens`, from logits (1, vocab), or `forced`, and its log-probabilities."""
        raw = None if self._logprobs is None else logits.astype(mx.float32)  # processors may write in place
        logits = self._biased(logits, tokens)
        for hook in self._hooked:
            logits = _checked(hook, hook(tokens, logits), logits.shape)
        if self._constraint is not None:
            logits = self._constraint.masked(logits)
        logprobs = _normalised(logits)
        if forced is not None:
            drawn = mx.array([forced], mx.uint32)
        elif self._sampler is None:
            drawn = self._sample(logprobs, [keys] if keys else None)
        else:
            drawn = _token(self._sampler(logprobs))
        return drawn, None if self._logprobs is None or raw is None else self._logprobs.row(raw, drawn)


def _normalised(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _checked(hook: Any, logits: Any, shape: tuple[int, ...]) -> mx.array:
    """What a processor returned.

    Raises:
        ConfigError: it is not an array of logits.
    """
    if not isinstance(logits, mx.array) or logits.shape != shape:
        raise ConfigError(
            f"The processor {_named(hook)} returned {shown(logits)}; it must return logits of shape {shape}."
        )
    return logits


def _token(found: Any) -> mx.array:
    """What a sampler returned, as an id (1,).

    Raises:
        ConfigError: it is not one id.
    """
    if isinstance(found, int) and not isinstance(found, bool):
        found = mx.array([found])
    if not isinstance(found, mx.array) or found.size != 1 or not mx.issubdtype(found.dtype, mx.integer):
        raise ConfigError(f"`sampler` returned {shown(found)}; it must return one token id, as an array of shape (1,).")
    return found.reshape(1)


def _named(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__
