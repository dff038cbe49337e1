"""Generation: one prompt in, events out: reuse, prefill, decode, text, statistics.

Takes token ids from a `TokenSource`. Knows no messages, no chat template and no disk. On the MLX thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import mlx.core as mx

from mlxkv.arguments import MAX_PROMPT_TOKENS
from mlxkv.cache.prompt_cache import PromptCache, Reuse
from mlxkv.errors import CacheError, PromptError
from mlxkv.events import (
    FinishReason,
    Notice,
    PrefillProgress,
    PromptEvicted,
    TextDelta,
    TokenLogprobs,
    ToolCall,
    TurnEvent,
    TurnFinished,
)
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.draws import Draws
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.logprobs import LogprobRows
from mlxkv.inference.reasoning_cut import ReasoningCut
from mlxkv.inference.reply_parser import ReplyText
from mlxkv.inference.sampling import SamplingParams
from mlxkv.inference.schema import Constraint
from mlxkv.inference.token_source import TokenSource
from mlxkv.memory.overflow import overflow_of
from mlxkv.stats import TurnStats, evicted_text
from mlxkv.token_ids import TokenIds
from mlxkv.tokenizer.tokens import encode

_NO_CUT = "The thinking budget has no effect here: it is unknown how this reply's reasoning ends."


def check_size(ids: Sequence[int]) -> None:
    """Raises PromptError: the prompt is empty or over the limit."""
    if not ids:
        raise PromptError("The prompt is empty; write something first.")
    if len(ids) > MAX_PROMPT_TOKENS:
        raise PromptError(f"The prompt has {len(ids):,} tokens; the limit is {MAX_PROMPT_TOKENS:,}: send it in parts.")


class Generation:
    """One run of prefill and decode on a cache. Iterate `events()` once; the result is `text`, `generated`, `stats`.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        ids: the whole prompt; tokens that the cache holds are not prefilled again.
        started: `time.perf_counter()` when the user asked; the time to the first token counts from there.
        cancelled: called before every prefill chunk and after every token.
        reply: a reply to continue: its ids, which `ids` end with, its text and its reasoning. `text` and `thinking`
            become the whole reply; `generated` and the events contain only the new part.
        reader: parses the reply; None takes everything as text that continues the prompt.
        checkpoints: positions in `ids` that a later prompt may rewind to, such as the beginning of the reply.
        prefixes: positions at which parts end that other chats begin with too, such as the system prompt.
        keeps_reply: end the cache where the displayed text ends: with the last token, without a stop string. A chat
            does not need this: its next prompt rewinds the cache.
        keeps_prompt: leave the cache as the prompt without its last token left it: the reply goes into a fork.
        hooks: functions of the caller's, and a schema, which the text after the reasoning follows.
        continued: as in TurnStats.
        asked: when set, the reasoning ends at once and the answer begins; see ReasoningCut.

    Raises:
        ConfigError: a reply to continue does not fit the schema.
    """

    def __init__(
        self,
        runner: TokenSource,
        tokenizer: Any,
        cache: PromptCache,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        started: float | None = None,
        cancelled: Callable[[], bool] = bool,
        reply: tuple[Sequence[int], str, str] = ((), "", ""),
        reader: ReplyText | None = None,
        checkpoints: Sequence[int] = (),
        prefixes: Sequence[int] = (),
        keeps_reply: bool = False,
        keeps_prompt: bool = False,
        hooks: Hooks | None = None,
        continued: bool = False,
        asked: threading.Event | None = None,
    ) -> None:
        check_size(ids)
        cache.check_length(len(ids))
        self.runner, self.tokenizer, self.cache = runner, tokenizer, cache
        self.ids, self.params, self.cancelled = TokenIds(ids), params, cancelled
        self.started = time.perf_counter() if started is None else started
        self.generated: list[int] = []
        self.reply_ids, self.text, self.thinking = reply
        self._is_plain = reader is not None and reader.splitter() is None  # nothing in the reply is reasoning
        self._reader = reader or ReplyText(tokenizer, params.stop, before=self.ids)
        self._checkpoints, self._prefixes = checkpoints, prefixes
        self._keeps_reply, self._keeps_prompt = keeps_reply, keeps_prompt
        self._hooks = hooks or Hooks()
        self._constraint: Constraint | None = None
        if self._hooks.schema is not None:
            self._constraint = Constraint(self._hooks.schema, tokenizer, self._reader.splitter(), reply[0])
        self._asked, self._cut = asked, self._make_cut(asked)
        self._rows = None if params.logprobs is None else LogprobRows(params.logprobs)
        self.logprobs: list[TokenLogprobs] = []  # of `generated`, if they are asked for
        self._num_told = 0  # of `logprobs`
        self._continued = continued
        self.reason = FinishReason.STOPPED  # if the caller closes the iterator, or the model raises
        self._reuse = Reuse(0)
        self._num_prefilled = 0
        self._prefill_s = 0.0
        self._counts = DecodeCounts()
        self._first_at: float | None = None  # time of the first token
        self._last_at = 0.0

    def events(self) -> Iterator[TurnEvent]:
        """Yield PrefillProgress per chunk, TextDelta per piece of text, and one TurnFinished."""
        self.runner.reset_peak_memory()
        if self.params.seed is not None:
            mx.random.seed(self.params.seed)
        self._reader.replay(self.reply_ids, self.text, self.thinking)  # the reply may have been cut within a word
        with self.cache.in_use():
            self.runner.check(self.cache)  # rewinding moves rows
            self._reuse = self.cache.reuse(self.ids)
            new = self.ids[self._reuse.cached :]
            if overflow := overflow_of(self.cache.plan, len(self.ids), self._reuse.cached):
                text = evicted_text(overflow, "CacheConfig(window={})".format)
                yield PromptEvicted(text, overflow)
            if self._cut is None and self.params.thinking_budget is not None and not self._is_plain:
                yield Notice(_NO_CUT)
            yield from self._prefill(new)
            if self._keeps_prompt:
                self.cache = self.cache.fork()
            if not self.cancelled():
                yield from self._decode(new[-1])
            if self.reason == FinishReason.LENGTH and self.cache.num_left == 0:
                yield Notice(
                    f"The reply ends here: this model has learned positions for {self.cache.offset:,} tokens, and they "
                    "are used up; start a new chat."
                )
        yield TurnFinished(
            self.reason,
            self.text,
            self.stats,
            self.thinking,
            tool_calls=self.tool_calls,
            logprobs=tuple(self.logprobs),
        )

    def _make_cut(self, asked: threading.Event | None) -> ReasoningCut | None:
        """What ends the reasoning; None if nothing may, or it is unknown how."""
        splitter, closing, budget = self._reader.splitter(), self._reader.closing, self.params.thinking_budget
        if splitter is None or closing is None or (budget is None and asked is None):
            return None
        is_bare = self._constraint is not None  # the answer begins with what the schema describes
        return ReasoningCut(
            self.tokenizer,
            splitter,
            partial(closing, is_bare=is_bare),
            budget=budget,
            asked=asked,
            reply=self.reply_ids,
        )

    def make_draws(self) -> Draws:
        """What draws the tokens of the reply."""
        spared = []
        if self.params.xtc_probability:  # as mlx-lm's commands
            spared = [*encode(self.tokenizer, "\n"), *self.tokenizer.eos_token_ids]
        return Draws(
            self.params,
            self.ids[:-1],
            len(self.reply_ids),
            hooks=self._hooks,
            constraint=self._constraint,
            logprobs=self._rows,
            spared=spared,
            cut=self._cut,
        )

    def _prefill(self, new: Sequence[int]) -> Iterator[TurnEvent]:
        begun = time.perf_counter()
        total, cached, last = len(new), self._reuse.cached, len(self.ids) - 1
        yield PrefillProgress(0, total, cached, 0.0)
        self.cache.begin_turn(is_prefix=cached in self._prefixes)
        stops = {*(min(at, last) for at in self._checkpoints), last}
        for done in self.runner.prefill(self.cache, new[:-1], self.cancelled, stops, self._prefixes):
            self._num_prefilled, self._prefill_s = done, time.perf_counter() - begun
            yield PrefillProgress(done, total, cached, done / max(self._prefill_s, 1e-9))
        if self.runner.drafting is not None:
            self.runner.drafting.prefilled(self.ids, self._num_prefilled, self._prefill_s, self.cancelled)

    def _decode(self, last: int) -> Iterator[TurnEvent]:
        reader = self._reader
        ends = self.tokenizer.eos_token_ids
        if self._asked is not None:
            self._asked.clear()  # no reasoning ran
        begun = time.perf_counter()
        tokens = self.runner.decode(
            self.cache,
            last,
            self.params,
            self.ids[:-1],
            ends=ends,
            num_before=len(self.reply_ids),
            counts=self._counts,
            draws=self.make_draws,
        )
        reason, is_held = FinishReason.STOPPED, False
        try:
            for token in tokens:
                self._last_at = time.perf_counter()
                if self._first_at is None:
                    self._first_at = self._last_at
                    self._prefill_s += self._first_at - begun
                    self._num_prefilled += 1
                    if self.cancelled():  # nothing was shown yet
                        break
                self.generated.append(token)
                if self._rows is not None:
                    self.logprobs.append(self._rows.pop())
                if token in ends:
                    reason = FinishReason.STOP
                    break
                reader.add(token)
                yield from self._show()
                if reader.is_stopped or self.cancelled():
                    break
                if self._asked is not None and self._asked.is_set() and self._cut is None and not self._is_plain:
                    self._asked.clear()
                    yield Notice(_NO_CUT.replace("The thinking budget", "Answer now"))
            else:
                reason = FinishReason.LENGTH
            is_held = True
        except GeneratorExit:
            is_held = True
            raise
        finally:  # held-back text is part of the reply, however it ends
            tokens.close()
            reader.finish(is_cut=reason != FinishReason.STOP)
            if reason == FinishReason.STOP and reader.tool_calls:
                reason = FinishReason.TOOL_CALLS
            self.reason = FinishReason.STOP_STRING if reader.is_stopped else reason
            self.text, self.thinking = reader.text, reader.thinking
            if self._keeps_reply and is_held:
                self._align_cache()
        yield from self._show()

    def _align_cache(self) -> None:
        """Make the cache hold the prompt and the reply as shown, with an end-of-turn token."""
        has_stop_string = self.reason == FinishReason.STOP_STRING
        shown = self._reader.num_tokens_of(self.text) if has_stop_string else len(self.generated)
        ids = [*self.ids, *self.generated[:shown]]
        if self.cache.log == ids:
            return
        # Imported tokens cannot be prefilled again, and learned positions may be used up: the log is correct anyway.
        with suppress(CacheError, PromptError):
            for _ in self.runner.prefill(self.cache, ids[self.cache.reuse(ids).cached :]):
                pass

    def _show(self) -> Iterator[TextDelta]:
        """Yield new text and reasoning."""
        self.text, self.thinking = self._reader.text, self._reader.thinking
        restarts, self._reader.restarts = self._reader.restarts, False
        for thinking, piece in self._reader.new_pieces():
            told, self._num_told = tuple(self.logprobs[self._num_told :]), len(self.logprobs)
            yield TextDelta(piece, len(self.generated), thinking, restarts=thinking and restarts, logprobs=told)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in the reply."""
        return self._reader.tool_calls

    @property
    def raw(self) -> str:
        """The decoded reply with its markers, without the end-of-turn token."""
        return self._reader.raw

    @property
    def _reasoning_cut_at(self) -> int | None:
        """As in TurnStats."""
        cut, num_ids = self._cut, len(self.reply_ids) + len(self.generated)
        return cut.num_tokens if cut is not None and cut.position < num_ids else None

    @property
    def stats(self) -> TurnStats:
        """The statistics so far; complete once `events` has ended."""
        now, cache, reuse = time.perf_counter(), self.cache, self._reuse
        decoded = len(self.generated) - 1
        decode_s = self._last_at - self._first_at if self._first_at is not None else 0.0
        prefilled = self._num_prefilled  # less than the prompt if it was cancelled during prefill
        return TurnStats(
            prompt_tokens=reuse.cached + prefilled,
            cached_tokens=reuse.cached,
            prefill_tokens=prefilled,
            generated_tokens=len(self.generated),
            decode_steps=self._counts.steps,
            drafted_tokens=self._counts.drafted,
            accepted_tokens=self._counts.accepted,
            evicted_tokens=cache.num_evicted,
            cached_evicted_tokens=cache.num_unattended(reuse.cached + prefilled - 1, reuse.cached),
            ttft_s=(self._first_at or now) - self.started,
            prefill_tps=prefilled / self._prefill_s if self._prefill_s else 0.0,
            decode_tps=decoded / decode_s if decode_s > 0 else 0.0,
            total_s=now - self.started,
            finish_reason=self.reason,
            cache_tokens=cache.num_attended,
            cache_window=cache.capacity,
            cache_bytes=cache.nbytes,
            cache_live_bytes=cache.live_nbytes,
            cache_bits=cache.plan.config.named_bits,
            peak_memory_bytes=self.runner.peak_memory,
            reasoning_cut_at=self._reasoning_cut_at,
            reuse_stopped_at=reuse.stopped_at,
            reuse_stopped_why=reuse.why,
            continued=self._continued,
        )
