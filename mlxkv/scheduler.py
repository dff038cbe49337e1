"""Scheduler: many requests on the MLX thread, as many at once as memory allows.

Requests that mlx-lm's batch caches can hold decode together, the others in turns, a token of each; prompts are
prefilled in chunks, several in one call where they start together, and between two of them the others get a token.
Knows no chat, no text and no disk: a request has token ids, and its events go to a sink. `step` does a piece of the
work; `cancel` may be called from any thread, all else from the MLX thread.
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
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.joint_prefill import JointPrefill
from mlxkv.inference.reply_parser import ReplyText
from mlxkv.inference.row_return import take_rows
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
_NEAR = 16  # tokens that are prefilled again for prompts to start together
_LEAST_OF_EACH = 32  # tokens of each prompt in a call for all: with fewer, they do not gain
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
        keeps_cache: change `cache`, which no other request may have: at the end it holds the prompt and the reply,
            except where mlx-lm's batch has evicted rows or has other layers than keys and values.
        hooks: functions of the caller's, and a schema.
        continued: see TurnStats.
    """

    id: int | str
    ids: Sequence[int]
    params: SamplingParams
    cache: PromptCache
    deadline: float | None = None
    reader: Callable[[], ReplyText] | None = None
    hooks: Hooks = field(default_factory=Hooks)
    keeps_cache: bool = False
    continued: bool = False


@dataclass(eq=False)
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


