"""RequestThread: one thread that owns MLX, a Model and its Scheduler, and works for many callers at once.

Three kinds of work share it: requests of the scheduler, iterators such as a chat's reply, and functions. In each round
the scheduler does one step, and every iterator gives one event, so that none waits for the end of another; functions
run between two rounds. Only plain values leave the thread. Every method may be called from any thread; a Sink is called
on the MLX thread and must return at once.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mlxkv.engine.end_mlx import end_mlx
from mlxkv.engine.requests import RequestMaker, RequestSpec
from mlxkv.errors import ClosedError, MlxkvError, QueueFullError, first_line
from mlxkv.events import RequestFailed, TextDelta, TurnEvent, TurnFinished

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.model import Model
    from mlxkv.scheduler import Request, Scheduler

_log = logging.getLogger("mlxkv.engine")
MAX_WAITING = 256
T = TypeVar("T")


class Sink(Protocol):
    """Takes the events of one piece of work, on the MLX thread."""

    def put(self, event: TurnEvent) -> object:
        """The next event."""

    def end(self, error: BaseException | None) -> object:
        """No event follows. `error`: why the work failed, or ClosedError; None: it is done, or was cancelled."""


@dataclass(eq=False)
class _Job:
    """A piece of work from its submission to its end.

    Attributes:
        is_in_line: it counts as waiting until it has an event.
        is_scheduled: it is a request that the scheduler has.
        peak: bytes of MLX's highest peak since it began.
    """

    id: int
    sink: Sink
    is_in_line: bool
    is_scheduled: bool = False
    is_cancelled: bool = False
    has_begun: bool = False
    peak: int = 0


@dataclass(eq=False)
class _Run:
    """An iterator of events, made when its turn comes.

    Attributes:
        random: its random state, once it has begun.
    """

    job: _Job
    make: Callable[[Model], Iterator[TurnEvent]]
    events: Iterator[TurnEvent] | None = None
    random: bytes = b""


class RequestThread:
    """Runs a model for callers on other threads.

    Args:
        load: makes the Model, on the MLX thread; it should stop once the event that it is given is set.
        max_waiting: the most requests and replies that wait.
        scheduler: more arguments of the Scheduler.

    Attributes:
        closers: called before the thread ends, such as those of chats; on the MLX thread alone.
    """

    def __init__(
        self, load: Callable[[threading.Event], Model], *, max_waiting: int = MAX_WAITING, **scheduler: Any
    ) -> None:
        self._load, self.max_waiting, self._scheduler_options = load, max_waiting, scheduler
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the next five
        self._jobs: dict[int, _Job] = {}  # those that have not ended
        self._ids = itertools.count(1)
        self._is_closing = False
        self._why_ended: BaseException | None = None
        self._stop_load = threading.Event()
        self._opened: Future[None] = Future()
        self._closed: Future[None] = Future()
        for future in (self._opened, self._closed):
            future.set_running_or_notify_cancel()  # who waits for it cannot cancel it
        self._ends_now = self._ends_when_done = False  # from here on, the MLX thread's
        self._lines: dict[Hashable, deque[_Run]] = {}  # of iterators: the first of each line runs
        self._is_scheduling = False
        self.closers: dict[Hashable, Callable[[], object]] = {}
        # A daemon, since a caller may never close it; `close` at exit lets it clear MLX's streams first.
        self._thread = threading.Thread(target=self._work, name="mlxkv-requests", daemon=True)

    # -- any thread --------------------------------------------------------------------------------------------------

    def start(self) -> Future[None]:
        """Start the thread and load the model; the result is there once it is loaded, or the error of that."""
        import atexit

        atexit.register(self.close)
        self._thread.start()
        return self._opened

    def submit(
        self,
        spec: RequestSpec | Callable[[Model, int], Request],
        sink: Sink,
        cache: Callable[[], PromptCache] | None = None,
    ) -> int:
        """Put a request in line; returns its id, for `cancel`.

        Args:
            spec: the request; or a function that makes it on the MLX thread, with this id.
            cache: called on the MLX thread: a prompt cache to continue, which is not changed.

        Raises:
            QueueFullError: too many wait. ClosedError.
        """
        job = self._enter(sink, is_in_line=True)
        self._commands.put(partial(self._schedule, job, spec, cache))
        return job.id

    def iterate(self, make: Callable[[Model], Iterator[TurnEvent]], sink: Sink, line: Hashable = None) -> int:
        """Iterate what `make` returns, on the MLX thread, an event in each round; returns its id, for `cancel`.

        Args:
            line: what is given the same one, here and in `call`, is done in this order, one after the other.

        Raises:
            QueueFullError: too many wait. ClosedError.
        """
        job = self._enter(sink, is_in_line=True)
        self._commands.put(partial(self._line_up, _Run(job, make), line))
        return job.id

    def call(self, function: Callable[[Model], T], line: Hashable = None) -> Future[T]:
        """Call `function` on the MLX thread, between two rounds; `line` as of `iterate`.

        Raises:
            ClosedError.
        """
        future: Future[T] = Future()
        job = self._enter(_Result(future), is_in_line=False)
        self._commands.put(partial(self._line_up, _Run(job, lambda model: _called(function, model, future)), line))
        return future

    def cancel(self, job_id: int) -> None:
        """Stop a request or an iterator before its next chunk or token. Its sink still gets its end. One that has ended
        is ignored."""
        if (job := self._jobs.get(job_id)) is None:  # without the lock: a garbage collection may call this
            return
        job.is_cancelled = True
        with suppress(AttributeError, RuntimeError):  # at once, unless the line changes just now: then see `_cancel`
            self._scheduler.cancel(job_id)
        self._commands.put(partial(self._cancel, job))

    def post(self, function: Callable[[], object]) -> None:
        """Call `function` on the MLX thread, if it has not ended; nobody hears of the result. A garbage collection may
        call this."""
        self._commands.put(partial(_unheard, function))

    @property
    def num_waiting(self) -> int:
        """Number of requests and replies in line."""
        with self._lock:
            return self._num_waiting

    @property
    def _num_waiting(self) -> int:
        return sum(job.is_in_line and not (job.has_begun or job.is_cancelled) for job in self._jobs.values())

    def begin_close(self, *, finish: bool = False) -> Future[None]:
        """Refuse further work, end what runs (its sinks get a ClosedError), close the model and end the thread.

        Args:
            finish: finish first what was submitted. A second call without it ends that.
        """
        with self._lock:
            was_started, self._is_closing = self._thread.ident is not None, True
        if was_started:
            if not finish:
                self._stop_load.set()
            self._commands.put(partial(self._end_soon, finish))
        elif not self._closed.done():
            self._closed.set_result(None)
        return self._closed

    def close(self, *, finish: bool = False) -> None:
        """`begin_close`, and wait for the end of the thread."""
        self.begin_close(finish=finish).result()
        if self._thread.ident is not None:
            self._thread.join()

    def _enter(self, sink: Sink, *, is_in_line: bool) -> _Job:
        with self._lock:
            if self._is_closing or self._why_ended is not None:
                raise _closed_error(self._why_ended)
            if is_in_line and self._num_waiting >= self.max_waiting:
                raise QueueFullError(f"{self.max_waiting:,} requests are waiting, and no more may; try again later.")
            job = _Job(next(self._ids), sink, is_in_line)
            self._jobs[job.id] = job
        return job

    # -- the MLX thread: commands --------------------------------------------------------------------------------------

    def _schedule(
        self, job: _Job, spec: RequestSpec | Callable[[Model, int], Request], cache: Callable[[], PromptCache] | None
    ) -> None:
        if job.is_cancelled:
            self._finish(job)
            return
        try:
            if isinstance(spec, RequestSpec):
                request = self._maker.request(job.id, spec, cache() if cache else None)
            else:
                request = spec(self._model, job.id)
            self._scheduler.submit(request, partial(self._take_event, job))
        except BaseException as error:  # a panic in Rust is not an Exception
            self._finish(job, error)
        else:
            job.is_scheduled = self._is_scheduling = True

    def _line_up(self, run: _Run, line: Hashable) -> None:
        self._lines.setdefault(run if line is None else line, deque()).append(run)

    def _cancel(self, job: _Job) -> None:
        self._scheduler.cancel(job.id)

    def _end_soon(self, finish: bool) -> None:
        self._ends_when_done = self._ends_when_done or finish
        self._ends_now = self._ends_now or not finish

    # -- the MLX thread: work ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        why: BaseException | None = None
        try:
            self._model = self._load(self._stop_load)
            self._maker, self._scheduler = RequestMaker(self._model), self._new_scheduler()
            self._opened.set_result(None)
            while not (self._ends_now or (self._ends_when_done and not self._is_busy)):
                self._take_commands()
                self._round()
        except BaseException as error:
            why = error
            if self._opened.done():
                _log.exception("the model's thread ended")
            _clear(error)
        finally:
            self._end(why)

    @property
    def _is_busy(self) -> bool:
        return self._is_scheduling or bool(self._lines) or not self._commands.empty()

    def _take_commands(self) -> None:
        """Do what was asked meanwhile; waits for something to do."""
        waits = not self._is_busy
        with suppress(queue.Empty):
            while True:
                self._commands.get(block=waits)()
                waits = False

    def _round(self) -> None:
        """A step of the scheduler, and an event of each iterator."""
        if len(self._jobs) > 1:  # what one takes is not measured while others take memory
            for check in self._model.runner.in_place_checks:
                check.restart()
        if self._is_scheduling:
            try:
                self._is_scheduling = self._scheduler.step()
            except BaseException as error:  # it has stopped all requests
                _log.debug("the scheduler failed", exc_info=True)  # its callers are told
                self._fail_requests(error)
            self._note_peaks()
        for line, runs in list(self._lines.items()):
            if not self._advance(runs[0]):
                runs.popleft()
                if not runs:
                    del self._lines[line]

    def _advance(self, run: _Run) -> bool:
        """Send the next event of an iterator; False: it has ended."""
        job = run.job
        try:
            with self._random_state(run):
                if job.is_cancelled:
                    _close(run.events)
                    event = None
                else:
                    if run.events is None:
                        self._note_peaks()
                        self._model.runner.reset_peak_memory()
                        run.events = run.make(self._model)
                    event = next(run.events, None)
        except BaseException as error:
            self._finish(job, error)
            return False
        if event is None:
            self._finish(job)
            return False
        self._put(job, event)
        return True

    def _take_event(self, job: _Job, event: TurnEvent | RequestFailed) -> None:
        """The sink of a request."""
        if isinstance(event, RequestFailed):
            self._finish(job, event.error)
            return
        self._put(job, event)
        if isinstance(event, TurnFinished):
            self._finish(job)

    def _put(self, job: _Job, event: TurnEvent) -> None:
        job.has_begun = True
        if not isinstance(event, TextDelta):
            self._note_peaks()
        if isinstance(event, TurnFinished):
            peak = max(event.stats.peak_memory_bytes, job.peak)
            event = replace(event, stats=replace(event.stats, peak_memory_bytes=peak))
        try:
            job.sink.put(event)
        except Exception:  # its event loop is closed, for example: nobody is there to take events
            _log.debug("the events of a request cannot be delivered", exc_info=True)
            job.is_cancelled = True
            self._scheduler.cancel(job.id)

    def _finish(self, job: _Job, error: BaseException | None = None) -> None:
        with self._lock:
            if self._jobs.pop(job.id, None) is None:
                return
        if error is not None:
            _clear(error)
        try:
            job.sink.end(error)
        except Exception:
            _log.debug("the end of a request cannot be delivered", exc_info=True)

    def _fail_requests(self, error: BaseException) -> None:
        """End all requests of the scheduler, which has failed, and begin with a new one."""
        with self._lock:
            failed = [job for job in self._jobs.values() if job.is_scheduled]
        self._scheduler, self._is_scheduling = self._new_scheduler(), False
        for job in failed:
            self._finish(job, _failure(error))

    def _new_scheduler(self) -> Scheduler:
        return self._model.scheduler(max_waiting=self.max_waiting, **self._scheduler_options)

    # -- what no work may leave to another -----------------------------------------------------------------------------

    def _note_peaks(self) -> None:
        """Let all work that has begun know of the peak so far, before another's beginning resets it."""
        peak = self._model.runner.peak_memory
        with self._lock:
            for job in self._jobs.values():
                if job.has_begun:
                    job.peak = max(job.peak, peak)

    @contextmanager
    def _random_state(self, run: _Run) -> Iterator[None]:
        """Give an iterator random numbers of its own: a chat's seed must not decide another's."""
        from mlxkv.inference.sampling import random_state, set_random_state

        others = random_state()
        set_random_state(run.random or os.urandom(8))
        try:
            yield
        finally:
            run.random = random_state()
            set_random_state(others)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _end(self, why: BaseException | None) -> None:
        import atexit

        with self._lock:
            self._is_closing, self._why_ended = True, why
        if not self._opened.done():
            self._opened.set_exception(why or ClosedError(_CLOSED))
        try:
            self._clean_up()
        except BaseException:
            _log.exception("the model could not be closed")
        finally:
            with self._lock:
                jobs = list(self._jobs.values())
            for job in jobs:
                self._finish(job, _closed_error(why))
            end_mlx()
            atexit.unregister(self.close)
            self._closed.set_result(None)

    def _clean_up(self) -> None:
        """Close iterators, which keep partial replies, and the model."""
        for runs in self._lines.values():
            _close(runs[0].events)
        self._lines.clear()
        for close in list(self.closers.values()):
            _unheard(close)
        self.closers.clear()
        if hasattr(self, "_scheduler"):
            self._scheduler.close()
            del self._scheduler, self._maker
        if hasattr(self, "_model"):
            self._model.close()
            del self._model


