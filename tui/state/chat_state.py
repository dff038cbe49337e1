"""The chat as the window knows it: engine events in, blocks and commands out. No widget, no thread.

The app applies events, asks for what to show (`take`), and submits what gathers in `outbox`. Commands are answered in
order, so the first of `_waiting` (those not answered yet) says whom a `Failed` is about, and when the next prompt goes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from mlxkv.config import Settings
from mlxkv.errors import SessionNotFoundError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.chat_names import chats_called
from mlxkv.protocol.events import PullState
from mlxkv.stats import evicted_text, fit
from mlxkv.text.clean import clean
from mlxkv.tui.state import answers
from mlxkv.tui.state import choice_lists as lists
from mlxkv.tui.state.attachments import TokenCounts
from mlxkv.tui.state.chat_list import latest_first
from mlxkv.tui.state.choices import Listing, SendAnyway
from mlxkv.tui.state.gauges import SpeedMeter
from mlxkv.tui.state.labels import advice, loading_text, pull_text, restoring_text, spinner
from mlxkv.tui.state.slash import as_typed
from mlxkv.tui.state.transcript import Story

_MOMENT = (cmd.SearchChats, cmd.ListModels, cmd.ExportChat, cmd.PlanCompact, cmd.Compact, cmd.CollectCache)
_TURNS = (cmd.Send, cmd.Retry, cmd.Edit, cmd.Continue)
_STOPPED = "The engine has stopped; quit and start mlxkv again."


class ChatState(Story):
    """Everything on the screen but the prompt. `today` is the clock that dates are told by, UNIX seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        settings: Settings | None = None,
        today: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock)
        self.today = today
        self.settings = settings or Settings()
        self.outbox: deque[cmd.Command] = deque()
        self.queue: deque[str] = deque()  # prompts typed ahead
        self.is_held = False  # they wait for the next prompt: the one before them came back
        self.model = ""
        self.session_id: str | None = None
        self.status = ev.SessionStatus()
        self.saving: int | None = None  # per cent of the rows that are on their way to the disk
        self.meter = SpeedMeter()
        self.stopped = False  # the engine is gone
        self.failed = False  # it went with an error
        self.read_only = ""  # who else has the chat open
        self.editing: int | None = None  # the message that the next prompt replaces
        self.renaming: str | None = None  # the chat that /rename is about, where it is not the one in front
        self.system = self.settings.system  # of new chats
        self.chats: tuple[ev.ChatSummary, ...] = ()
        self.models: tuple[ev.ModelCard, ...] = ()
        self.token_counts = TokenCounts(lambda key, text: self.outbox.append(cmd.CountTokens(key, text)))
        self.pull: ev.PullProgress | None = None
        # For the app to take: a list to show, a text for the prompt.
        self.listing: Listing | None = None
        self.put: str | None = None
        self.returned: str | None = None  # a message that was not sent, as it was typed
        self._ready = False
        self._loading: ev.ModelLoading | None = None
        self._waiting: deque[cmd.Command] = deque()
        self._later: cmd.OpenChat | None = None  # to be opened once there is a model
        self._wanted: str | None = None  # the chat to resume once the list is here; "" lets the user choose

    # -- what the user does ------------------------------------------------------------------------------

    def submit(self, command: cmd.Command) -> None:
        """Ask the engine for something."""
        if self.stopped:
            self.error(_STOPPED)
            return
        if isinstance(command, cmd.LoadModel) and command.kv_bits is not None:
            self.settings = replace(self.settings, kv_bits=command.kv_bits)
        if not isinstance(command, cmd.PausePull):
            self._waiting.append(command)
        self.outbox.append(command)

    def begin(self, commands: Iterable[cmd.Command]) -> None:
        """What the command line asks for; a list of chats is one to choose from."""
        for command in commands:
            if isinstance(command, cmd.ListChats):
                self.resume("")
            else:
                self.submit(command)

    def refusal(self) -> str:
        """Why nothing can be said now, "" when it can."""
        if self.stopped:
            return _STOPPED
        wait = "This chat is open in another mlxkv: close it there, or /fork continues in a copy."
        return wait if self.read_only else ""

    def prompt(self, text: str) -> None:
        """Send `text`, or queue it until the engine is free."""
        was_held, self.is_held = self.is_held, False
        if self.editing is not None:
            turn, self.editing = self.editing, None
            self.submit(cmd.Edit(turn, text, self.clock()))
            return
        add = self.queue.appendleft if was_held else self.queue.append
        add(text)  # as it is: what the model reads is the user's affair, what is shown is clean
        self._advance()

    def send_anyway(self, choice: SendAnyway) -> None:
        """What the user has chosen for a message that is too long for the window."""
        self.is_held, self.editing, self.returned = False, None, None
        if choice.window:
            self.settings = replace(self.settings, window=choice.window)
            self.submit(cmd.ChangeSettings(self.settings))
        if choice.turn is not None:
            self.submit(cmd.Edit(choice.turn, choice.text, self.clock(), anyway=not choice.window))
        elif choice.window:
            self.queue.appendleft(choice.text)  # once the window is larger
        else:
            self.submit(cmd.Send(choice.text, self.clock(), anyway=True))
            self.begin_turn(choice.text)

    def unqueue(self) -> str | None:
        """Take the last queued prompt back, to edit it: as it was typed."""
        text = as_typed(self.queue.pop()) if self.queue else None
        self.is_held = self.is_held and bool(self.queue)
        return text

    def resume(self, wanted: str) -> None:
        """Open the chat called `wanted`, or let the user choose."""
        self._wanted = wanted
        self.submit(cmd.ListChats())

    def edit(self, message: int | None = None) -> bool:
        """Put a message of the user's (None: the last) into the prompt; the next prompt replaces it."""
        mine = [i for i, m in enumerate(self.messages) if m.role == "user"]
        wanted = mine[-1] if message is None and mine else message
        if wanted not in mine:
            return False
        self.editing, self.put = wanted, as_typed(self.messages[wanted].text)
        return True

    def other_version(self, message: int, step: int) -> bool:
        """Show the version before (-1) or after (1) of a message; whether there is one."""
        found = self.version(message, step)
        if found is not None:
            self.submit(cmd.OpenChat(found.session_id))
        return found is not None

    def show(self, listing: Listing) -> None:
        self.listing = listing

    def stop(self) -> bool:
        """Whether there was a reply or a load to stop; the caller then tells the engine."""
        if self.turn is not None:
            self.turn.stopping = True
        return self.turn is not None or self.loads_now

    def pause(self) -> bool:
        """Whether there was a download to pause."""
        if self.pull is None or self.pull.state not in ("asking", "downloading"):
            return False
        self.submit(cmd.PausePull())
        return True

    # -- what the window shows ---------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Something moves, so that the activity line must be kept fresh."""
        return self.turn is not None or bool(self._waiting) or self.is_pulling

    @property
    def is_ready(self) -> bool:
        return self._ready

    @property
    def is_loading(self) -> bool:
        return any(isinstance(c, cmd.LoadModel) for c in self._waiting)

    @property
    def loads_now(self) -> bool:
        """The engine is at it, and nothing else is before it."""
        return bool(self._waiting) and isinstance(self._waiting[0], cmd.LoadModel)

    @property
    def is_compacting(self) -> bool:
        return bool(self._waiting) and isinstance(self._waiting[0], cmd.Compact)

    @property
    def is_pulling(self) -> bool:
        return self.pull is not None and self.pull.state in (PullState.ASKING, PullState.DOWNLOADING)

    def activity(self, width: int) -> tuple[str, str]:
        """The line above the prompt, left and right."""
        now = self.clock()
        if self.turn is not None:
            return self.turn.activity(now, width)
        waiting, room = (self._waiting[0] if self._waiting else None), width - 4
        match waiting:
            case cmd.LoadModel(name):
                hint = "esc to stop"
                text = fit(loading_text(self._loading or ev.ModelLoading(name)), room - len(hint))
            case cmd.OpenChat(session_id):
                chat = next((chat for chat in self.chats if chat.id == session_id), None)
                text, hint = restoring_text(chat), ""
            case command if isinstance(command, _MOMENT):
                text, hint = "one moment", ""
            case _ if self.pull is not None and self.is_pulling:
                hint = "esc to pause"
                text = fit(pull_text(self.pull), room - len(hint))
            case _ if self.editing is not None:
                number = self._question_number(self.editing)
                return f"editing question {number}: ⏎ asks again, the old branch stays", "esc to leave it"
            case _:
                return "", ""
        return f"{spinner(now)} {text}", hint

    # -- what the engine says ----------------------------------------------------------------------------

    def apply(self, event: ev.EngineEvent) -> None:
        """Take one event; never raises for text, however hostile."""
        self.meter.record(event, self.clock())
        match event:
            case ev.TextDelta() | ev.PrefillProgress():
                self.hear(event)
            case ev.TurnStarted(text):
                if self.turn is None:  # not sent from here: a retry
                    self.begin_turn(text)
            case ev.TurnFinished() if event.unanswered:
                self._return(event.returned)
            case ev.TurnFinished():
                self.answered(*_TURNS)
                self.finish_turn(event)
            case ev.MessageTooLong(text, overflow):
                turn = self._return(text)
                self.show(lists.too_long_list(text, turn, overflow))
            case ev.SessionStatus():
                self.status = event
                self.session_id = event.session_id or self.session_id  # a new chat has one after its first message
            case ev.SaveProgress(done, total):
                self.saving = 100 * done // total if done < total else None
            case ev.NoAnswer():
                pass  # told once the reply has ended, below its reasoning
            case ev.PromptEvicted():
                self.note(evicted_text(event.overflow, "/set window {}".format))
            case ev.Notice(text):
                self.note(text)
            case ev.ModelLoading():
                self._loading = event
            case ev.ModelReady(name):
                self.model, self._ready, self._loading = clean(name), True, None
                self.token_counts.reset()
                self.answered(cmd.LoadModel)
                if self._later is not None:
                    later, self._later = self._later, None
                    self.submit(later)
                elif not self._is_open and not any(isinstance(c, cmd.NewChat | cmd.OpenChat) for c in self._waiting):
                    self.submit(cmd.NewChat())
            case ev.ChatOpened():
                self._opened(event)
            case ev.ChatReleased(session_id):
                again = cmd.OpenChat(session_id)
                if self.read_only and session_id == self.session_id and again not in self._waiting:
                    self.submit(again)
            case ev.Versions(messages, first):
                self.versions += [()] * (first - len(self.versions))
                self.versions[first:] = messages
            case ev.Failed():
                self._failed(event)
            case ev.EngineStopped(error):
                self._engine_stopped(error)
            case ev.PullProgress():
                self._pulled(event)
            case _:
                answers.take(self, event)
        self._advance()

    def _opened(self, event: ev.ChatOpened) -> None:
        self.answered(cmd.NewChat, cmd.OpenChat, cmd.Rewind, cmd.Fork)
        was_read = bool(self.read_only) and event.session_id == self.session_id
        is_set_anew = bool(self._waiting) and isinstance(self._waiting[0], cmd.ChangeSettings | cmd.SetSystem)
        self.show_chat(event, stays=was_read, keeps_told=is_set_anew)
        self.session_id, self.read_only = event.session_id, clean(event.read_only)
        self.editing, self.put = None, as_typed(event.prompt) or self.put
        kept = self.status
        self.status = ev.SessionStatus(
            memory_used=kept.memory_used, memory_limit=kept.memory_limit, weight_bytes=kept.weight_bytes,
            disk_bytes=kept.disk_bytes, disk_limit=kept.disk_limit,
        )  # fmt: skip
        if self.read_only:
            self.note(f"{self.read_only} Read-only here until that ends: /fork continues in a copy.")
        elif was_read:
            self.note("The other mlxkv has closed this chat: it can be continued here.")

    def _return(self, text: str) -> int | None:
        """The turn in front came to nothing: `text` is the user's again. Which message it was to replace, if one."""
        command = self._waiting[0] if self._waiting else None
        self.answered(*_TURNS)
        self.turn = None
        if isinstance(command, cmd.Edit):
            self.editing = command.turn
        elif text and self.messages and self.messages[-1].role == "user":
            self.take_back()
        if not self.messages:
            self.session_id = None
        self.is_held = bool(self.queue)
        self.returned = as_typed(text) if text else self.returned
        return self.editing if isinstance(command, cmd.Edit) else None

    def _failed(self, event: ev.Failed) -> None:
        failed = self._waiting.popleft() if self._waiting else None
        if isinstance(failed, cmd.NewChat) and not self._ready:
            return  # no model yet: a chat is opened as soon as there is one
        if isinstance(failed, cmd.OpenChat) and not self._ready and not self.is_loading:
            self._later = failed
            self.say("The chat opens when there is a model to go on with: /model lists them.")
            return
        is_reply = self.turn is not None and (failed is None or isinstance(failed, (*_TURNS, cmd.Compact)))
        if event.returned and isinstance(failed, cmd.Send | cmd.Edit):
            self._waiting.appendleft(failed)
            self._return(event.returned)
        elif is_reply:
            self.break_off()
        if isinstance(failed, cmd.LoadModel):
            self._loading = None
            if failed.kv_bits is not None:
                self.settings = replace(self.settings, kv_bits=None)
        if event.kind is ev.FailureKind.STOPPED:
            self.say(event.text)
        else:
            self.error(event.text + advice(event.kind), is_answer=not is_reply)
        if isinstance(failed, cmd.OpenChat) and self._ready and not self._is_open:
            self.submit(cmd.NewChat())  # else what is written would wait for ever

    def _engine_stopped(self, error: str | None) -> None:
        self.break_off()
        self.stopped, self.failed = True, error is not None
        self._waiting.clear()
        self.error(f"The engine stopped: {error} · chat saved – mlxkv -c" if error else "The engine has stopped.")

    def _pulled(self, event: ev.PullProgress) -> None:
        is_asked = self.pull is None or self.pull.state is not PullState.DOWNLOADING
        self.pull = event
        name = clean(event.name)
        match event.state:
            case PullState.ASKING:
                self.answered(cmd.Pull, cmd.LoadModel)
            case PullState.PAUSED:
                self.say(f"{name}: paused, what has arrived is kept. /pull {name} goes on.")
            case PullState.FAILED:
                self.error(event.text, is_answer=is_asked)
            case PullState.TOO_LARGE if event.too_large is not None:
                self.show(lists.too_large_list(event.too_large))
            case PullState.DONE if event.then_load:
                self.submit(cmd.LoadModel(event.name))
            case PullState.DONE:
                self.note(f"{name} is on this machine now; /model {name} loads it.")

    def choose(self, chats: tuple[ev.ChatSummary, ...]) -> None:
        """Do what the list of chats was wanted for."""
        wanted, self._wanted = self._wanted, None
        if wanted is None:  # the sidebar wanted to know
            return
        if not chats:
            self.say("No chats yet.")
        elif not wanted:
            self.show(lists.chats_list(chats, self.today(), self.session_id))
        else:
            try:
                fits = chats_called(latest_first(chats), wanted)
            except SessionNotFoundError:
                self.say(f"No chat is called “{wanted}”. /resume lists them.")
                return
            if len(fits) == 1:
                self.submit(cmd.OpenChat(fits[0].id))
            else:
                self.show(lists.chats_list(fits, self.today(), self.session_id))

    # -- helpers -----------------------------------------------------------------------------------------

    def _question_number(self, message: int) -> int:
        """Which question a message of the user's is, from 1: what users are told, and what they type."""
        return sum(m.role == "user" for m in self.messages[: message + 1])

    def _advance(self) -> None:
        """Send the next prompt if nothing is in its way."""
        if (
            not self.queue
            or self.is_held
            or self._waiting
            or self.turn
            or not (self._ready and self._is_open)
            or self.refusal()
        ):
            return
        text = self.queue.popleft()
        self.submit(cmd.Send(text, self.clock()))
        self.begin_turn(text)

    def answered(self, *kinds: type[cmd.Command]) -> None:
        """The command in front is done, if it is one of these."""
        if self._waiting and isinstance(self._waiting[0], kinds):
            self._waiting.popleft()