@dataclass(frozen=True)
class _Start:
    """Where the prefill of a prompt starts: after a prefix of so many tokens of the last prompt, or of its cache."""

    num_tokens: int
    is_last: bool

    def is_near(self, other: _Start) -> bool:
        """Whether prompts that share a beginning start so close that they may start together."""
        return abs(self.num_tokens - other.num_tokens) <= _NEAR


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
            prefilling = [task for task in self._running if task.is_prefilling]
            for task in sorted(prefilling, key=lambda task: not task.is_stopped):  # those leave before the next call
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
        """Begin those that are next in line and fit. No row begins while others prefill: it may share their prompt."""
        if not self._running:
            self._others_bytes = mx.get_active_memory()
        for task in list(self._waiting):
            if task not in self._waiting:  # it began with another
                continue
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
            if task.refusal is None:
                self._begin_rows(task, most - len(same))
            else:
                self._waiting.remove(task)
                self._begin(task, _own_cache(task.request))

    def _begin_rows(self, task: _Task, most: int) -> None:
        """Begin a row, and up to `most` in all whose prompts can be prefilled in the same calls."""
        tasks, start = self._companions(task, most)
        joint: JointPrefill | None = None
        for each in tasks:
            self._waiting.remove(each)
            rows = self._rows_at(each.request, start)
            joint = joint or JointPrefill(self._runner.model, rows.offset, self._runner.chunk_size)
            if (runner := self._begin(each, rows)) and len(tasks) > 1 and rows.offset == joint.start:
                runner.join(joint, rows)

    def _companions(self, first: _Task, most: int) -> tuple[list[_Task], _Start]:
        """The tasks to prefill with the first one, and where all of them start.

        Prompts that share more than that are prefilled one after the other, since sharing saves more.
        """
        start, tasks = self._start(first.request), [first]
        most = min(most, self._runner.chunk_size.at(start.num_tokens) // _LEAST_OF_EACH)
        for task in list(self._waiting):
            if len(tasks) >= most:
                break
            if task is first or task.is_stopped:
                continue
            self._decide(task, is_alone=False)
            if task.refusal is not None or not _begin_alike(first.request.cache, task.request.cache):
                continue
            own = self._start(task.request)
            both = replace(start, num_tokens=min(start.num_tokens, own.num_tokens))
            if own.is_last != start.is_last or not (own == start or (start.is_last and start.is_near(own))):
                continue
            ids = task.request.ids
            shared = max(common_prefix(other.request.ids, ids) for other in tasks)
            shortest = min(len(ids), *(len(other.request.ids) for other in tasks))
            if shared >= both.num_tokens + _LEAST_SHARED or shortest - 1 <= both.num_tokens:
                continue
            if not self._fits(task, beside=tasks):
                break
            tasks.append(task)
            start = both
        return tasks, start

    def _decide(self, task: _Task, is_alone: bool) -> None:
        """Decide, once, whether it is to be a row of the batch, and what memory it needs."""
        request, plan = task.request, task.request.cache.plan
        num_tokens, max_tokens = len(request.ids), request.params.max_tokens
        if not task.need:
            why = "nothing else ran" if is_alone else None
            if request.hooks.sampler is not None and request.params.seed is not None:
                why = "its sampler is a function, which takes its random numbers from one seed"
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

    def _fits(self, task: _Task, beside: Sequence[_Task] = ()) -> bool:
        """Whether it fits beside all that runs and those, by the predicted peak."""
        limit = self._budget.limit
        need = sum(other.need for other in (*self._running, *beside, task))
        return not limit or self._others_bytes + need <= limit

    def _begin(self, task: _Task, cache: PromptCache) -> RowRunner | None:
        """Begin one; the runner of a row, None if there is none, or if it failed at once."""
        request = task.request
        try:
            if task.refusal is None:
                task.runner = RowRunner(self._runner, self._batch, request.ids, request.params)
                task.runner.when_prefilled = lambda rows: self._remember(request, rows)
                if request.keeps_cache:
                    task.runner.when_ended = lambda new, rows: take_rows(request.cache, (*request.ids, *new), rows)
            task.generation = Generation(
                task.runner or self._runner,
                self._tokenizer,
                cache,
                request.ids,
                request.params,
                started=task.started,
                cancelled=lambda: task.is_stopped,
                reader=request.reader() if request.reader else None,
                hooks=request.hooks,
                continued=request.continued,
            )
            if task.runner is not None:
                task.runner.make_draws = task.generation.make_draws
        except MlxkvError as error:
            task.sink(RequestFailed(error))
            return None
        task.events = task.generation.events()
        self._running.append(task)
        return task.runner

    def _start(self, request: Request) -> _Start:
        """The longest prefix of the prompt that the request's cache, or the last prompt, holds."""
        cache, ids = request.cache, request.ids
        held = common_prefix(cache.log, ids)
        if self._last is not None and self._last[0] is cache:
            shared = min(common_prefix(self._last[1], ids), len(ids) - 1)
            if shared >= held + _LEAST_SHARED:
                return _Start(shared, is_last=True)
        return _Start(held, is_last=False)

    def _rows_at(self, request: Request, start: _Start) -> RowCache:
        """A cache with that prefix of the prompt."""
        cache, model, num_tokens = request.cache, self._runner.model, start.num_tokens
        if start.is_last and self._last is not None:
            return RowCache(cache.plan, model, request.ids[:num_tokens], beginning(self._last[2], num_tokens))
        return rows_of(cache, model, request.ids)

    def _remember(self, request: Request, rows: RowCache) -> None:
        """Keep the prompt's rows for the next one; they are shared until they are copied into the batch."""
        self._last = (request.cache, request.ids, copy.deepcopy(rows.layers)) if can_begin(rows.layers) else None

    def _advance(self, task: _Task) -> None:
        """Send the next event of a request."""
        try:
            with self._random_state(task):
                event = next(task.events)
        except Exception as error:
            if not (isinstance(error, MlxkvError) or task.request.hooks.has_functions):
                raise
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
        ended = ReplyFinished(
            reason,
            event.text,
            stats,
            event.thinking,
            tool_calls=event.tool_calls,
            logprobs=event.logprobs,
            tokens=tokens,
        )
        task.sink(ended)

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


def _own_cache(request: Request) -> PromptCache:
    """The cache of a request that takes turns."""
    return request.cache if request.keeps_cache else request.cache.fork()


def _begin_alike(a: PromptCache, b: PromptCache) -> bool:
    """Whether prompts of these caches may be prefilled together: in one, or in two that are empty."""
    return a is b or (not a.log and not b.log and a.plan == b.plan)
