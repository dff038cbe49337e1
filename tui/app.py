"""The chat window: it joins widgets, state and engine, and decides nothing else. UI thread.

What it does for a reader is `tui/screens/reading.py`, about chats, models and settings `tui/screens/managing.py`.

Widgets post messages, `ChatState` answers with blocks and commands, one timer drains what the engine said. The engine
is started after the first frame is on the screen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.events import Event, Paste
from textual.filter import Monochrome, NoColor
from textual.screen import Screen
from textual.theme import Theme
from textual.widgets import Static

from mlxkv.config import Folders, Settings
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.engine import EnginePort
from mlxkv.protocol.status import SaveState
from mlxkv.system.supervisor_link import SupervisorLink
from mlxkv.text.clean import clean
from mlxkv.tui.emoji import joins_emoji
from mlxkv.tui.markdown.block_renderer import warm
from mlxkv.tui.screens.chat import ChatView
from mlxkv.tui.screens.managing import ManagingApp
from mlxkv.tui.state import slash_actions as slash
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.key_presses import Act, Presses, Situation
from mlxkv.tui.state.prompt_history import History
from mlxkv.tui.state.slash import COMMANDS, Run, Unknown, hint, parse
from mlxkv.tui.theme import look_of
from mlxkv.tui.widgets.prompt import Prompt

DRAIN, SLOW_DRAIN = 0.1, 0.2  # seconds between two looks at the engine's events: see `_drained`


class ChatApp(ManagingApp, inherit_bindings=False):
    """`first_commands` go to the engine once the first frame is up, then `ask` is sent."""

    TITLE = "mlxkv"
    CSS = """
    Screen { background: $background; }
    #small { display: none; height: 1fr; content-align: center middle; }
    Screen.-narrow #header { display: none; }
    Screen.-short #header, Screen.-short #footer, Screen.-short #activity, Screen.-short #queued { display: none; }
    Screen.-short Sidebar, Screen.-short #panel { display: none; }
    Screen.-short ChatView #input { border-top: none; }
    Screen.-short ChatView Prompt { min-height: 1; max-height: 1; }
    Screen.-tiny-w ChatView, Screen.-tiny-h ChatView { display: none; }
    Screen.-tiny-w #small, Screen.-tiny-h #small { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", "Stop", id="app.escape", show=False),
        Binding("ctrl+c", "interrupt", "Copy, clear, stop, quit", id="app.interrupt", system=True),
        Binding("f1", "help", "Help", id="app.help"),
        Binding("f2", "panel", "The cache", id="app.panel"),
        Binding("ctrl+b", "sidebar", "Chats beside", id="app.sidebar"),
        Binding("ctrl+k", "chats", "Open a chat", id="app.chats"),
        Binding("ctrl+n", "new_chat", "New chat", id="app.new"),
        Binding("ctrl+t", "think", "Reasoning on, off", id="app.think", show=False),
        Binding("ctrl+l", "redraw", "Redraw", id="app.redraw", show=False),
        Binding("ctrl+z", "suspend_process", "Suspend", id="app.suspend", show=False),
    ]

    def __init__(
        self,
        engine: EnginePort,
        first: ev.FirstScreen,
        settings: Settings,
        folders: Folders | None,
        first_commands: Iterable[cmd.Command] = (),
        ask: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        today: Callable[[], float] = time.time,
        driver_class: type[Driver] | None = None,
        supervisor: SupervisorLink | None = None,
    ) -> None:
        super().__init__(driver_class=driver_class)
        self.HORIZONTAL_BREAKPOINTS = [(0, "-tiny-w"), (30, "-narrow"), (60, "-normal")]
        self.VERTICAL_BREAKPOINTS = [(0, "-tiny-h"), (8, "-short"), (12, "-tall")]
        self.engine, self.first, self.settings, self.clock = engine, first, settings, clock
        self.folders, self.supervisor = folders, supervisor
        self.state = ChatState(clock, settings, today)
        self.history = History(folders.state if folders else None)
        self.first_commands, self._ask = tuple(first_commands), ask
        self._presses = Presses()
        self._hint: tuple[str, float] = ("", 0.0)  # and until when
        self._started = False
        self._typed = ""

    def compose(self) -> ComposeResult:
        self.view = ChatView(self.first)
        self.transcript, self.prompt = self.view.transcript, self.view.prompt
        yield self.view
        yield Static("need 30×8", id="small", markup=False)

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.app_resume_signal.subscribe(self, self._resumed)
        if self.settings.theme in self.available_themes:
            self.theme = self.settings.theme
        else:
            self.state.error(f"There is no theme {self.settings.theme!r}; Ctrl+P lists them.")
        self._theme_changed(self.current_theme)
        if self.settings.keys:
            self.set_keymap(dict(self.settings.keys))
        self.prompt.count = self.state.token_counts.count
        self.transcript.count_with(self.state.token_counts.count)
        self.prompt.focus()
        self.state.begin(self.first_commands)
        if self._ask:
            self.state.prompt(self._ask)
        self._sync()
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        """The first frame is up: now the engine may take the processor."""
        self._started = True
        self.engine.start()
        warm()
        self._drain()

    # -- the engine --------------------------------------------------------------------------------------

    def _drain(self) -> None:
        began = self.clock()
        for _ in range(len(self.engine.events)):  # what comes meanwhile waits for the next round
            event = self.engine.events.popleft()
            self.state.apply(event)
            if isinstance(event, ev.TokensCounted | ev.ModelReady):
                self.transcript.recount()
                self.prompt.recount()
            if self._wants_chats(event):
                self.state.submit(cmd.ListChats())
            if isinstance(event, ev.SessionStatus) and event.saved not in (SaveState.NOTHING, SaveState.OFF):
                self.history.save()
        self._sync()
        self.call_after_refresh(self._drained, began)

    def _wants_chats(self, event: ev.EngineEvent) -> bool:
        """After what changes the list of chats, while it is shown: in the sidebar, or under the welcome."""
        match event:
            case ev.ChatOpened():
                return self.view.sidebar is not None or (self.state.is_empty and not self.state.turn)
            case ev.TurnFinished():
                return self.view.sidebar is not None
        return False

    def _drained(self, began: float) -> None:
        """Ten frames a second, down to five where they would take more than a fortieth of the time, painting included.

        A slow machine or terminal gets fewer frames, not a slower model.
        """
        cost = self.clock() - began
        self.set_timer(max(DRAIN, min(40 * cost, SLOW_DRAIN), 4 * cost), self._drain)

    def _sync(self) -> None:
        """Commands to the engine, changes to the widgets."""
        state = self.state
        while self._started and state.outbox:
            self.engine.submit(state.outbox.popleft())
        self.view.sync(state)
        self.prompt.window = state.status.cache_window
        self._show()

    def _show(self) -> None:
        said, until = self._hint
        self.view.show(self.state, said if self.clock() < until else "")

    def _say(self, text: str, seconds: float = 5.0) -> None:
        self._hint = (text, self.clock() + seconds)
        self._show()

    # -- what the widgets say ----------------------------------------------------------------------------

    def on_prompt_submitted(self, message: Prompt.Submitted) -> None:
        self._typed, self._hint = self.prompt.text, ("", 0.0)  # that it is empty now is no reason to forget what we say
        if not message.text.strip():
            self._give_back(message.text)
            if not self.state.is_ready and not self.state.is_loading:
                self.action_models()
            elif self.state.is_ready and self.state.is_empty and self.state.chats:
                self.action_chats()
            return
        match parse(message.text):
            case Unknown(text):
                self._give_back(message.text)
                self._say(text, seconds=600)
                return
            case Run(name, argument):
                self._run_command(name, argument)
            case _ if refusal := self.state.refusal():
                self._give_back(message.text)
                self._say(refusal)
                return
            case prompt:
                self.transcript.follow_end()
                self.state.prompt(prompt.text)
        self.history.add(message.typed)
        self._sync()

    def _give_back(self, text: str) -> None:
        self.prompt.put_back(text)
        self._typed = self.prompt.text

    def _run_command(self, name: str, argument: str) -> None:
        self.view.close_picker()
        if wish := slash.run(self.state, name, argument):
            self.grant(wish)

    def on_prompt_recall(self, message: Prompt.Recall) -> None:
        if message.step < 0 and not self.prompt.text and (queued := self.state.unqueue()) is not None:
            self.prompt.put(queued)
        else:
            text = self.history.older(self.prompt.text) if message.step < 0 else self.history.newer()
            if text is not None:
                self.prompt.put(text)
        self._sync()

    def on_prompt_scroll(self, message: Prompt.Scroll) -> None:
        if message.pages is None:
            self.transcript.follow_end()
        else:
            self.transcript.scroll_page(message.pages)

    def on_prompt_ended(self) -> None:
        self.action_quit_chat()

    def on_prompt_help_wanted(self) -> None:
        self.action_help()

    def on_text_area_changed(self) -> None:
        if self.prompt.text == self._typed:  # put back by us: what was said about it still holds
            return
        self._typed = self.prompt.text
        commands = hint(self.prompt.text)
        self._hint = (commands, self.clock() + 600) if commands else ("", 0.0)
        self._show()

    def on_scroller_followed(self) -> None:
        self._show()

    def on_resize(self) -> None:
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        if self.focused is None and len(self.screen_stack) == 1:  # a window that was too small took the focus
            self.prompt.focus()
        self._show()

    def _resumed(self, _: object) -> None:
        """After Ctrl+Z and `fg` the terminal shows what the shell left; Textual paints only what changes."""
        self.call_after_refresh(self.action_redraw)

    def _theme_changed(self, theme: Theme) -> None:
        if self.no_color:  # Textual decides this before the theme is known, and draws ansi themes black on black
            others = [f for f in self._filters if not isinstance(f, Monochrome | NoColor)]
            self._filters = [*others, NoColor() if theme.ansi else Monochrome()]
        variables = theme.to_color_system().generate()
        self.transcript.set_look(
            look_of(variables, theme.dark, theme.ansi, joins_emoji(self.settings.joined_emoji, os.environ))
        )

    # -- keys --------------------------------------------------------------------------------------------

    async def on_event(self, event: Event) -> None:
        """What is pasted may come from anywhere, and where it goes may be a line of Textual's own."""
        if isinstance(event, Paste):
            event.text = clean(event.text.replace("\r\n", "\n").replace("\r", "\n"), joined=True)
        await super().on_event(event)

    def action_escape(self) -> None:
        text = bool(self.prompt.text)
        here = Situation(
            self._generating, self.view.picker is not None, text, editing=self.state.editing is not None,
            pulling=self.state.is_pulling, said=not self.state.is_empty,
        )  # fmt: skip
        again = "esc again clears the prompt" if text else "esc again goes back to an earlier message"
        self._act(self._presses.escape(here, self.clock()), again)

    def action_interrupt(self) -> None:
        chosen = self.prompt.selected_text or self.screen.get_selected_text() or ""
        here = Situation(self._generating, self.view.picker is not None, bool(self.prompt.text), bool(chosen))
        self._act(self._presses.interrupt(here, self.clock()), "ctrl+c again quits", chosen)

    @property
    def _generating(self) -> bool:
        turn = self.state.turn
        return self.state.loads_now if turn is None else not turn.stopping

    def _act(self, act: Act, again: str, chosen: str = "") -> None:
        match act:
            case Act.STOP if self.state.stop():
                self.engine.stop()
            case Act.CLOSE:
                self.view.close_picker()
            case Act.PAUSE:
                self.state.pause()
            case Act.LEAVE:
                self.state.editing = None
                self.prompt.put("")
            case Act.REWIND:
                self.action_rewind()
            case Act.CLEAR:
                self.prompt.put("")
            case Act.COPY:
                from mlxkv.tui.clipboard import copy

                self.screen.clear_selection()
                self._say(copy(self, chosen), seconds=2)
            case Act.QUIT:
                self.action_quit_chat()
            case Act.ARM:
                self._say(again, seconds=1)
        self._sync()

    def action_help(self) -> None:
        from mlxkv.tui.screens.help import HelpScreen

        self.push_screen(HelpScreen())

    def action_redraw(self) -> None:
        self.screen.refresh(layout=True, repaint=True)

    def action_quit_chat(self) -> None:
        if self.supervisor is not None:
            self.supervisor.quit()
        self.exit(1 if self.state.failed else 0)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        for command in COMMANDS:
            if command.name not in ("quit", "help"):  # Textual has entries for these
                run = command.name
                yield SystemCommand(f"/{run}", command.help, lambda run=run: (self._run_command(run, ""), self._sync()))
