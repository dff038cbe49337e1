"""The chat as the window knows it: engine events in, blocks and commands out. No widget, no thread.

The app applies events, asks for what to show (`take`), and submits what gathers in `outbox`. Commands are answered in
order, so `_waiting` (those not answered yet) says whom a `Failed` belongs to and when the next prompt may go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mlxkv import commands as cmd
from mlxkv import events as ev
from mlxkv.stats import fit
from mlxkv.text import clean
from mlxkv.tui.blocks import Block, Kind
from mlxkv.tui.chats import find_chat
from mlxkv.tui.splitter import split
from mlxkv.tui.turn import Turn
from mlxkv.tui.wording import loading_text, restored_text, spinner


@dataclass
class Change:
    """What the transcript must do: forget everything if `cleared`, append `settled`, show `tail` after it."""

    cleared: bool = False
    settled: list[Block] = field(default_factory=list)
    tail: list[Block] = field(default_factory=list)


class ChatState:
    """Everything on the screen but the prompt."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.outbox: deque[cmd.Command] = deque()
        self.queue: deque[str] = deque()  # prompts typed ahead
        self.model, self.title = "", ""
        self.status = ev.SessionStatus()
        self.turn: Turn | None = None
        self.stopped = False  # the engine is gone
        self.failed = False  # it went with an error
        self.picker: tuple[ev.ChatSummary, ...] | None = None  # chats to choose from, for the app to show
        self.is_empty = True  # nothing was said in this chat
        self._ready = self._open = False
        self._loading: ev.ModelLoading | None = None
        self._waiting: deque[cmd.Command] = deque()
        self._wanted = ""  # the chat to resume once the list is here
        self._change = Change()
        self._early: list[Block] = []  # said before a chat was open: must survive its opening
        self._kv_before = 0
        self._last: Kind | None = None  # what the transcript ends with

    # -- what the user does ------------------------------------------------------------------------------

    def submit(self, command: cmd.Command) -> None:
        """Ask the engine for something."""
        if self.stopped:
            self.error("The engine has stopped; quit and start mlxkv again.")
            return
        self._waiting.append(command)
        self.outbox.append(command)

    def prompt(self, text: str) -> None:
        """Send `text`, or queue it until the engine is free."""
        self.queue.append(text)  # as it is: what the model reads is the user's affair, what is shown is clean
        self._advance()

    def unqueue(self) -> str | None:
        """Take the last queued prompt back, to edit it."""
        return self.queue.pop() if self.queue else None

    def resume(self, wanted: str) -> None:
        """Open the chat called `wanted`, or let the user choose."""
        self._wanted = wanted
        self.submit(cmd.ListChats())

    def stop(self) -> bool:
        """Whether there was a reply to stop; the caller then tells the engine."""
        if self.turn is None:
            return False
        self.turn.stopping = True
        return True

    def say(self, text: str) -> None:
        """A dim line of ours."""
        self._add(Block(Kind.META, clean(text), tight=self._last is Kind.META))

    def error(self, text: str) -> None:
        self._add(Block(Kind.ERROR, clean(text)))

    # -- what the window shows ---------------------------------------------------------------------------

    def take(self) -> Change:
        """What changed in the transcript since the last call."""
        change, self._change = self._change, Change()
        change.tail = self.turn.tail() if self.turn else []
        return change

    @property
    def is_busy(self) -> bool:
        """Something moves, so that the activity line must be kept fresh."""
        return self.turn is not None or bool(self._waiting)

    @property
    def is_ready(self) -> bool:
        return self._ready

    @property
    def is_loading(self) -> bool:
        return any(isinstance(c, cmd.LoadModel) for c in self._waiting)

    def activity(self, width: int) -> tuple[str, str]:
        """The line above the prompt, left and right."""
        now = self.clock()
        if self.turn is not None:
            return self.turn.activity(now, width)
        if not self._waiting:
            return "", ""
        match self._waiting[0]:
            case cmd.LoadModel(name):
                return f"{spinner(now)} {fit(loading_text(self._loading or ev.ModelLoading(name, '')), width - 4)}", ""
            case cmd.OpenChat():
                return f"{spinner(now)} restoring the chat", ""
        return "", ""

    # -- what the engine says ----------------------------------------------------------------------------

    def apply(self, event: ev.EngineEvent) -> None:
        """Take one event; never raises for text, however hostile."""
        match event:
            case ev.TextDelta():
                self._settle(self._current().delta(event, self.clock()))
            case ev.PrefillProgress():
                self._current().prefill = event
            case ev.TurnStarted(text):
                if self.turn is None:  # not sent from here: a retry
                    self._begin(text)
            case ev.TurnFinished():
                self._finish(event)
            case ev.SessionStatus():
                self.status = event
            case ev.Notice(text):
                self.say(text)
            case ev.ModelLoading():
                self._loading = event
            case ev.ModelReady(name):
                self.model, self._ready, self._loading = clean(name), True, None
                self._answered(cmd.LoadModel)
                if not self._open and not any(isinstance(c, cmd.NewChat | cmd.OpenChat) for c in self._waiting):
                    self.submit(cmd.NewChat())
            case ev.ChatOpened():
                self._opened(event)
            case ev.ChatList(chats):
                self._answered(cmd.ListChats)
                self._choose(chats)
            case ev.Failed(text):
                self._failed(text)
            case ev.EngineStopped(error):
                self._engine_stopped(error)
        self._advance()

    def _opened(self, event: ev.ChatOpened) -> None:
        self._answered(cmd.NewChat, cmd.OpenChat)
        early, self._early, self._open = self._early, [], True
        self.title, self.turn, self.is_empty = clean(event.title), None, not event.messages
        self.status = ev.SessionStatus(memory_used=self.status.memory_used, memory_limit=self.status.memory_limit)
        self._kv_before, self._change = 0, Change(cleared=True, settled=early)
        for message in event.messages:
            text = clean(message.text)
            self._settle([Block(Kind.USER, text)] if message.role == "user" else split(text))
            if message.stats is not None:
                self._figures(message.stats)
        if event.restored_tokens:
            self._kv_before = event.restored_bytes
            text = restored_text(event.restored_tokens, event.restored_bytes, event.restore_s)
            self._settle([Block(Kind.META, text)])

    def _finish(self, event: ev.TurnFinished) -> None:
        turn, self.turn = self.turn, None
        self._answered(cmd.Send, cmd.Retry)
        if turn is not None:
            self._settle(turn.finish(self.clock()))
        if event.text and not (turn and turn.said_anything):
            self._settle(split(clean(event.text)))
        self._figures(event.stats)

    def _failed(self, text: str) -> None:
        failed = self._waiting.popleft() if self._waiting else None
        if isinstance(failed, cmd.NewChat) and not self._ready:
            return  # no model yet: a chat is opened as soon as there is one
        if self.turn is not None and (failed is None or isinstance(failed, cmd.Send | cmd.Retry)):
            self._settle(self.turn.finish(self.clock()))
            self.turn = None
        if isinstance(failed, cmd.LoadModel):
            self._loading = None
        self.error(text)

    def _engine_stopped(self, error: str | None) -> None:
        if self.turn is not None:
            self._settle(self.turn.finish(self.clock()))
        self.stopped, self.failed, self.turn = True, error is not None, None
        self._waiting.clear()
        self.error(f"The engine stopped: {error} · chat saved – mlxkv -c" if error else "The engine has stopped.")

    def _choose(self, chats: tuple[ev.ChatSummary, ...]) -> None:
        wanted, self._wanted = self._wanted, ""
        if not chats:
            self.say("No chats yet.")
        elif not wanted:
            self.picker = chats
        elif chat := find_chat(chats, wanted):
            self.submit(cmd.OpenChat(chat.id))
        else:
            self.say(f"No chat is called “{wanted}”. /resume lists them.")

    # -- helpers -----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Send the next prompt if nothing is in its way."""
        if not self.queue or self._waiting or self.turn or not (self._ready and self._open) or self.stopped:
            return
        text = self.queue.popleft()
        self.submit(cmd.Send(text, self.clock()))
        self._begin(text)

    def _begin(self, text: str) -> None:
        text = clean(text)
        self._settle([Block(Kind.USER, text)])
        self.title, self.is_empty = self.title or text.strip().split("\n")[0][:60], False
        self.turn = Turn(self.clock())

    def _current(self) -> Turn:
        if self.turn is None:
            self.turn = Turn(self.clock())
        return self.turn

    def _answered(self, *kinds: type[cmd.Command]) -> None:
        for command in self._waiting:
            if isinstance(command, kinds):
                self._waiting.remove(command)
                return

    def _figures(self, stats: ev.TurnStats) -> None:
        live = stats.cache_live_bytes
        added = live - self._kv_before if self._kv_before else 0
        self._settle([Block(Kind.STATS, "", stats=stats, kv_added=max(0, added))])
        self._kv_before = live

    def _settle(self, blocks: list[Block]) -> None:
        self._change.settled += blocks
        self._last = blocks[-1].kind if blocks else self._last

    def _add(self, block: Block) -> None:
        """One of our own lines; in the middle of a reply it goes above the unfinished block."""
        self._settle([block])
        if not self._open:
            self._early.append(block)
