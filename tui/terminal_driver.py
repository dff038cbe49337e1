"""Textual's terminal driver, made to survive a closed terminal and a hanging window. Input and output threads.

Textual's own spins on reads from a closed terminal, and fails at the first write to it. Keys that the supervising
process has read are taken from it. Keys typed before the window has a focus, which Textual would drop, wait until then.
"""

from __future__ import annotations

import errno
import os
import select
from codecs import getincrementaldecoder
from collections.abc import Iterator
from threading import Event
from typing import Any

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from mlxkv.system.supervisor import open_terminal, usual_mode
from mlxkv.system.supervisor_link import SupervisorLink
from mlxkv.system.terminal import GONE, detach_terminal, is_hung_up, is_terminal_error
from mlxkv.tui.terminal_signals import first_title, has_title, own_title, set_title

_TICK = 0.1  # seconds after which a lone Esc is a key, not an escape sequence


class WindowDriver(LinuxDriver):
    """Reads keys for a `ChatApp`, whose `supervisor` is the parent process that watches it, or None."""

    def __init__(self, app: Any, **more: Any) -> None:
        super().__init__(app, **more)
        self._file: Any = _TerminalFile(self._file)
        self._supervisor: SupervisorLink | None = app.supervisor
        self._takes_keys: Event = app.takes_keys
        self._typed_before = False
        self._title = ""

    def set_title(self, text: str) -> None:
        """Set the terminal's title; "" gives its own back."""
        if text != self._title and has_title(os.environ):
            self.write(own_title() if not text else set_title(text) if self._title else first_title(text))
            self._title = text

    def stop_application_mode(self) -> None:
        """Give the terminal back, with its own title."""
        if self._writer_thread is not None:
            self.set_title("")
        super().stop_application_mode()

    def start_application_mode(self) -> None:
        """Begin to draw and to read keys; what an editor or the shell gets back is the mode before `supervise`."""
        self._typed_before = bool(select.select([self.fileno], [], [], 0)[0])
        super().start_application_mode()
        if self.attrs_before is not None:
            self.attrs_before = usual_mode(self.attrs_before)

    def run_input_thread(self) -> None:
        """Read keys for the app until it stops the driver, or the terminal is closed."""
        while not self._takes_keys.wait(_TICK):
            if self.exit_event.is_set():
                return
        parser, decoder = XTermParser(self._debug), getincrementaldecoder("utf-8")(errors="replace")
        own = open_terminal(self.fileno)  # the supervisor may read pending keys before we do
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
        """Input of one tick.

        Raises:
            OSError: the terminal is closed.
        """
        if not select.select([keys], [], [], _TICK)[0] and not (supervisor and supervisor.keys):
            return
        while supervisor is not None and supervisor.keys:  # they were typed before those of the terminal
            yield supervisor.keys.popleft()
        try:
            data = os.read(keys, 4096)
        except BlockingIOError:
            data = None
        if supervisor is not None:
            supervisor.alive()
        if data and self._typed_before:  # in a mode in which Enter is a newline
            data, self._typed_before = data.replace(b"\n", b"\r"), False
        if data:
            yield data
        elif data is not None and is_hung_up(keys):
            raise OSError(errno.EIO, "the terminal is gone")


class _TerminalFile:
    """The terminal's output: writes to a closed one are dropped, the input thread reports it."""

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
