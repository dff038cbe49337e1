"""Decoding: the loop that feeds a model the tokens it draws, one step ahead of those it yields, or several at once.

Where a draft is expected to pay, the loop waits for a token and feeds it with the draft in one call, which draws the
token after each; the draft counts up to its first token that was not drawn, and the rest is taken back. Keeps the
cache's token log equal to the cache's rows, however it ends. Knows no text and no disk; `runner.py` checks lengths and
memory before. On the MLX thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import mlx.core as mx

from mlxkv.cache.prompt_cache import Mark, PromptCache
from mlxkv.cache.rings.in_place import InPlace
from mlxkv.inference.drafting.drafts import Drafts
from mlxkv.inference.draws import Draws

_CLEAR_EVERY = 256  # tokens between returns of MLX's free buffers


@dataclass
class DecodeCounts:
    """What one reply took: calls of the model for its tokens, tokens drafted, and those of them that were right."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0


class _Step(Enum):
    """How the token that is waited for came to be computed."""

    FIRST = auto()  # with the end of the prompt
    AHEAD = auto()  # before the token that it follows had arrived
    WAITED = auto()  # after it
    KNOWN = auto()  # with a draft: it has arrived


class Decoder:
    """Decodes one reply; iterate `tokens` once.

    Args:
        drafts: None: nothing is drafted.
        counts: to add to.
        in_place: whether the next step may be evaluated before the token of this one has arrived; its graph is built
            before in any case. None: it may.
        clock: seconds.
    """

    def __init__(
        self,
        model: Any,
        cache: PromptCache,
        draws: Draws,
        drafts: Drafts | None = None,
        counts: DecodeCounts | None = None,
        *,
        in_place: InPlace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model, self._cache, self._draws, self._drafts = model, cache, draws, drafts
        self._counts = counts or DecodeCounts()
        self._in_place = in_place or InPlace(0)
        self._clock = clock
        self._vocab = 0  # of the logits
        self._since = 0.0  # when the last token arrived, and the time since then that the caller took
        self._kind = _Step.FIRST
        self._held: tuple[Mark, Sequence[int], int] | None = None  # tokens fed together, and how many were yielded

    def tokens(self, last: int, most: int) -> Generator[int]:
        """Feed `last`, the end of the prompt, and yield up to `most` drawn ids; see `ModelRunner.decode`."""
        cache = self._cache
        try:
            y = self._step(mx.array([last]))
            cache.advance([last])
            mx.async_eval(y)
            done = 0
            while done < most:
                cleared, is_last = done // _CLEAR_EVERY, done + 1 == most
                token, fed, following = None, [], y
                if self._may_draft(most - done - 2):
                    token = self._arrived(y)
                    fed, following = self._with_draft(token, most - done - 2)
                if not fed and not is_last:
                    is_known = token is not None or self._kind == _Step.KNOWN
                    following = self._step(y)
                    if self._in_place.one_step_ahead or is_known:
                        mx.async_eval(following)
                    token = self._arrived(y) if token is None else token
                    self._kind = _Step.WAITED if is_known else _Step.AHEAD
                    mx.async_eval(following)
                    cache.advance([token])
                for known in fed or [self._arrived(y) if token is None else token]:
                    yield from self._yield(known)
                    done += 1
                self._held = None
                if done // _CLEAR_EVERY > cleared:
                    mx.clear_cache()
                y = following
        except GeneratorExit:  # between two steps
            self._take_back()
            raise
        except BaseException:
            cache.recover()
            raise

    def _step(self, y: mx.array) -> mx.array:
        """One step: token ids (1,) in, drawn ids (1,) out, nothing evaluated."""
        logits = self._model(y[None], cache=self._cache.layers)[:, -1, :]
        self._vocab = logits.shape[-1]
        return self._draws.next(logits, y)

    def _may_draft(self, most: int) -> bool:
        """Whether to wait for the next token, to feed a draft of up to `most` tokens with it."""
        if self._drafts is None or most < 1 or not self._draws.can_draft:
            return False
        return self._kind == _Step.KNOWN or self._drafts.expects(most)

    def _arrived(self, y: mx.array) -> int:
        """The token, once it is there; the gate is told how long it took."""
        token = int(y.item())  # type: ignore[arg-type]
        if self._kind != _Step.KNOWN:
            self._counts.steps += 1
        if self._drafts is None:
            return token
        if self._kind != _Step.KNOWN:
            now = self._clock()
            match self._kind:
                case _Step.AHEAD:
                    self._drafts.gate.plain(now - self._since)
                case _Step.WAITED:
                    self._drafts.gate.waited(now - self._since)
            self._since = now
        self._drafts.arrived(token)
        return token

    def _yield(self, token: int) -> Generator[int]:
        """Yield it; the time until the caller returns does not count as decoding."""
        if self._held is not None:
            mark, fed, yielded = self._held
            self._held = (mark, fed, yielded + 1)
        left = self._clock()
        yield token
        self._since += self._clock() - left

    def _with_draft(self, token: int, most: int) -> tuple[list[int], mx.array]:
        """Feed `token` with a draft of up to `most` tokens: the tokens fed that count, and the one after them (1,).

        Without a draft that pays nothing is fed.
        """
        cache, drafts = self._cache, self._drafts
        assert drafts is not None
        draft = drafts.propose(min(most, cache.num_draftable), self._draws.ahead(self._vocab))
        if not draft:
            return [], mx.array([token])
        mark, ids = cache.mark(), [token, *draft]
        self._counts.steps += 1
        self._counts.drafted += len(draft)
        drawn = self._draws.all(self._model(mx.array([ids]), cache=cache.layers)[0], ids)
        found: Any = drawn.tolist()
        right = next((i for i, token in enumerate(draft) if token != found[i]), len(draft))
        fed = ids[: right + 1]
        self._counts.accepted += right
        if right < len(draft):
            self._feed(cache.take_back(mark, ids, len(fed)))
        cache.advance(fed)
        self._draws.keep(fed)
        now = self._clock()
        drafts.verified(draft, right, now - self._since)
        self._since, self._kind, self._held = now, _Step.KNOWN, (mark, fed, 0)
        return fed, drawn[right : right + 1]

    def _feed(self, ids: Sequence[int]) -> None:
        """Feed again what a recurrent layer's state has not seen."""
        if ids:
            self._counts.steps += 1
            self._model(mx.array([list(ids)]), cache=self._cache.layers)
            mx.eval([layer.state for layer in self._cache.layers])

    def _take_back(self) -> None:
        """Take back the tokens fed together that were not yielded."""
        if self._held is None:
            return
        mark, fed, yielded = self._held
        if yielded == len(fed):
            return
        try:
            again = self._cache.take_back(mark, fed, yielded)
            self._feed(again)
            self._cache.advance(again)
        except BaseException:
            self._cache.recover()
            raise
