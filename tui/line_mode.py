"""Line mode: the chat without a window, for screen readers, dumb terminals and scripts of a terminal.

"User:" and "Assistant:" at the left edge, no colours, no spinner, no box drawing; lists are numbered. Runs on the
calling thread, which thereby owns MLX; it shares state and slash commands with the window.
"""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from mlxkv.config import Folders, Settings
from mlxkv.errors import ConfigError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.stats import bytes_text, stat_line
from mlxkv.system.keep_awake import KeepAwake
from mlxkv.system.terminal import close_before_ending, handle_interrupts
from mlxkv.text.clean import CONTEXT, clean
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands import slash_actions
from mlxkv.tui.state.commands.slash import Run, Unknown, help_rows, parse
from mlxkv.tui.state.labels import call_lines, no_answer
from mlxkv.tui.state.lists.choices import Listing, PutPrompt, RunSlash, SendAnyway, row_line
from mlxkv.tui.state.reports.reports import context_line
from mlxkv.tui.state.transcript.blocks import NO_ANSWER, ContextRow, Kind

_PROGRESS_SECONDS = 5.0  # between two lines about a prefill, a load or a download
_WIDTH = 72
_KEYS = (("Ctrl+C", "stop the reply, or quit"), ("Ctrl+\\", "answer now, while the model reasons"))
_LONG = 500  # characters of a message to type again


class DispatcherPort(Protocol):
    """The part of `Dispatcher` that line mode uses; tests replace it."""

    def handle(self, command: cmd.Command) -> None: ...

    def stop(self, *, closing: bool = False) -> None: ...

    def answer_now(self) -> None: ...

    def pause_download(self) -> None: ...

    def close(self) -> None: ...


MakeDispatcher = Callable[[Callable[[ev.EngineEvent], None]], DispatcherPort]


