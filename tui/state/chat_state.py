"""State of the chat window: engine events in, blocks and commands out. No widget; UI thread.

The app applies events, asks the transcript what changed, and submits the commands in `outbox`. The engine answers
commands in order, so the first of `_waiting` is the one that a `Failed` event is about. What only reads has an order of
its own, `_asked`, since it is answered during a reply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlxkv.config import Settings
from mlxkv.errors import SessionNotFoundError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.chat_names import chats_called
from mlxkv.protocol.events import PullState
from mlxkv.protocol.status import SaveState
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.stats import evicted_text, fit
from mlxkv.text.clean import clean
from mlxkv.tui.state.commands.retry import RetryWith
from mlxkv.tui.state.commands.slash import as_typed
from mlxkv.tui.state.gauges import SpeedMeter
from mlxkv.tui.state.labels import advice, loading_text, pull_text, restoring_text, short_name, spinner
from mlxkv.tui.state.lists import choice_lists
from mlxkv.tui.state.lists.chat_list import latest_first
from mlxkv.tui.state.lists.choices import Listing, SendAnyway
from mlxkv.tui.state.prompt.attachments import TokenCounts
from mlxkv.tui.state.reports.report import Report
from mlxkv.tui.state.results import handle_result
from mlxkv.tui.state.transcript.transcript import TranscriptModel

_BRIEF = (cmd.SearchChats, cmd.ListModels, cmd.ExportChat, cmd.PlanCompact, cmd.Compact, cmd.CollectCache)
_TURNS = (cmd.Send, cmd.Retry, cmd.Edit, cmd.Continue)
_GOES_ON = (*_TURNS, cmd.LoadModel, cmd.NewChat, cmd.OpenChat, cmd.Rewind, cmd.Fork, cmd.Compact)
_STOPPED = "The engine has stopped; quit and start mlxkv again."


class ChatState:
    """Everything on the screen except the prompt. `clock` gives seconds, `today` UNIX seconds for dates."""

    def __init__(
        self,
        clock: Callable[[], float],
        settings: Settings | SettingSources | None = None,
        today: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.transcript = TranscriptModel(clock)
        self.today = today
        self.sources = SettingSources.of(settings or Settings())
        self.outbox: deque[cmd.Command] = deque()
        self.queue: deque[str] = deque()  # prompts to send once the engine is free
        self.is_held = False  # the queue waits for the next prompt, as the one before it was returned
        self.model = self.model_name = ""  # as shown, and as loaded
        self.adapter = ""  # of the loaded model
        self.adapters: dict[str, str | None] = {}  # asked for with each model that was to be loaded
        self.session_id: str | None = None
        self.status = ev.SessionStatus()
        self.saving: int | None = None  # percent of the KV rows written, while they are saved
        self.meter = SpeedMeter()
        self.stopped = False  # the engine has stopped
        self.failed = False  # it stopped with an error
        self.read_only = ""  # a notice that another process has the chat open
        self.editing: int | None = None  # the message that the next prompt replaces
        self.renaming: str | None = None  # the chat that /rename renames, if not the open one
        self.chats: tuple[ev.ChatSummary, ...] = ()
        self.models: tuple[ev.ModelCard, ...] = ()
        self.token_counts = TokenCounts(lambda key, text: self.outbox.append(cmd.CountTokens(key, text)))
        self.pull: ev.PullProgress | None = None
        # For the app to take: a list or a report to show, a text for the prompt, a message that was not sent.
        self.listing: Listing | None = None
        self.report: Report | None = None
        self.put: str | None = None
        self.returned: str | None = None  # as typed
        self.is_ready = False  # a model is loaded
        self._loading: ev.ModelLoading | None = None
        self._waiting: deque[cmd.Command] = deque()
        self._asked: deque[cmd.Command] = deque()  # of `cmd.READS`
        self._later: cmd.OpenChat | None = None  # to open once a model is loaded
        self._then: tuple[str, cmd.Retry] | None = None  # to send once this model is downloaded and loaded
        self._said_next = ""  # a notice for the turn that begins next
        self._wanted: str | None = None  # the chat to resume when the list arrives; "" shows the list

    # -- commands of the user ------------------------------------------------------------------------------

    def submit(self, command: cmd.Command) -> None:
        """Queue a command for the engine."""
        if self.stopped:
            self.transcript.add_error(_STOPPED)
            return
        if isinstance(command, cmd.LoadModel) and command.kv_bits is not None:
            self.sources = self.sources.with_option({"kv_bits": command.kv_bits})
        if isinstance(command, cmd.LoadModel):
            self.adapters[command.name] = command.adapter
        if isinstance(command, _GOES_ON):
            self._then = None
        if not isinstance(command, cmd.PausePull):
            (self._asked if isinstance(command, cmd.READS) else self._waiting).append(command)
        self.outbox.append(command)

    @property
    def settings(self) -> Settings:
        """The settings in force in the open chat."""
        return self.sources.settings

    def change(self, values: Mapping[str, Any], *, for_all: bool = False, dropped: Iterable[str] = ()) -> None:
        """Change settings of this chat, or the defaults of all; `dropped`: this chat has no own value any more."""
        sources = self.sources.with_default(values) if for_all else self.sources.with_chat(values)
        self.sources = sources.without_chat(dropped)
        self.submit(cmd.ChangeSettings(values, for_all, tuple(dropped)))

    def begin(self, commands: Iterable[cmd.Command]) -> None:
        """Submit the commands of the command line; `ListChats` shows the list to choose from."""
        for command in commands:
            if isinstance(command, cmd.ListChats):
                self.resume("")
            else:
                self.submit(command)

    def refusal(self) -> str:
        """Why no message can be sent now; "" if one can."""
        if self.stopped:
            return _STOPPED
        locked = "This chat is open in another mlxkv: close it there, or /fork continues in a copy."
        return locked if self.read_only else ""

    def prompt(self, text: str) -> None:
        """Send `text`, or queue it until the engine is free. In edit mode it replaces the edited message."""
        was_held, self.is_held = self.is_held, False
        if self.editing is not None:
            turn, self.editing = self.editing, None
            self.submit(cmd.Edit(turn, text, self.clock()))
            return
        (self.queue.appendleft if was_held else self.queue.append)(text)  # not cleaned: the model gets what was typed
        self._send_next()

    def send_anyway(self, choice: SendAnyway) -> None:
        """Send a message that is too long for the window, in the way the user chose."""
        self.is_held, self.editing, self.returned = False, None, None
        if choice.window:
            self.change({"window": choice.window})
        if choice.turn is not None:
            self.submit(cmd.Edit(choice.turn, choice.text, self.clock(), anyway=not choice.window))
        elif choice.window:
            self.queue.appendleft(choice.text)  # it is sent once the window is larger
        else:
            self.submit(cmd.Send(choice.text, self.clock(), anyway=True))
            self.transcript.begin_turn(choice.text)

    def unqueue(self) -> str | None:
        """Remove the last queued prompt and return it as typed."""
        text = as_typed(self.queue.pop()) if self.queue else None
        self.is_held = self.is_held and bool(self.queue)
        return text

    def resume(self, wanted: str) -> None:
        """Open the chat whose title or id matches `wanted`; "" lists all chats."""
        self._wanted = wanted
        self.submit(cmd.ListChats())

    def edit(self, message: int | None = None) -> bool:
        """Put a user message (None: the last) into the prompt for editing; False if there is none."""
        mine = [i for i, m in enumerate(self.transcript.messages) if m.role == "user"]
        wanted = mine[-1] if message is None and mine else message
        if wanted not in mine:
            return False
        self.editing, self.put = wanted, as_typed(self.transcript.messages[wanted].text)
        return True

    def retry_with(self, wanted: RetryWith) -> None:
        """Ask the last question again with other settings, or once another model is loaded."""
        retry = cmd.Retry(None, wanted.changes)
        if wanted.model in ("", self.model_name):
            self.submit(retry)
        else:
            self.submit(cmd.LoadModel(wanted.model, then=retry))

    def open_version(self, message: int, step: int) -> bool:
        """Open the previous (-1) or next (1) version of a message; False if there is none."""
        found = self.transcript.version(message, step)
        if found is not None:
            self.submit(cmd.OpenChat(found.session_id))
        return found is not None

    def stop(self) -> bool:
        """Mark the reply as stopping. True if there is a reply or a load that the caller must stop."""
        if self.transcript.reply is not None:
            self.transcript.reply.stopping = True
        return self.transcript.reply is not None or self.is_loading_now

    def answer_now(self) -> bool:
        """Whether the model is reasoning, which the caller must end."""
        reply = self.transcript.reply
        if reply is None or not reply.is_thinking or reply.stopping:
            return False
        reply.answering = True
        return True

    # -- properties for the window ---------------------------------------------------------------------------

    @property
    def saved_session(self) -> str | None:
        """The open chat's session, if it is saved and has messages."""
        is_saved = self.status.saved in (SaveState.SAVED, SaveState.SAVING, SaveState.NOT_SAVED)
        return self.session_id if is_saved and not self.transcript.is_empty else None

    @property
    def is_busy(self) -> bool:
        """Whether the activity line is animated."""
        return self.transcript.reply is not None or bool(self._waiting or self._asked) or self.is_pulling

    @property
    def is_working(self) -> bool:
        """Whether the model or a download runs."""
        return self.transcript.reply is not None or self.is_loading_now or self.is_compacting or self.is_pulling

    @property
    def is_loading(self) -> bool:
        return any(isinstance(c, cmd.LoadModel) for c in self._waiting)

    @property
    def is_loading_now(self) -> bool:
        """Whether a load is in progress, not a queued one."""
        return self._is_running(cmd.LoadModel) or self._loading is not None

    @property
    def loading(self) -> ev.ModelLoading | None:
        """How far the load in progress is."""
        return self._loading

    @property
    def is_compacting(self) -> bool:
        return self._is_running(cmd.Compact)

    @property
    def is_pulling(self) -> bool:
        return self.pull is not None and self.pull.state in (PullState.ASKING, PullState.DOWNLOADING)

    def activity(self, width: int) -> tuple[str, str]:
        """The line above the prompt: text and key hint."""
        now = self.clock()
        if self.transcript.reply is not None and self._loading is None:
            return self.transcript.reply.activity(now, width)
        waiting, room = next(iter(self._waiting or self._asked), None), width - 4
        match waiting:
            case cmd.LoadModel(name):
                hint = "esc to stop"
                text = fit(loading_text(self._loading or ev.ModelLoading(name)), room - len(hint))
            case _ if self._loading is not None:  # again, for what waits
                hint = "esc to stop"
                text = fit(loading_text(self._loading), room - len(hint))
            case cmd.OpenChat(session_id):
                chat = next((chat for chat in self.chats if chat.id == session_id), None)
                text, hint = restoring_text(chat), ""
            case command if isinstance(command, _BRIEF):
                text, hint = "one moment", ""
            case _ if self.pull is not None and self.is_pulling:
                hint = "esc to pause"
                text = fit(pull_text(self.pull), room - len(hint))
            case _ if self.editing is not None:
                number = sum(m.role == "user" for m in self.transcript.messages[: self.editing + 1])
                return f"editing question {number}: ⏎ asks again, the old branch stays", "esc to cancel"
            case _:
                return "", ""
        return f"{spinner(now)} {text}", hint

    # -- engine events ----------------------------------------------------------------------------

    def apply(self, event: ev.EngineEvent) -> None:
        """Apply one event; never raises, whatever its text."""
        self.meter.record(event, self.clock())
        match event:
            case ev.TextDelta() | ev.PrefillProgress():
                self.transcript.update_reply(event)
            case ev.TurnStarted(text):
                if self.transcript.reply is None:  # not yet begun by `_send_next`, e.g. a retry
                    self.transcript.begin_turn(text)
                if self._said_next:
                    self.transcript.add_notice(self._said_next)
                    self._said_next = ""
            case ev.TurnFinished() if event.unanswered:
                self._return_message(event.returned)
            case ev.TurnFinished():
                self.complete(*_TURNS)
                self.transcript.finish_turn(event)
            case ev.MessageTooLong(text, overflow):
                turn = self._return_message(text)
                self.listing = choice_lists.too_long_list(text, turn, overflow)
            case ev.SessionStatus():
                self.status = event
                self.transcript.show_unattended(event.unattended)
                self.session_id = event.session_id or self.session_id  # a new chat has one after its first message
            case ev.SaveProgress(done, total):
                self.saving = 100 * done // total if done < total else None
            case ev.NoAnswer():
                pass  # shown when the reply has ended, below its reasoning
            case ev.PromptEvicted():
                self.transcript.add_notice(evicted_text(event.overflow, "/set window {}".format))
            case ev.Notice(text):
                self.transcript.add_notice(text)
            case ev.ModelLoading():
                self._loading = event
            case ev.ModelReady(name):
                self._note_adapter(event)
                self.model, self.model_name, self.is_ready, self._loading = clean(name), name, True, None
                self.token_counts.reset()
                then = self.retry_after_load
                self.complete(cmd.LoadModel)
                if then is not None:
                    self._said_next = f"{short_name(self.model)} is loaded: it answers from here on."
                    self.submit(then)
                elif self._later is not None:
                    later, self._later = self._later, None
                    self.submit(later)
                elif not self.transcript.is_open and not any(
                    isinstance(c, cmd.NewChat | cmd.OpenChat) for c in self._waiting
                ):
                    self.submit(cmd.NewChat())
            case ev.ChatOpened():
                self._open_chat(event)
            case ev.ChatReleased(session_id):
                again = cmd.OpenChat(session_id)
                if self.read_only and session_id == self.session_id and again not in self._waiting:
                    self.submit(again)
            case ev.Versions(messages, first):
                self.transcript.versions += [()] * (first - len(self.transcript.versions))
                self.transcript.versions[first:] = messages
            case ev.Failed():
                self._handle_failure(event)
            case ev.EngineStopped(error):
                self._handle_engine_stop(error)
            case ev.PullProgress():
                self._update_download(event)
            case _:
                handle_result(self, event)
        self._send_next()

    @property
    def retry_after_load(self) -> cmd.Retry | None:
        """What `/retry` wants of the model that is loaded now."""
        command = self._waiting[0] if self._waiting else None
        return command.then if isinstance(command, cmd.LoadModel) else None

    @property
    def _forked(self) -> str:
        """What `/fork` copies, in words; "" if it is not running."""
        command = self._waiting[0] if self._waiting else None
        if not isinstance(command, cmd.Fork) or not self.transcript.title:
            return ""
        part = "" if command.turn is None else "the beginning of "
        return f"{part}“{self.transcript.title}”"

    def _note_adapter(self, event: ev.ModelReady) -> None:
        """Say that the model has another adapter now than it had."""
        if self.is_ready and event.name == self.model_name and event.adapter != self.adapter:
            now = f"with the adapter {clean(event.adapter)}" if event.adapter else "without an adapter"
            again = "" if self.transcript.is_empty else "; your next message prefills this chat again"
            self.transcript.add_line(f"{self.model} is loaded {now}{again}.")
        self.adapter = event.adapter

    def _open_chat(self, event: ev.ChatOpened) -> None:
        forked = self._forked
        self.complete(cmd.NewChat, cmd.OpenChat, cmd.Rewind, cmd.Fork)
        was_read_only = bool(self.read_only) and event.session_id == self.session_id
        is_changed = self._is_running(cmd.ChangeSettings, cmd.TakePreset, cmd.LoadModel)
        self.transcript.show_chat(event, keeps_position=was_read_only, keeps_notices=is_changed)
        self.session_id, self.read_only = event.session_id, clean(event.read_only)
        self.editing, self.put = None, as_typed(event.prompt) or self.put
        old = self.status
        self.status = ev.SessionStatus(
            memory_used=old.memory_used, memory_limit=old.memory_limit, weight_bytes=old.weight_bytes,
            disk_bytes=old.disk_bytes, disk_limit=old.disk_limit,
        )  # fmt: skip
        if self.read_only:
            self.transcript.add_notice(
                "This chat is open in another mlxkv. Read-only until it is closed there; /fork continues in a copy."
            )
        elif was_read_only:
            self.transcript.add_notice("The other mlxkv has closed this chat: you can continue here.")
        if forked:
            is_saved = event.session_id is not None
            original = "is unchanged, and /tree leads back to it" if is_saved else "was not saved, so it is gone"
            self.transcript.add_line(f"A copy of {forked} was made and is open now. The original {original}.")

    def _return_message(self, text: str) -> int | None:
        """Undo a turn without a reply: put `text` back into the prompt. Returns the message to replace, if any."""
        command = self._waiting[0] if self._waiting else None
        self.complete(*_TURNS)
        self.transcript.reply = None
        if isinstance(command, cmd.Edit):
            self.editing = command.turn
        elif text and self.transcript.messages and self.transcript.messages[-1].role == "user":
            self.transcript.remove_last_message()
        if not self.transcript.messages:
            self.session_id = None
        self.is_held = bool(self.queue)
        self.returned = as_typed(text) if text else self.returned
        return self.editing if isinstance(command, cmd.Edit) else None

    def _handle_failure(self, event: ev.Failed) -> None:
        commands = self._asked if event.is_read else self._waiting
        failed = commands.popleft() if commands else None
        if isinstance(failed, cmd.NewChat) and not self.is_ready:
            return  # no model yet; a chat is opened once one is loaded
        if isinstance(failed, cmd.OpenChat) and not self.is_ready and not self.is_loading:
            self._later = failed
            self.transcript.add_line("The chat opens once a model is loaded; /model lists them.")
            return
        is_of_reply = failed is None or isinstance(failed, (*_TURNS, cmd.Compact))
        is_reply = self.transcript.reply is not None and is_of_reply and not event.is_read
        if event.returned and isinstance(failed, cmd.Send | cmd.Edit):
            self._waiting.appendleft(failed)
            self._return_message(event.returned)
        elif is_reply:
            self.transcript.end_reply()
        self._loading = None
        if isinstance(failed, cmd.LoadModel) and failed.kv_bits is not None:
            self.sources = self.sources.without_option(["kv_bits"])
        if event.kind is ev.FailureKind.STOPPED:
            self.transcript.add_line(event.text)
        else:
            self.transcript.add_error(event.text + advice(event.kind), is_answer=not is_reply)
        if isinstance(failed, cmd.OpenChat) and self.is_ready and not self.transcript.is_open:
            self.submit(cmd.NewChat())  # otherwise queued prompts would never be sent

    def _handle_engine_stop(self, error: str | None) -> None:
        self.transcript.end_reply()
        self.stopped, self.failed = True, error is not None
        self._waiting.clear()
        self._asked.clear()
        self.transcript.add_error(
            f"The engine stopped: {error} · chat saved – mlxkv -c" if error else "The engine has stopped."
        )

    def _update_download(self, event: ev.PullProgress) -> None:
        is_new = self.pull is None or self.pull.state is not PullState.DOWNLOADING
        self.pull = event
        name = clean(event.name)
        match event.state:
            case PullState.ASKING:
                if (then := self.retry_after_load) is not None:
                    self._then = event.name, then
                self.complete(cmd.Pull, cmd.LoadModel)
            case PullState.PAUSED:
                self.transcript.add_line(f"{name}: download paused. /pull {name} continues it.")
            case PullState.FAILED:
                self.transcript.add_error(event.text, is_answer=is_new)
            case PullState.TOO_LARGE if event.too_large is not None:
                then = self._then_of(event.name)
                self.listing = choice_lists.too_large_list(event.too_large, self.adapters.get(event.name), then)
            case PullState.DONE if event.then_load:
                then = self._then_of(event.name)
                self.submit(cmd.LoadModel(event.name, adapter=self.adapters.get(event.name), then=then))
            case PullState.DONE:
                self.transcript.add_notice(f"{name} is downloaded; /model {name} loads it.")

    def _then_of(self, name: str) -> cmd.Retry | None:
        return self._then[1] if self._then is not None and self._then[0] == name else None

    def use_chat_list(self, chats: tuple[ev.ChatSummary, ...]) -> None:
        """Complete `resume`: open the chat that was wanted, or show a list to choose from."""
        wanted, self._wanted = self._wanted, None
        if wanted is None:  # requested by the sidebar
            return
        if not (chats if wanted else self.chats):
            self.transcript.add_line("No chats yet.")
        elif not wanted:
            self.listing = choice_lists.chats_list(self.chats, self.today(), self.session_id)
        else:
            try:
                fits = chats_called(latest_first(chats), wanted)
            except SessionNotFoundError:
                self.transcript.add_line(f"No chat is called “{wanted}”. /resume lists them.")
                return
            if len(fits) == 1:
                self.submit(cmd.OpenChat(fits[0].id))
            else:
                self.listing = choice_lists.chats_list(fits, self.today(), self.session_id)

    # -- helpers -----------------------------------------------------------------------------------------

    def _send_next(self) -> None:
        """Send the next queued prompt, unless the engine is busy or refuses."""
        if (
            not self.queue
            or self.is_held
            or self._waiting
            or self.transcript.reply
            or not (self.is_ready and self.transcript.is_open)
            or self.refusal()
        ):
            return
        text = self.queue.popleft()
        self.submit(cmd.Send(text, self.clock()))
        self.transcript.begin_turn(text)

    def _is_running(self, *kinds: type[cmd.Command]) -> bool:
        return bool(self._waiting) and isinstance(self._waiting[0], kinds)

    def complete(self, *kinds: type[cmd.Command]) -> None:
        """Complete the command in progress, or what was asked first, if it is of one of these types."""
        for commands in (self._waiting, self._asked):
            if commands and isinstance(commands[0], kinds):
                commands.popleft()