def _unheard(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception:
        _log.exception("what was posted failed")


class _Result:
    """The sink of a call: only its error."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def put(self, event: TurnEvent) -> None:
        raise AssertionError(event)

    def end(self, error: BaseException | None) -> None:
        if error is not None and not self._future.done():
            self._future.set_exception(error)


def _called(function: Callable[[Model], T], model: Model, future: Future[T]) -> Iterator[TurnEvent]:
    """An iterator without events, which `function` was called for."""
    if future.set_running_or_notify_cancel():
        future.set_result(function(model))
    return iter(())


_CLOSED = "The model was closed; open it again with `mlxkv.open_async`."


def _closed_error(why: BaseException | None) -> ClosedError:
    """The error of work that the end of the thread cut short."""
    if why is None:
        return ClosedError(_CLOSED)
    error = ClosedError(f"The model's thread ended ({type(why).__name__}: {first_line(why)}); open the model again.")
    error.__cause__ = why
    return error


def _failure(why: BaseException) -> MlxkvError:
    """The error of a request that ran when the scheduler failed."""
    error = MlxkvError(f"Something went wrong ({type(why).__name__}: {first_line(why)}); try again.")
    error.__cause__ = why
    return error


def _close(events: Iterator[Any] | None) -> None:
    """Close a generator that was begun."""
    if events is not None and callable(close := getattr(events, "close", None)):
        close()


def _clear(error: BaseException) -> None:
    """Clear the variables of an error's frames, which may hold arrays, before another thread gets it."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
