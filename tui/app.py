"""The chat window's app: engine events in, commands out, slash commands, theme, keys and exit. UI thread.

`tui/screens/chat.py` has the layout and routes between widgets and chat state. Widgets post messages, `ChatState`
turns them into blocks and commands, one timer drains the engine's events. The engine starts after the first frame.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.events import Event, Key, Paste
from textual.filter import Monochrome, NoColor
from textual.screen import Screen
from textual.theme import Theme

from mlxkv.config import Folders, Settings
from mlxkv.errors import ConfigError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.engine import EnginePort
from mlxkv.protocol.status import SaveState
from mlxkv.settings.presets import PresetFolder
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.system.keep_awake import KeepAwake
from mlxkv.system.supervisor_link import SupervisorLink
from mlxkv.text.clean import clean
from mlxkv.tui.emoji import joins_emoji
from mlxkv.tui.markdown.block_renderer import warm_up
from mlxkv.tui.screens.chat import ChatScreen
from mlxkv.tui.state.attention import Attention, title
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands import slash_actions
from mlxkv.tui.state.commands.slash import COMMANDS, Run, Unknown, parse
from mlxkv.tui.state.commands.slash_actions import UiRequest
from mlxkv.tui.state.key_presses import Act, Presses, Situation
from mlxkv.tui.state.lists import choice_lists
from mlxkv.tui.state.prompt.prompt_history import History
from mlxkv.tui.terminal_signals import HasTitle, attention
from mlxkv.tui.theme import of_16, theme_colours, with_readable_row
from mlxkv.tui.widgets.prompt import Prompt

DRAIN, SLOW_DRAIN, SLOWEST_DRAIN = 0.1, 0.2, 2.0  # seconds between two drains: see `_schedule_drain`


class ChatApp(App[int], inherit_bindings=False):
    """`first_commands` go to the engine once the first frame is up, then `ask` is sent."""

    TITLE = "mlxkv"
    CSS = """
    Screen { background: $background; }
    .-few-colours Prompt .text-area--placeholder { text-style: dim; }
    .-few-colours Prompt:light .text-area--placeholder { color: #555555; text-style: none; }
    .-few-colours OptionList > .option-list--option-highlighted,
    .-few-colours OptionList:focus > .option-list--option-highlighted { color: black; }
    .-few-colours OptionList:light > .option-list--option-highlighted,
    .-few-colours OptionList:light:focus > .option-list--option-highlighted { background: #0000aa; color: white; }
    CommandPalette > .command-palette--help-text { text-style: not bold; }
    CommandPalette Input > .input--placeholder { color: $text-muted; }
    #small { display: none; height: 1fr; content-align: center middle; }
    Screen.-narrow #header { display: none; }
    Screen.-short #header, Screen.-short #footer, Screen.-short #activity, Screen.-short #queued { display: none; }
    Screen.-short Sidebar, Screen.-short #panel { display: none; }
    Screen.-short #input { border-top: none; }
    Screen.-short Prompt { min-height: 1; max-height: 1; }
    Screen.-tiny-w #header, Screen.-tiny-w #body, Screen.-tiny-h #header, Screen.-tiny-h #body { display: none; }
    Screen.-tiny-w #small, Screen.-tiny-h #small { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", "Stop", id="app.escape", show=False),
        Binding("ctrl+c", "interrupt", "Copy, clear, stop, quit", id="app.interrupt", system=True),
        Binding("f1", "slash('help')", "Help", id="app.help"),
        Binding("ctrl+k", "slash('resume')", "Open a chat", id="app.chats"),
        Binding("ctrl+n", "slash('new')", "New chat", id="app.new"),
        Binding("ctrl+t", "slash('think')", "Reasoning on or off", id="app.think", show=False),
        Binding("ctrl+y", "answer_now", "Answer now, while the model reasons", id="app.answer", show=False),
        Binding("ctrl+l", "redraw", "Redraw", id="app.redraw", show=False),
        Binding("ctrl+z", "suspend_process", "Suspend", id="app.suspend", show=False),
    ]

    def __init__(
        self,
        engine: EnginePort,
        suggestions: tuple[ev.ModelCard, ...],
        settings: Settings | SettingSources,
        folders: Folders | None,
        first_commands: Iterable[cmd.Command] = (),
        ask: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        today: Callable[[], float] = time.time,
        driver_class: type[Driver] | None = None,
        supervisor: SupervisorLink | None = None,
    ) -> None:
        super().__init__(driver_class=driver_class)
        self.engine, self.settings, self.clock = engine, SettingSources.of(settings).settings, clock
        self.folders, self.supervisor = folders, supervisor
        self.state = ChatState(clock, settings, today)
        self.history = History(folders.state if folders else None)
        self.first_commands, self._ask = tuple(first_commands), ask
        self._presses = Presses()
        self._awake, self._attention = KeepAwake(), Attention()
        self._started = False
        self.takes_keys = threading.Event()  # for the driver: the prompt has the focus
        self.chat = ChatScreen(suggestions, self.state, self.history, self._send_commands)
        self.transcript, self.prompt = self.chat.transcript, self.chat.prompt

    def get_css_variables(self) -> dict[str, str]:
        return with_readable_row(super().get_css_variables())

    def get_default_screen(self) -> Screen[None]:
        return self.chat

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, self._set_colours)
        # After Ctrl+Z and `fg` the terminal shows the shell's text, and Textual paints only changes.
        self.app_resume_signal.subscribe(self, lambda _: self.call_after_refresh(self.action_redraw))
        if self.settings.theme in self.available_themes:
            self.theme = self.settings.theme
        else:
            self.state.transcript.add_error(f"There is no theme {self.settings.theme!r}; Ctrl+P lists them.")
        # Of 16 colours the nearest to the theme's are white on cyan or black on grey, which are hard to read.
        self.set_class(not self.is_headless and self.console.color_system == "standard", "-few-colours")
        self._set_colours(self.current_theme)
        if self.settings.keys:
            self.set_keymap(dict(self.settings.keys))
        if self.folders is not None:
            self.prompt.completer.presets = PresetFolder(self.folders).names
        self.state.begin(self.first_commands)
        if self._ask:
            self.state.prompt(self._ask)
        self.chat.sync()
        self.call_after_refresh(self._start)

    # -- the engine --------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the engine, which can no longer delay the first frame."""
        self._started = True
        self.takes_keys.set()
        self.engine.start()
        warm_up()
        self._drain()

    def _drain(self) -> None:
        began = self.clock()
        for _ in range(len(self.engine.events)):  # later ones wait for the next drain
            event = self.engine.events.popleft()
            self.state.apply(event)
            if isinstance(event, ev.TokensCounted | ev.ModelReady):
                self.chat.recount()
            if self._wants_chats(event):
                self.state.submit(cmd.ListChats())
            if isinstance(event, ev.SessionStatus) and event.saved not in (SaveState.NOTHING, SaveState.OFF):
                self.history.save()
        self.chat.sync()
        self._tell_system()
        self.call_after_refresh(self._schedule_drain, began)

    def _tell_system(self) -> None:
        """Tell the Mac to stay awake, and the terminal what runs and what has ended unseen."""
        state, driver = self.state, self._driver
        self._awake.set(state.settings.keep_awake and state.is_working)
        ended = self._attention.ended(state, self.clock())
        if isinstance(driver, HasTitle):
            driver.set_title(title(state) if state.settings.notify else "")
        if ended and driver is not None and state.settings.notify and not self.app_focus:
            driver.write(attention(ended, os.environ))
            driver.flush()

    def on_unmount(self) -> None:
        self._awake.set(False)

    def _wants_chats(self, event: ev.EngineEvent) -> bool:
        """Whether the event changes the list of chats while it is shown: in the sidebar, or below the welcome."""
        match event:
            case ev.ChatOpened():
                transcript = self.state.transcript
                return self.chat.sidebar is not None or (transcript.is_empty and not transcript.reply)
            case ev.TurnFinished() | ev.ChatRenamed():
                return self.chat.sidebar is not None
        return False

    def _schedule_drain(self, began: float) -> None:
        """Schedule the next frame: ten a second, down to five if painting them takes more than a fortieth of the time.

        A slow machine or terminal gets fewer frames, not a slower model.
        """
        cost = self.clock() - began
        self.set_timer(max(DRAIN, min(40 * cost, SLOW_DRAIN), min(4 * cost, SLOWEST_DRAIN)), self._drain)

    def _send_commands(self) -> None:
        while self._started and self.state.outbox:
            self.engine.submit(self.state.outbox.popleft())

    # -- prompts and slash commands ----------------------------------------------------------------------

    def on_prompt_submitted(self, message: Prompt.Submitted) -> None:
        if not message.text.strip():
            self.chat.put_back(message.text)
            if not self.state.is_ready and not self.state.is_loading:
                self.action_slash("model")
            elif self.state.is_ready and self.state.transcript.is_empty and self.state.chats:
                self.action_slash("resume")
            return
        match parse(message.text):
            case Unknown(text):
                self.chat.put_back(message.text)
                self.chat.show_hint(text, seconds=600)
                return
            case Run(name, argument):
                self._run_command(name, argument)
            case _ if refusal := self.state.refusal():
                self.chat.put_back(message.text)
                self.chat.show_hint(refusal)
                return
            case prompt:
                self.chat.close_pane()
                self.transcript.view.follow_end()
                self.state.prompt(prompt.text)
        self.history.add(message.typed)
        self.chat.sync()

    def on_chat_screen_slash_requested(self, message: ChatScreen.SlashRequested) -> None:
        self.action_slash(message.command, message.argument)

    def _run_command(self, name: str, argument: str = "") -> None:
        self.chat.close_picker()
        self.action_slash(name, argument)

    def action_slash(self, name: str, argument: str = "") -> None:
        if request := slash_actions.run(self.state, name, argument):
            self.perform(request)
        self.chat.sync()

    def perform(self, request: UiRequest) -> None:
        match request:
            case UiRequest("help"):
                self.chat.toggle_help()
            case UiRequest("keys"):
                self._show_keys()
            case UiRequest("quit"):
                self.action_quit_chat()
            case UiRequest("theme", name):
                self._choose_theme(name)
            case UiRequest("save", name):
                self._save_setting(name)
            case UiRequest("copy", argument):
                self.chat.copy_reply(argument)
            case UiRequest("find", words):
                self.chat.open_find_bar(words)
            case UiRequest("paste"):
                self.prompt.action_paste()

    def _show_keys(self) -> None:
        from mlxkv.tui.state.reports.help import keys_report
        from mlxkv.tui.widgets.sidebar import Sidebar

        groups = (
            ("Window", (*self.BINDINGS, *self.chat.BINDINGS)), ("Prompt", self.prompt.BINDINGS),
            ("A message", self.transcript.BINDINGS), ("Chats", Sidebar.BINDINGS),
        )  # fmt: skip
        self.state.report = keys_report(groups, dict(self.settings.keys))

    def _choose_theme(self, name: str) -> None:
        if not name:
            self.search_themes()
        elif name not in self.available_themes:
            self.chat.show_hint(f"There is no theme {name!r}; /theme lists them.")
        else:
            self.theme = name
            self.state.change({"theme": name}, for_all=True)
            self._save_setting("theme")

    def _save_setting(self, name: str) -> None:
        """Save a setting to config.toml, if this window has one."""
        if self.folders is None:
            return
        from mlxkv.config import save_setting

        value = self.theme if name == "theme" else self.state.sources.config[name]
        try:
            save_setting(self.folders, name, value)
        except ConfigError as error:
            self.state.transcript.add_error(str(error))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        for command in COMMANDS:
            if command.name not in ("quit", "help"):  # Textual has entries for these
                yield SystemCommand(f"/{command.name}", command.help, partial(self._run_command, command.name))

    # -- the terminal ------------------------------------------------------------------------------------

    def _set_colours(self, theme: Theme) -> None:
        if self.no_color:  # Textual decides this before the theme is known, and draws ansi themes black on black
            others = [f for f in self._filters if not isinstance(f, Monochrome | NoColor)]
            self._filters = [*others, NoColor() if theme.ansi else Monochrome()]
        variables = theme.to_color_system().generate()
        colours = theme_colours(variables, theme.dark, theme.ansi, joins_emoji(self.settings.joined_emoji, os.environ))
        self.chat.set_colours(of_16(colours) if self.has_class("-few-colours") and not theme.dark else colours)

    # -- keys --------------------------------------------------------------------------------------------

    async def on_event(self, event: Event) -> None:
        """Clean every paste, as it may also go to one of Textual's own inputs; let Ctrl+C close its dialogs."""
        if isinstance(event, Key) and event.key == "ctrl+c" and self.screen is not self.chat:
            self.action_interrupt()
            return
        if isinstance(event, Paste):
            event.text = clean(event.text.replace("\r\n", "\n").replace("\r", "\n"), joined=True)
        await super().on_event(event)

    def action_escape(self) -> None:
        text = bool(self.prompt.text)
        here = Situation(
            self._generating, self.chat.picker is not None, text, editing=self.state.editing is not None,
            pulling=self.state.is_pulling, has_messages=not self.state.transcript.is_empty, pane=self.chat.has_pane,
        )  # fmt: skip
        again = "esc again clears the prompt" if text else "esc again goes back to an earlier message"
        self._act(self._presses.escape(here, self.clock()), again)

    def action_interrupt(self) -> None:
        chosen = self.prompt.selected_text or self.screen.get_selected_text() or ""
        overlay = self.chat.picker is not None or self.chat.find_bar is not None or self.screen is not self.chat
        here = Situation(self._generating, overlay, bool(self.prompt.text), bool(chosen), pane=self.chat.has_pane)
        self._act(self._presses.interrupt(here, self.clock()), "ctrl+c again quits", chosen)

    @property
    def _generating(self) -> bool:
        turn = self.state.transcript.reply
        return self.state.is_loading_now if turn is None else not turn.stopping

    def _act(self, act: Act, again: str, chosen: str = "") -> None:
        match act:
            case Act.STOP if self.state.stop():
                self.engine.stop()
            case Act.CLOSE if self.screen is not self.chat:
                self.screen.dismiss(None)
            case Act.CLOSE:
                self.chat.action_close_find_bar()
                self.chat.close_picker()
                self.chat.close_pane()
            case Act.PAUSE:
                self.state.submit(cmd.PausePull())
            case Act.STOP_EDITING:
                self.state.editing = None
                self.prompt.put("")
            case Act.REWIND if self.state.transcript.messages:
                self.state.listing = choice_lists.rewind_list(self.state.transcript.messages)
            case Act.CLEAR:
                self.prompt.put("")
            case Act.COPY:
                self.screen.clear_selection()
                self.chat.copy(lambda: chosen)
            case Act.QUIT:
                self.action_quit_chat()
            case Act.ARM:
                self.chat.show_hint(again, seconds=1)
        self.chat.sync()

    def action_answer_now(self) -> None:
        if self.state.answer_now():
            self.engine.answer_now()
        elif (reply := self.state.transcript.reply) is not None and not reply.is_thinking and not reply.stopping:
            self.chat.show_hint("Nothing is marked as reasoning yet, so it cannot be ended; esc stops the reply.")
        self.chat.sync()

    def action_redraw(self) -> None:
        self.screen.refresh(layout=True, repaint=True)

    def action_quit_chat(self) -> None:
        if self.supervisor is not None:
            self.supervisor.quit()
        self.exit(1 if self.state.failed else 0)
