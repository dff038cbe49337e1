"""Downloads: one repository at a time, on a thread that uses no MLX. `start` and `pause`: any thread.

The received part is kept, so a download that was paused or interrupted continues there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mlxkv.device import Device
from mlxkv.errors import MlxkvError, OutOfMemoryError
from mlxkv.protocol.events import EngineEvent, PullProgress, PullState
from mlxkv.protocol.status import ModelTooLarge

_RATE_SECONDS = 5.0  # over which the rate is averaged
_EMIT_SECONDS = 0.2  # between two events
_log = logging.getLogger("mlxkv.engine")


class Downloads:
    """`emit` takes every PullProgress, mostly on the download's thread."""

    def __init__(self, emit: Callable[[EngineEvent], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._emit, self._clock = emit, clock
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self._name = ""

    def start(self, name: str, device: Device, *, then_load: bool = False) -> None:
        """Start or continue a download. A model that does not fit `device` is refused before anything is fetched.

        Raises:
            MlxkvError: another download is running.
        """
        if self.is_running:
            raise MlxkvError(f"{self._name} is being downloaded; press Esc to pause it first.")
        self._name, self._cancel = name, threading.Event()
        self._emit(PullProgress(name, PullState.ASKING, then_load=then_load))
        self._thread = threading.Thread(
            target=self._run, args=(name, device, then_load, self._cancel), name="mlxkv-download"
        )
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def pause(self) -> None:
        self._cancel.set()

    def close(self) -> None:
        """Pause and wait for the download's thread."""
        self._cancel.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, name: str, device: Device, then_load: bool, cancel: threading.Event) -> None:
        meter = _Meter(self._clock)
        last = PullProgress(name, PullState.ASKING, then_load=then_load)

        def progress(done: int, total: int) -> None:
            nonlocal last
            if meter.record(done) or done == total:
                last = PullProgress(name, PullState.DOWNLOADING, done, total, meter.rate, then_load=then_load)
                self._emit(last)

        def end(state: PullState, text: str = "") -> None:
            self._emit(PullProgress(name, state, last.done, last.total, 0.0, text, then_load))

        try:
            self._fetch(name, device, progress, cancel)
        except _TooLargeError as error:
            if then_load:  # nothing was fetched yet: the user decides
                self._emit(PullProgress(name, PullState.TOO_LARGE, then_load=True, too_large=error.model))
            else:
                end(PullState.FAILED, str(error))
        except MlxkvError as error:
            end(PullState.PAUSED if cancel.is_set() else PullState.FAILED, str(error))
        except Exception as error:
            _log.exception("the download of %s failed", name)
            reason = type(error).__name__
            end(PullState.FAILED, f"The download of {name} failed ({reason}); /pull {name} continues it.")
        else:
            end(PullState.DONE)

    @staticmethod
    def _fetch(name: str, device: Device, progress: Callable[[int, int], None], cancel: threading.Event) -> None:
        from mlxkv.models import download, resolve
        from mlxkv.models.files.weight_memory import check_fits
        from mlxkv.models.hub.download import Plan

        source = resolve(name)
        if source.repo is None:
            raise MlxkvError(f"{name} is on this machine already; /model {name} loads it.")

        def check(plan: Plan) -> None:
            try:
                check_fits(name, plan.weight_bytes, device)
            except OutOfMemoryError as error:
                model = ModelTooLarge(name, plan.weight_bytes, device.memory_limit, device.total_memory)
                raise _TooLargeError(str(error), model) from error

        download(source.repo, source.revision, progress=progress, cancel=cancel, check=check)


class _TooLargeError(MlxkvError):
    def __init__(self, text: str, model: ModelTooLarge) -> None:
        super().__init__(text)
        self.model = model


class _Meter:
    """Bytes per second over the last seconds, from totals at irregular times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._last_event = clock, float("-inf")
        self._samples: deque[tuple[float, int]] = deque()

    def record(self, done: int) -> bool:
        """Record a total and return whether the next event is due."""
        now = self._clock()
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _RATE_SECONDS:
            self._samples.popleft()
        if now - self._last_event < _EMIT_SECONDS:
            return False
        self._last_event = now
        return True

    @property
    def rate(self) -> float:
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start else 0.0
