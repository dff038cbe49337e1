"""Scheduler: many requests on the MLX thread, as many at once as memory allows.

Requests that mlx-lm's batch caches can hold decode together, the others in turns, a token of each; a prompt is
prefilled in chunks, and between two of them the others get a token. Knows no chat, no text and no disk: a request has
token ids, and its events go to a sink. `step` does a piece of the work; `cancel` may be called from any thread, all
else from the MLX thread.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import MlxkvError, QueueFullError
from mlxkv.events import FinishReason, ReplyFinished, RequestFailed, TurnEvent, TurnFinished
from mlxkv.inference.batch import Batch, RowCache, RowRunner, beginning, can_begin, row_bytes, rows_of
from mlxkv.inference.batch_check import model_error, refusal
from mlxkv.inference.generation import Generation
from mlxkv.inference.reply_parser import ReplyText
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams, random_state, set_random_state
from mlxkv.memory import CHUNKS, Budget
from mlxkv.stats import TurnStats
from mlxkv.token_ids import common_prefix

MAX_ROWS = 32  # of a batch: beyond, a step takes about as much longer as there are more
MAX_TURNS = 4  # requests that take turns, each with a whole window
MAX_WAITING = 256
_GATHER = 2048  # tokens that may be prefilled before a batch begins to decode, so that its prompts decode together
_LEAST_SHARED = 64  # tokens of the last prompt that are worth copying
_COPIES = 2  # of a batch's rows: a row that joins or ends copies them

Sink = Callable[[TurnEvent | RequestFailed], object]


@dataclass(frozen=True)
class Request:
    """One prompt and how its reply is sampled.

    Attributes:
        id: unique among the requests that are not finished.
        ids: the whole prompt.
        cache: begins with a part of the prompt, or is empty; says how rows are kept. It is not changed.
        deadline: seconds from `submit`; then the reply ends with what it has.
        reader: makes the parser of the reply; None takes everything as text that continues the prompt.
    """

    id: int | str
    ids: Sequence[int]
    params: SamplingParams
    cache: PromptCache
    deadline: float | None = None
    reader: Callable[[], ReplyText] | None = None


@dataclass
class _Task:
    """A request from `submit` to its last event."""

    request: Request
    sink: Sink
    started: float = field(default_factory=lambda: time.perf_counter())
    is_cancelled: bool = False
    refusal: str | None = None  # why it is no row of the batch
    need: int = 0  # bytes
    runner: RowRunner | None = None  # of a row
    generation: Generation | None = None
    events: Iterator[TurnEvent] = field(default_factory=lambda: iter(()))
    random: bytes | None = None  # of a seeded request that takes turns

    @property
    def is_late(self) -> bool:
        deadline = self.request.deadline
        return deadline is not None and time.perf_counter() >= self.started + deadline

    @property
    def is_stopped(self) -> bool:
        return self.is_cancelled or self.is_late

    @property
    def is_prefilling(self) -> bool:
        return self.runner is not None and self.runner.row is None


class Scheduler:
    """Runs requests on one model.

    Args:
        runner, budget: the model's.
        tokenizer: mlx-lm's TokenizerWrapper.
        max_rows, max_turns: the most requests that decode together, and in turns.
        max_waiting: the most requests that wait.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Any,
        budget: Budget,
        *,
        max_rows: int = MAX_ROWS,
        max_turns: int = MAX_TURNS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._runner, self._tokenizer, self._budget = runner, tokenizer, budget
        self._max_rows, self._max_turns, self.max_waiting = max_rows, max_turns, max_waiting
        self._batch = Batch(runner.model, tokenizer.eos_token_ids)
        self._waiting: deque[_Task] = deque()
        self._running: list[_Task] = []
        self._others_bytes = 0  # of memory that was in use when nothing ran
        self._num_gathered = 0  # tokens prefilled since the batch last decoded
        self._last: tuple[PromptCache, Sequence[int], list[Any]] | None = None  # of a row: its cache, prompt and rows

    # -- from outside --------------------------------------------------------------------------------------------------

    def submit(self, request: Request, sink: Sink) -> None:
        """Put a request in line; its events go to `sink`, the last of them a ReplyFinished or a RequestFailed.

        Raises:
            QueueFullError: too many are waiting.
        """
        if not self.can_take:
            raise QueueFullError(f"{len(self._waiting):,} requests are waiting, and no more may; try again later.")
        self._waiting.append(_Task(request, sink))

    @property
    def can_take(self) -> bool:
        """Whether there is a place in line."""
        return len(self._waiting) < self.max_waiting

    def cancel(self, request_id: int | str) -> None:
        """Stop a request, from any thread: before its next chunk or token. One that is not there is ignored."""
        for task in (*self._waiting, *self._running):
            if task.request.id == request_id:
                task.is_cancelled = True

    def step(self) -> bool:
        """Do a piece of the work: a prefill chunk, and a token for each reply; False when nothing is left to do."""
        try:
            self._begin_waiting()
            for task in [task for task in self._running if task.is_prefilling]:  # at most one
                self._advance(task)
                if not task.is_prefilling:
                    self._num_gathered += len(task.request.ids)
                    self._begin_waiting()
            is_gathering = self._num_gathered < _GATHER and not self._batch.is_decoding
            is_gathering = is_gathering and any(task.is_prefilling for task in self._running)
            for task in [task for task in self._running if not (task.is_prefilling or (is_gathering and task.runner))]:
                self._advance(task)
                self._num_gathered = 0 if task.runner else self._num_gathered
        except BaseException:
            self.close()
            raise
        return bool(self._running or self._waiting)

    def run(self) -> None:
        """Finish all requests."""
        while self.step():
            pass

    def close(self) -> None:
        """Stop all requests without further events."""
        for task in self._running:
            self._end(task)
        self._running.clear()
        self._waiting.clear()
        self._last = None

    # -- one request ---------------------------------------------------------------------------------------------------

    def _begin_waiting(self) -> None:
        """Begin those that are next in line and fit. One row at a time prefills: the next may share its prompt."""
        if not self._running:
            self._others_bytes = mx.get_active_memory()
        for task in list(self._waiting):
            if task.is_stopped:
                self._waiting.remove(task)
                self._send_finished(task, TurnFinished(FinishReason.STOPPED, "", self._empty_stats(task)))
                continue
            self._decide(task, is_alone=not self._running and len(self._waiting) == 1)
            same = [other for other in self._running if (other.refusal is None) == (task.refusal is None)]
            most = self._max_rows if task.refusal is None else self._max_turns
            if len(same) >= most or (task.refusal is None and any(other.is_prefilling for other in same)):
                continue  # others may begin meanwhile
            if self._running and not self._fits(task):
                return
            self._waiting.remove(task)
            self._begin(task)

    def _decide(self, task: _Task, is_alone: bool) -> None:
        """Decide, once, whether it is to be a row of the batch, and what memory it needs."""
        request, plan = task.request, task.request.cache.plan
        num_tokens, max_tokens = len(request.ids), request.params.max_tokens
        if not task.need:
            why = "nothing else ran" if is_alone else None
            task.refusal = why or refusal(plan, request.cache.layers, num_tokens, max_tokens, self._model_error)
            rows = _COPIES * row_bytes(self._budget, plan, num_tokens + max_tokens)
            task.need = rows if task.refusal is None else self._budget.cache_bytes(plan)
            task.need += self._budget.prefill_bytes(plan, min(num_tokens, CHUNKS[-1]))
        if task.refusal is None and is_alone:
            task.refusal = "nothing else ran"
        elif task.refusal is None and not self._running and not self._fits(task):
            task.refusal = "two copies of its rows do not fit in memory"

    @cached_property
    def _model_error(self) -> str | None:
        return model_error(self._runner.model)

    def _fits(self, task: _Task) -> bool:
        """Whether it fits beside all that runs, by the predicted peak."""
        limit = self._budget.limit
        return not limit or self._others_bytes + sum(other.need for other in self._running) + task.need <= limit

    def _begin(self, task: _Task) -> None:
        request = task.request
        try:
            if task.refusal is None:
                cache: PromptCache = self._rows_for(request)
                task.runner = RowRunner(self._runner, self._batch, request.ids, request.params)
                task.runner.when_prefilled = lambda rows: self._remember(request, rows)
            else:
                cache = request.cache.fork()
            task.generation = Generation(
                task.runner or self._runner,  # type: ignore[arg-type]  # it has those methods that are used
                self._tokenizer,
                cache,
                request.ids,
                request.params,
                started=task.started,
                cancelled=lambda: task.is_stopped,
                reader=request.reader() if request.reader else None,
            )
        except MlxkvError as error:
            task.sink(RequestFailed(error))
            return
        task.events = task.generation.events()
        self._running.append(task)

    def _rows_for(self, request: Request) -> RowCache:
        """A cache with the longest prefix of the prompt that the request's cache, or the last prompt, holds."""
        cache, ids = request.cache, request.ids
        if self._last is not None and self._last[0] is cache:
            _, last_ids, layers = self._last
            shared = min(common_prefix(last_ids, ids), len(ids) - 1)
            if shared >= common_prefix(cache.log, ids) + _LEAST_SHARED:
                return RowCache(cache.plan, self._runner.model, ids[:shared], beginning(layers, shared))
        return rows_of(cache, self._runner.model, ids)

    def _remember(self, request: Request, rows: RowCache) -> None:
        """Keep the prompt's rows for the next one; they are shared until they are copied into the batch."""
        self._last = (request.cache, request.ids, copy.deepcopy(rows.layers)) if can_begin(rows.layers) else None

    def _advance(self, task: _Task) -> None:
        """Send the next event of a request."""
        try:
            with self._random_state(task):
                event = next(task.events)
        except MlxkvError as error:
            self._end(task)
            task.sink(RequestFailed(error))
            return
        if not isinstance(event, TurnFinished):
            task.sink(event)
            return
        self._end(task)
        self._send_finished(task, event)

    def _send_finished(self, task: _Task, event: TurnFinished) -> None:
        reason = event.reason
        if reason == FinishReason.STOPPED and task.is_late and not task.is_cancelled:
            reason = FinishReason.DEADLINE
        is_row = task.runner is not None
        stats = replace(event.stats, finish_reason=reason, batched=is_row, not_batched_why=task.refusal)
        tokens = tuple(task.generation.generated) if task.generation else ()
        task.sink(ReplyFinished(reason, event.text, stats, event.thinking, tokens=tokens))

    def _empty_stats(self, task: _Task) -> TurnStats:
        return TurnStats(finish_reason=FinishReason.STOPPED, total_s=time.perf_counter() - task.started)

    def _end(self, task: _Task) -> None:
        self._running = [other for other in self._running if other is not task]
        if isinstance(task.events, Generator):
            task.events.close()
        if task.runner is not None:
            task.runner.close()

    @contextmanager
    def _random_state(self, task: _Task) -> Iterator[None]:
        """Give a request with a seed random numbers of its own. A row has them from its first token on; it only sets
        the seed here."""
        if task.request.params.seed is None or (task.runner is not None and task.random is not None):
            yield
            return
        others = random_state()
        if task.random is not None:
            set_random_state(task.random)
        try:
            yield
        finally:
            task.random = random_state()
            set_random_state(others)
