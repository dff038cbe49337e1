"""The child's end of `supervisor`: it ends with its parent, takes keys from it, and shows it signs of life. Any thread.

While a tokenizer or a chat template holds the interpreter, the window can neither read keys nor end. So the parent
reads keys that nobody fetches: a quit among them is its own affair, the rest it hands over.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping
from types import FrameType

from mlxkv.system.supervisor import ALIVE, ALONE, AWAY, LIFELINE, QUITS, TICK, UP

_FOREIGN = ("mlxkv.tokenizer.tokens", "mlxkv.tokenizer.chat_template")  # modules that call what a model brings


class Supervisor:
    """What the window knows of its parent.

    Args:
        keys: a pipe from the parent, which closes when it is gone.
        reports: a pipe to it.

    Attributes:
        keys: bytes that the parent read from the terminal meanwhile, the oldest first.
    """

    def __init__(self, keys: int, reports: int) -> None:
        self.keys: deque[bytes] = deque()
        self._reports = reports
        self._quits = False
        os.set_blocking(reports, False)
        threading.Thread(target=self._listen, args=(keys,), daemon=True).start()

    def window_is_up(self) -> None:
        """The window reads keys, and says so by `alive` after each read."""
        self._tell(UP)

    def window_is_away(self) -> None:
        """Someone else reads them: an editor, or the shell."""
        self._tell(AWAY)

    def terminal_is_gone(self) -> None:
        self._tell(ALONE)

    def alive(self) -> None:
        self._tell(ALIVE)

    def quit(self) -> None:
        """The user leaves: from now on the parent ends us if we show no sign of life for two seconds.

        There is none while the engine stays in one call of a model's tokenizer or template.
        """
        if self._quits:
            return
        self._quits = True
        self._tell(QUITS)
        threading.Thread(target=self._show_life, daemon=True).start()

    def _show_life(self) -> None:
        last = None
        while True:
            threading.Event().wait(TICK)
            call = foreign_call()
            if call is None or call is not last:
                self.alive()
            last = call

    def _tell(self, what: bytes) -> None:
        try:
            os.write(self._reports, what)
        except OSError:
            return  # it is gone, or does not listen

    def _listen(self, fd: int) -> None:
        try:
            while data := os.read(fd, 4096):
                self.keys.append(data)
        finally:
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup has it
            os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGHUP)


def watch_parent(env: Mapping[str, str] | None = None) -> Supervisor | None:
    """In the child: end when the parent is gone, however that went. None without a parent that watches."""
    numbers = (os.environ if env is None else env).get(LIFELINE, "").split(",")
    os.environ.pop(LIFELINE, None)
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return None
    keys, reports = map(int, numbers)
    try:
        for fd in (keys, reports):
            os.set_inheritable(fd, False)
    except OSError:
        return None
    return Supervisor(keys, reports)


def foreign_call() -> FrameType | None:
    """The call in which the engine's thread waits for a model's tokenizer or chat template, if it does."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0) if thread.name == "mlxkv-engine" else None
        while frame is not None:
            if frame.f_globals.get("__name__") in _FOREIGN:
                return frame
            frame = frame.f_back
    return None
