"""Textual's terminal driver, for a terminal that may be gone and a window that may hang. Input and output threads.

Textual's own reads nothing for ever from a terminal that is gone, at the full speed of a processor, and stops at the
first write to it. Keys that the supervising process read meanwhile are taken from there.
"""

from __future__ import annotations

import errno
import os
import select
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Any

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from mlxkv.system.supervisor import open_terminal
from mlxkv.system.supervisor_link import SupervisorLink
from mlxkv.system.terminal import GONE, detach_terminal, is_hung_up, is_terminal_error

_TICK = 0.1  # seconds until a lone Esc is a key and no beginning


class WindowDriver(LinuxDriver):
    """The app's attribute `supervisor` is the parent that watches it, or None."""

    def __init__(self, app: Any, **more: Any) -> None:
        super().__init__(app, **more)
        self._file: Any = _Screen(self._file)
        self._supervisor: SupervisorLink | None = app.supervisor

    def run_input_thread(self) -> None:
        """Give keys to the app until it stops the driver, or the terminal is gone."""
        parser, decoder = XTermParser(self._debug), getincrementaldecoder("utf-8")(errors="replace")
        own = open_terminal(self.fileno)  # what is there may be fetched by the supervisor before we do
        keys, supervisor = (self.fileno, None) if own is None else (own, self._supervisor)
        if supervisor is not None:
            supervisor.report_window()
        try:
            while not self.exit_event.is_set():
                for data in self._read(keys, supervisor):
                    if text := decoder.decode(data):  # "" would end the parser
                        for event in parser.feed(text):
                            self.process_message(event)
                for event in parser.tick():
                    self.process_message(event)
        except OSError as error:
            if not is_terminal_error(error):
                raise
            detach_terminal()
            if supervisor is not None:
                supervisor.report_no_terminal()
            self._app.call_later(self._app.exit, GONE)
        finally:
            if supervisor is not None:
                supervisor.report_pause()
            if own is not None:
                os.close(own)

    def _read(self, keys: int, supervisor: SupervisorLink | None) -> Iterator[bytes]:
        """What was typed within a tick.

        Raises:
            OSError: the terminal is gone.
        """
        if not select.select([keys], [], [], _TICK)[0] and not (supervisor and supervisor.keys):
            return
        while supervisor is not None and supervisor.keys:  # they were typed before those that are there now
            yield supervisor.keys.popleft()
        try:
            data = os.read(keys, 4096)
        except BlockingIOError:
            data = None
        if supervisor is not None:
            supervisor.alive()
        if data:
            yield data
        elif data is not None and is_hung_up(keys):
            raise OSError(errno.EIO, "the terminal is gone")


class _Screen:
    """What the terminal is written through: writes to one that is gone are dropped, reading tells of it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.fileno = file.fileno

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            if not is_terminal_error(error):
                raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            if not is_terminal_error(error):
                raise