class PlainChat:
    """A chat on a plain terminal. `read` prompts for a line, as `input` does.

    `dispatcher` makes a dispatcher that emits its events to the argument.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings | SettingSources,
        dispatcher: MakeDispatcher,
        out: TextIO,
        read: Callable[[str], str],
    ) -> None:
        self._folders, self._out, self._read = folders, out, read
        self._state = ChatState(time.perf_counter, settings)
        self._events: queue.SimpleQueue[ev.EngineEvent] = queue.SimpleQueue()
        self._dispatcher = dispatcher(self._emit)
        self._awake = KeepAwake()
        self._next: str | None = None  # typed at a question but no answer to it
        self._before = ""  # the end of the reply so far
        self._progress_at = 0.0
        self._is_thinking = self._done = False
        self._is_replying = self._is_midline = False  # "Assistant: " is written; the line has not ended

    def run(self, first: Sequence[cmd.Command], ask: str | None = None) -> int:
        """Run until the user quits; returns the exit code."""
        with close_before_ending(self._end):
            return self._run(first, ask)

    def _end(self) -> None:
        """Stop the reply and quit; at the prompt, end its reading."""
        self._done = True
        self._dispatcher.stop(closing=True)
        if self._state.transcript.reply is None:
            raise EOFError

    def _run(self, first: Sequence[cmd.Command], ask: str | None) -> int:
        try:
            with self._interrupts():
                self._state.begin(first)
                self._answer()
                if ask:
                    self._line(f"User: {ask}")
                    self._state.prompt(ask)
                    self._answer()
                while not self._done:
                    try:
                        self._handle_line(self._ask())
                    except EOFError:
                        break
            self._line("")
            return 0
        finally:
            self._awake.set(False)
            self._dispatcher.close()

    # -- the user ----------------------------------------------------------------------------------------------------

    def _ask(self) -> str:
        """Read one message; a line that ends with a backslash continues on the next line."""
        text, self._next = self._next, None
        if text is not None:
            self._line(f"User: {text}")
        else:
            text = self._read("User: ")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self._read("")
        return text

    def _handle_line(self, text: str) -> None:
        if not text.strip():
            return
        match parse(text):
            case Unknown(message):
                self._line(message)
            case Run(name, argument):
                self._run_slash(name, argument)
            case prompt:
                if self._state.read_only:
                    self._dispatcher.handle(cmd.CheckChat())
                    self._answer()
                no_model = "" if self._state.is_ready else "No model is loaded; /model lists them."
                if refusal := self._state.refusal() or no_model:
                    self._line(refusal)
                else:
                    self._state.prompt(prompt.text)
        self._answer()

    def _run_slash(self, name: str, argument: str) -> None:
        if request := slash_actions.run(self._state, name, argument):
            self._perform(request)

    def _perform(self, request: slash_actions.UiRequest) -> None:
        match request:
            case slash_actions.UiRequest("quit"):
                self._done = True
            case slash_actions.UiRequest("help") | slash_actions.UiRequest("keys"):
                for usage, about in (*help_rows(), *_KEYS):
                    self._line(f"{usage}: {about}")
            case slash_actions.UiRequest("save", name):
                from mlxkv.config import save_setting

                try:
                    save_setting(self._folders, name, self._state.sources.config[name])
                except ConfigError as error:
                    self._line(f"Error: {error}")
            case slash_actions.UiRequest(name):
                self._line(f"/{name} needs the window.")

    def _choose(self, listing: Listing) -> None:
        """Show a numbered list and read a choice. An empty line chooses nothing; other text is the next message."""
        rows = [row for row in listing.rows if row.choice is not None]
        self._line(listing.title)
        for number, row in enumerate(rows, 1):
            self._line(f"{number}. {without_signs(row_line(row, _WIDTH)).rstrip()}")
        if not rows:
            self._line(listing.empty)
            return
        number = self._number(len(rows))
        if number is None:
            return
        match rows[number - 1].choice:
            case PutPrompt(text):
                self._line(f"Type: {text}")
            case SendAnyway() as choice:
                self._state.send_anyway(choice)
            case RunSlash(name, argument):
                self._run_slash(name, argument)
            case None:
                pass
            case command:
                self._state.submit(command)

    def _number(self, most: int) -> int | None:
        """Read a number from 1 to `most`; None if the answer is not a number."""
        while True:
            answer = self._read("Number (Enter for none): ")
            if not answer.strip().isdecimal():
                self._next = answer if answer.strip() else None
                return None
            if (digits := answer.strip().lstrip("0")) and len(digits) <= len(str(most)) and int(digits) <= most:
                return int(digits)
            self._line("Choose 1, or nothing." if most == 1 else f"Choose a number from 1 to {most}.")

    # -- the dispatcher ------------------------------------------------------------------------------------------------

    def _emit(self, event: ev.EngineEvent) -> None:
        if isinstance(event, ev.PullProgress | ev.SaveProgress):  # from another thread
            self._events.put(event)
        else:
            self._show(event)

    def _answer(self) -> None:
        """Run commands and show events until nothing is left to do."""
        state = self._state
        while True:
            while state.outbox:
                self._dispatcher.handle(state.outbox.popleft())
            while state.is_pulling or not self._events.empty():
                self._show(self._events.get())
            self._show_lines()
            if state.listing is not None:
                listing, state.listing = state.listing, None
                self._choose(listing)
            for text in filter(None, (state.put, state.returned)):
                self._line(f"To edit: {_shortened(text)}")
            state.put = state.returned = None
            if not state.outbox:
                return

    def _show(self, event: ev.EngineEvent) -> None:
        state = self._state
        state.apply(event)
        self._awake.set(state.settings.keep_awake and state.is_working)
        match event:
            case ev.TurnStarted():
                self._show_lines()
                self._before, self._is_thinking, self._is_replying, self._progress_at = (
                    "",
                    False,
                    False,
                    time.monotonic(),
                )
            case ev.TextDelta(text, thinking=thinking):
                if event.restarts:
                    self._end_line()
                    self._is_replying, self._before = False, ""
                self._begin_reply()
                if thinking and not self._is_thinking:
                    self._out.write("(all of the above was thinking) " if event.restarts else "(thinking) ")
                self._is_thinking = thinking
                if not thinking:
                    self._out.write(clean(text, self._before))
                    self._before = (self._before + text)[-CONTEXT:]
            case ev.TurnFinished(unanswered=True):
                self._line("Stopped before the reply began; the chat is unchanged.")
            case ev.TurnFinished(_, text, stats, thinking, can_be_quiet):
                self._begin_reply()
                self._end_line()
                if missing := no_answer(text, thinking, stats, can_be_quiet):
                    self._line(missing)
                for line in call_lines(event.tool_calls):
                    self._line(line)
                self._line(f"({without_signs(stat_line(stats))})")
            case ev.PrefillProgress(done, total) if self._is_time():
                self._line(f"(prefilled {done:,} of {total:,} tokens)")
            case ev.ModelLoading(name, phase, done, total) if total and self._is_time():
                self._line(f"({phase} {name}: {bytes_text(done)} of {bytes_text(total)})")
            case ev.PullProgress(name, ev.PullState.DOWNLOADING, done, total) if self._is_time():
                self._line(f"(downloading {name}: {bytes_text(done)} of {bytes_text(total)})")
            case ev.ModelTooLarge():
                from mlxkv.memory.preflight import alternatives

                self._line(f"{event.text}; when starting, {alternatives(event)}.")
            case ev.ModelReady(name):
                self._line(f"{name} is ready.")
            case ev.ChatOpened(messages=messages) if not state.is_compacting:  # they are written already
                self._show_messages(messages)
            case _:
                self._show_lines()
        self._out.flush()

    def _show_messages(self, messages: Sequence[ev.Message]) -> None:
        for message in messages:
            text = message.text
            if message.role == "assistant":
                text = text or no_answer(text, message.thinking, message.stats, message.can_be_quiet)
                text = "\n".join(filter(None, (text, *call_lines(message.tool_calls))))
            self._line(f"{message.role.title()}: {text}")

    def _show_lines(self) -> None:
        """Write the notices and errors of the state; messages are written as they arrive."""
        change = self._state.transcript.take_change()
        for block in change.settled:
            if block.kind is Kind.ERROR:
                self._line(f"Error: {block.text}")
            elif block.kind is Kind.META and block.info != NO_ANSWER:  # shown with the reply
                self._line(without_signs(block.text))

        report, self._state.report = self._state.report, None
        for row in report.rows if report else ():
            self._line(without_signs(context_line(row, _WIDTH) if isinstance(row, ContextRow) else row.text))

    def _begin_reply(self) -> None:
        if not self._is_replying:
            self._out.write("Assistant: ")
        self._is_replying = self._is_midline = True

    def _end_line(self) -> None:
        if self._is_midline:
            self._out.write("\n")
        self._is_midline = False

    def _is_time(self) -> bool:
        if time.monotonic() - self._progress_at < _PROGRESS_SECONDS:
            return False
        self._progress_at = time.monotonic()
        return True

    def _line(self, text: str) -> None:
        """Write a line, cleaned. Everything except the reply itself is written here."""
        self._end_line()
        self._out.write(f"{clean(text)}\n")
        self._out.flush()

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Let Ctrl+C stop a reply, a load or a download, or quit at the prompt; and Ctrl+\\ end the reasoning."""

        def stop(*_: object) -> None:
            if self._state.transcript.reply is None and not self._state.is_pulling and not self._state.is_loading_now:
                raise KeyboardInterrupt
            self._dispatcher.stop()
            self._dispatcher.pause_download()

        def answer(*_: object) -> None:
            if self._state.answer_now():  # else it came a moment too late, and ends nothing
                self._dispatcher.answer_now()

        before = signal.signal(signal.SIGQUIT, answer)
        try:
            with handle_interrupts(stop):
                yield
        finally:
            signal.signal(signal.SIGQUIT, before)


def _shortened(text: str) -> str:
    """A message to type again, cut if it is long: the terminal still shows the whole."""
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text):,} characters)"


_SIGNS = str.maketrans({"▌": "*", "⑂": "fork", "…": "...", **dict.fromkeys("├└●○█✓▲■")})


def without_signs(text: str) -> str:
    """Remove signs that a screen reader would spell out; the words next to them say the same."""
    return " ".join(text.translate(_SIGNS).split())
