"""Stuck: MLX may wait for ever for what it queued on a connection that was lost just then. Any thread.

No call of MLX ends such a wait, so the process is ended.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from mlxkv.errors import MachineError
from mlxkv.system.supervisor_link import end_at_once

_SECONDS, _LOOKS = 5.0, 10  # at one place


def place_of(thread: int) -> object:
    """Where a thread is; None: it has ended."""
    frame = sys._current_frames().get(thread)
    return None if frame is None else (frame, frame.f_lasti)


def end_if_stuck(place: Callable[[], object], lost: Callable[[], MachineError], is_over: Callable[[], bool]) -> None:
    """Once a connection is lost: end this process in a sentence if the thread that needs it stays at one place.

    Args:
        place: where that thread is; None: it needs no other process now, but may have begun to when it is asked next.
        is_over: whether that thread knows of the loss, or this process ends anyway.
    """
    before, num_equal = place(), 0
    while not is_over():
        threading.Event().wait(_SECONDS / _LOOKS)
        now = place()
        num_equal = num_equal + 1 if now is not None and now == before else 0
        before = now
        if num_equal == _LOOKS:
            end_at_once(str(lost()))
