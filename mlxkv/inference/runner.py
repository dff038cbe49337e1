"""ModelRunner: prefill and decode on token ids. Knows no text and no disk.

Prefill runs in chunks, cut at the ring's block boundaries once its window is full; `decoding.py` has the decode loop.
Both keep the cache's token log equal to the cache's rows, however they end. On the MLX thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import mlx.core as mx

from mlxkv.cache.planning.traits import has_equal_calls
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.in_place import InPlace
from mlxkv.inference.chunk_size import ChunkSize
from mlxkv.inference.decoding import DecodeCounts, Decoder
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.draws import Draws
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import SIZES, Budget
from mlxkv.token_ids import TokenIds

PREFILL_CHUNK = 512  # where nothing is measured
_CLEAR_EVERY_PREFILL = 2048  # prefilled tokens between returns of MLX's free buffers


class Machines(Protocol):
    """The processes that a model is split between; `distributed/lead_model.py` implements it."""

    def running(self, cache: PromptCache, *, compares: bool = False) -> AbstractContextManager[None]:
        """The model is called on `cache` in the block, after a comparison of all processes' logs if `compares`.

        Raises:
            MachineError: one is gone, or has another log.
        """
        ...


class ModelRunner:
    """Runs one mlx-lm model.

    Args:
        model: called as `model(ids (1, S), cache=layers) -> logits (1, S, vocab)`; by its `rows_only`, if it has one,
            where the logits are dropped.
        chunk: most tokens of one prefill call; None: as many as take less than a second, by measurement (`ChunkSize`).
            A fixed number makes every number of a prefill repeatable: sums of other lengths are rounded differently.
        budget: memory limits; by the predicted peak a prompt is prefilled in smaller chunks, or refused.

    Attributes:
        drafting: what drafts for replies; None: nothing.
    """

    def __init__(
        self,
        model: Any,
        chunk: int | None = PREFILL_CHUNK,
        budget: Budget | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        machines: Machines | None = None,
    ) -> None:
        """`clock`: seconds; see `ChunkSize`. `machines`: None: this process has the whole model."""
        self.model = model
        self._machines = machines
        self.chunk_size = ChunkSize(chunk)
        self.drafting: Drafting | None = None
        self._clock = clock
        self._in_place: dict[Hashable, InPlace] = {}
        self._budget = budget or Budget(model, limit=0)

    def prefill(
        self,
        cache: PromptCache,
        ids: Sequence[int],
        cancelled: Callable[[], bool] = bool,
        checkpoints: Collection[int] = (),
        prefixes: Collection[int] = (),
    ) -> Iterator[int]:
        """Prefill `ids`; yields the number done after each chunk. Stops between chunks once cancelled.

        The logits are not computed: keep the last token of a prompt for `decode`.

        Args:
            checkpoints: positions in the cache to rewind to later; only recurrent layers need them.
            prefixes: those at the end of a chat's prefix, see `PromptCache.checkpoint`.

        Raises:
            OutOfMemoryError: the predicted peak, or a fork's copy of its buffers, does not fit. PromptError: `ids` end
                beyond learned positions. Either way the cache is unchanged.
        """
        fits = self.check_prefill(cache, len(ids))
        stops = {*checkpoints, *prefixes} if cache.checkpoints.is_needed else set[int]()
        done, cleared = 0, 0
        with self._running(cache):
            while done < len(ids) and not cancelled():
                # Drop the logits: not evaluated, they refer to the last layer's rows, which the next write would copy.
                to_stop = min((stop - cache.offset for stop in stops if stop > cache.offset), default=fits)
                most, begun = min(self.chunk_size.at(cache.num_attended), fits, to_stop), self._clock()
                n = self._measured_feed(cache, ids, done, most)
                self.chunk_size.took(n, self._clock() - begun)
                done += n
                if cache.offset in stops:
                    cache.checkpoint(is_prefix=cache.offset in prefixes)
                if done - cleared >= _CLEAR_EVERY_PREFILL:
                    mx.clear_cache()
                    cleared = done
                yield done
        mx.clear_cache()

    def _running(self, cache: PromptCache, *, compares: bool = False) -> AbstractContextManager[None]:
        """See Machines.running."""
        return nullcontext() if self._machines is None else self._machines.running(cache, compares=compares)

    def check_prefill(self, cache: PromptCache, num_tokens: int) -> int:
        """The most tokens of one call of such a prefill.

        Raises:
            OutOfMemoryError, PromptError: as for `prefill`.
        """
        cache.check_length(cache.offset + num_tokens)
        self.check(cache, num_tokens)
        return self._max_chunk(cache, num_tokens) if num_tokens else 0

    def score(self, cache: PromptCache, ids: Sequence[int]) -> mx.array:
        """Prefill `ids`; the log-probability of each id but the first, given those before it: (len(ids) - 1,), float32.

        Raises:
            PromptError: they end beyond learned positions; the cache is unchanged.
        """
        scores = [*self.score_chunks(cache, ids)]
        return mx.concatenate(scores) if scores else mx.zeros((0,))

    def score_chunks(self, cache: PromptCache, ids: Sequence[int]) -> Iterator[mx.array]:
        """`score` a chunk at a time; yields the log-probabilities of each, evaluated."""
        cache.check_length(cache.offset + len(ids))
        done = 0
        with self._running(cache):
            while done < len(ids):
                n, logits = self._feed(cache, ids, done, self.chunk_size.fixed or PREFILL_CHUNK, self.model)
                following = mx.array(list(ids[done + 1 : done + n + 1]))
                logits = logits[0, : following.size].astype(mx.float32)
                done += n
                if following.size:
                    chosen = mx.take_along_axis(logits, following[:, None], axis=-1)[:, 0]
                    scores = chosen - mx.logsumexp(logits, axis=-1)  # (n,), without an array of all probabilities
                    mx.eval(scores)
                    del logits, chosen  # while others compute, they would take memory
                    yield scores

    def check(self, cache: PromptCache, num_tokens: int = 1) -> None:
        """Check that there is memory for what a fork copies and grows by when it is fed `num_tokens`.

        Raises:
            OutOfMemoryError: there is none; the cache is unchanged.
        """
        if nbytes := cache.growth(num_tokens):
            self._budget.check_copy(nbytes, mx.get_active_memory())

    def make_room(self, cache: PromptCache, num_tokens: int) -> None:
        """`PromptCache.make_room`, if there is memory for it.

        Raises:
            OutOfMemoryError: see `check`.
        """
        if cache.needs_room(num_tokens):
            self.check(cache, num_tokens)
            try:
                cache.make_room(num_tokens)
            except BaseException:  # interrupted while blocks move
                cache.recover()
                raise

    def _max_chunk(self, cache: PromptCache, num_new: int) -> int:
        """The most tokens of one call that fit in memory."""
        # The budget counts the whole window: without what is held already, and what a fork does not need.
        states, to_come = cache.nbytes - cache.ring_nbytes, cache.growth(num_new) + cache.unallocated_nbytes
        used = mx.get_active_memory() - states - (cache.plan.nbytes - to_come)
        most = self.chunk_size.most
        return min(most, self._budget.chunk(cache.plan, used, cache.offset + num_new, num_new, most))

    def _measured_feed(self, cache: PromptCache, ids: Sequence[int], done: int, most: int) -> int:
        """`_feed`, and correct the budget if its peak is this process's highest so far."""
        before, peak = mx.get_active_memory(), mx.get_peak_memory()
        allocates = not cache.offset or cache.growth(most) > 0  # buffers, or a fork's copy of them
        n, _ = self._feed(cache, ids, done, most, getattr(self.model, "rows_only", self.model))
        if not allocates and n in SIZES and mx.get_peak_memory() > peak:
            self._budget.record_peak(cache.plan, n, cache.offset, mx.get_peak_memory() - before)
        return n

    def _feed(self, cache: PromptCache, ids: Sequence[int], done: int, most: int, model: Any) -> tuple[int, mx.array]:
        """Prefill one chunk from ids[done] on, within a block: its length, and its logits, not evaluated."""
        n = min(most, len(ids) - done, cache.tokens_to_boundary() or most)
        part = ids[done : done + n]
        try:
            self.make_room(cache, n)
            logits = model(mx.array([list(part)]), cache=cache.layers)
            mx.eval([layer.state for layer in cache.layers])
        except BaseException:
            cache.recover()
            raise
        cache.advance(part)
        return n, logits

    def decode(
        self,
        cache: PromptCache,
        last: int,
        params: SamplingParams,
        seen: Sequence[int] = (),
        *,
        ends: Collection[int] = (),
        num_before: int = 0,
        counts: DecodeCounts | None = None,
        draws: Callable[[], Draws] | None = None,
    ) -> Generator[int]:
        """Feed `last`, the end of the prompt, and yield up to `params.max_tokens` sampled ids, fewer if the model's
        learned positions end before.

        A token has been fed when it is yielded, unless it is the last one: closing the generator at any point leaves
        the token log equal to the cache.

        Args:
            seen: the prompt's ids without `last`, for penalties and to draft from.
            ends: ids that end a reply, which are never drafted.
            num_before: tokens that a reply to continue has already.
            counts: to add what it took to.
            draws: makes what draws the tokens; None: by `params` alone.

        Raises:
            OutOfMemoryError: see `check`.
        """
        cache.check_length(cache.offset + 1)
        self.make_room(cache, 1)
        most = params.max_tokens if cache.num_left is None else min(params.max_tokens, cache.num_left)
        made = draws() if draws is not None else Draws(params, seen, num_before)
        drafts = None
        if self.drafting is not None and has_equal_calls(self.model):
            drafts = self.drafting.of_reply(TokenIds(seen) + TokenIds([last]), ends)
        held, check = cache, self.in_place(cache)  # by the buffers that a fork has now

        def step(tokens: mx.array, cache: Sequence[Any]) -> mx.array:
            self.make_room(held, tokens.shape[1])
            check.step((held.num_moves, tokens.shape[1]))
            return self.model(tokens, cache=cache)

        with self._running(cache, compares=True):
            yield from Decoder(step, cache, made, drafts, counts, in_place=check).tokens(last, most)

    def in_place(self, cache: PromptCache) -> InPlace:
        """Whether decode steps on caches like this one write in place, as far as it was measured."""
        buffer = cache.largest_buffer
        key = (cache.plan.geometry, cache.plan.config.bits, buffer)
        return self._in_place.setdefault(key, InPlace(buffer))

    @property
    def in_place_checks(self) -> tuple[InPlace, ...]:
        """What was measured of every kind of cache so far."""
        return tuple(self._in_place.values())

    @property
    def peak_memory(self) -> int:
        """Bytes of MLX's highest peak since `reset_peak_memory`."""
        return max(mx.get_peak_memory(), *(check.peak for check in self._in_place.values()), 0)

    def reset_peak_memory(self) -> None:
        mx.reset_peak_memory()
        for check in self._in_place.values():
            check.peak = 0
