"""InPlace: whether the decode steps of a cache write into its rings, or copy them; found by measuring the first steps.

MLX copies a whole buffer where a write finds that a running command still reads it. Evaluated one step ahead, the write
of a step may meet the attention of the step before: on the CPU backend in loops of few operations, and on a GPU with
models of few layers. Then the next step has to be evaluated after the token of this one has arrived; its graph can be
built before. Which it is depends on model, window and machine, so the memory that steps take is compared both ways.
On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Hashable

import mlx.core as mx

_LEAST_BUFFER = 1 << 20  # bytes: copies of less cost microseconds, and other arrays of a step are as large
_SETTLE, _MEASURED = 2, 4  # steps after which a way is steady, and steps that are measured then
_SHARE = 0.9  # of a buffer: copies take at least one more


class InPlace:
    """Measures the first decode steps of one kind of cache.

    Call `step` after each step, and evaluate the next one ahead while `one_step_ahead` says so.

    Args:
        buffer: bytes of the largest buffer of a ring.

    Attributes:
        one_step_ahead: whether the next step may be evaluated before the token of this one has arrived.
        copies: whether steps that are evaluated ahead copy rings; None until it is known.
        peak: bytes of MLX's highest peak before those that this object has reset; 0 if there was none.
    """

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer
        self.one_step_ahead = True
        self.copies: bool | None = None if buffer >= _LEAST_BUFFER else False
        self.peak = 0
        self._ahead = 0  # bytes that steps take which are evaluated ahead
        self._steps, self._before = 0, 0
        self._mark: Hashable = None

    def step(self, mark: Hashable = None) -> None:
        """A decode step was evaluated. `mark`: anything that changes where a step took memory of another kind, such as
        for an eviction; such steps are not measured."""
        if self.copies is not None:
            return
        if mark != self._mark:
            self._mark, self._steps = mark, 0
        self._steps += 1
        if self._steps == _SETTLE:
            self.peak = max(self.peak, mx.get_peak_memory())
            self._before = mx.get_active_memory()
            mx.reset_peak_memory()
        elif self._steps == _SETTLE + _MEASURED:
            self._compare(mx.get_peak_memory() - self._before)

    def restart(self) -> None:
        """Others took memory since the last step: measure from the next one on."""
        self._steps = 0

    def _compare(self, taken: int) -> None:
        least, self._steps = int(_SHARE * self.buffer), 0
        if self.one_step_ahead:
            self._ahead, self.one_step_ahead = taken, taken < least
            self.copies = False if taken < least else None
        else:
            self.copies = self._ahead - taken >= least
            self.one_step_ahead = not self.copies
