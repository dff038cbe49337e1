"""The chat screen: its layout, and routing between its widgets and the chat state. UI thread.

Decisions are made in `tui/state/`; commands and requests that concern the whole program are the app's. Widgets are
attributes, not queried: a query searches the active screen, which may be help or the palette.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input, Static

from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import ModelCard
from mlxkv.text.clean import clean
from mlxkv.tui.markdown.block_renderer import Colours
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands import slash
from mlxkv.tui.state.gauges import narrow_lines, wide_lines
from mlxkv.tui.state.labels import footer_text, gauge_text, short_name
from mlxkv.tui.state.lists import choice_lists
from mlxkv.tui.state.lists.chat_list import latest_first
from mlxkv.tui.state.lists.choices import Listing, PutPrompt, RunSlash, SendAnyway
from mlxkv.tui.state.prompt.prompt_history import History
from mlxkv.tui.state.transcript.transcript import title_line
from mlxkv.tui.widgets import copying
from mlxkv.tui.widgets.bars import Bar, Queued
from mlxkv.tui.widgets.cache_panel import Panel
from mlxkv.tui.widgets.pane import Pane, Place, place_of, put
from mlxkv.tui.widgets.prompt import HINTS, Prompt
from mlxkv.tui.widgets.transcript import Transcript
from mlxkv.tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from mlxkv.tui.widgets.find_bar import FindBar
    from mlxkv.tui.widgets.picker import Picker
    from mlxkv.tui.widgets.sidebar import Sidebar

KEYS = ("⏎ send  ^J newline  ^B chats  F2 cache  ^P menu ", "^J newline  ^B chats  ^P menu ", "^J newline  ^P menu ")
CURSOR_KEYS = "y copy · c code · e edit · r again · f fork · [ ] versions · space fold · / find · esc"
SIDEBAR_WIDTH = 31  # as in its CSS: it is imported when it is first opened
MIN_WIDTH_FOR_SIDEBAR = 100  # columns
MIN_HEIGHT_FOR_FIGURES = 28  # rows
PANEL_WIDTH, AROUND_PANEL = 60, 10  # columns of the smallest window with the panel, rows for all but its lines


class ChatScreen(Screen[None]):
    """Header; sidebar beside transcript (or welcome, or a list), panel, queue, activity, prompt, footer.

    `send` sends the engine the commands that wait in `state`.
    """

    DEFAULT_CSS = """
    ChatScreen {
        & #body { height: 1fr; }
        & #main { width: 1fr; height: 1fr; }
        & #main > .-side { dock: right; border-left: solid $panel; }
        & #input { height: auto; border-top: solid $panel; background: $background; }
        & #sign { width: 3; color: $text-primary; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "panel", "Cache panel", id="app.panel"),
        Binding("ctrl+b", "sidebar", "Chats in a sidebar", id="app.sidebar"),
    ]

    class SlashRequested(Message):
        """A slash command that was chosen in a list."""

        def __init__(self, name: str, argument: str) -> None:
            super().__init__()
            self.command, self.argument = name, argument

    def __init__(
        self, suggestions: tuple[ModelCard, ...], state: ChatState, history: History, send: Callable[[], None]
    ) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-tiny-w"), (30, "-narrow"), (60, "-normal")]
        self.VERTICAL_BREAKPOINTS = [(0, "-tiny-h"), (8, "-short"), (12, "-tall")]
        self.state, self.history, self._send = state, history, send
        self.header, self.activity, self.footer = Bar(id="header"), Bar(id="activity"), Bar(id="footer")
        self.welcome, self.transcript, self.queued = Welcome(suggestions), Transcript(), Queued(id="queued")
        self.panel, self.pane = Panel(id="panel"), Pane(id="pane")
        self.prompt = Prompt(id="prompt")
        self.body, self.main = Horizontal(id="body"), Vertical(id="main")
        self.sidebar: Sidebar | None = None
        self.picker: Picker | None = None
        self.find_bar: FindBar | None = None
        self._levels = {"": "", "warning": "", "error": ""}  # the colours of the gauge
        self.wants_panel = self._is_covered = False
        self._panel_height = 0  # of the smallest window with the panel as it is now
        self._hint: tuple[str, float] = ("", 0.0)  # and until when
        self._typed = ""
        self._turns_to: int | None = None  # the message whose other version will be shown
        self._tail: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.header
        with self.body, self.main:
            yield self.welcome
            yield self.transcript
            yield self.pane
            yield self.panel
            yield self.queued
            yield self.activity
            yield self.prompt.completer.menu_list
            with Horizontal(id="input"):
                yield Static(" ❯ ", id="sign", markup=False)
                yield self.prompt
            yield self.footer
        yield Static("need 30×8", id="small", markup=False)

    def on_mount(self) -> None:
        self.prompt.completer.earlier = self.history.entries
        self.prompt.files.count = self.state.token_counts.count
        self.prompt.goes_elsewhere = self._type_into_find_bar
        self.prompt.files.when_read = lambda: self.app.call_from_thread(self.prompt.completer.recount)
        self.transcript.count_with(self.state.token_counts.count)
        self.prompt.focus()

    def set_colours(self, colours: Colours) -> None:
        self._levels = {"": "", "warning": colours.warning, "error": colours.error}
        self.transcript.set_colours(colours)
        self.pane.set_colours(colours)

    # -- showing the state -------------------------------------------------------------------------------

    def sync(self) -> None:
        """Send the state's commands, and show what changed in it."""
        self._send()
        state, change = self.state, self.state.transcript.take_change()
        position = self.transcript.position() if change.keeps_position else None
        turned_to, self._turns_to = (self._turns_to, None) if change.cleared else (None, self._turns_to)
        if change.cleared:
            self.transcript.clear(turned_to)
            self.close_picker()
            if self.pane.report is not None and self.pane.report.is_of_chat:
                self.close_pane()
        if change.dropped is not None:
            self.transcript.drop(change.dropped)
        if change.cleared or change.settled or change.tail != self._tail:
            self.transcript.update_blocks(change.settled, change.tail, change.answer)
            self._tail = list(change.tail)
            if turned_to is not None:
                self.transcript.show_cursor()
            elif position is not None:
                self.transcript.scroll_to_position(*position)
            self._show_match_count()
        self.transcript.show_rule(state.transcript.rule)
        if state.listing is not None:
            self.open_picker(state.listing)
            state.listing = None
        if state.report is not None:
            self.close_picker()
            self.pane.open(state.report)
            state.report = None
        if state.put is not None:
            self.prompt.put(state.put)
            state.put = None
        if state.returned is not None:
            self.prompt.put_back(state.returned, apart=True)
            state.returned = None
        self.prompt.files.window = state.status.cache_window
        self.show()

    def recount(self) -> None:
        """Show the token counts of attached files once they have arrived."""
        self.transcript.recount()
        self.prompt.completer.recount()

    def show_hint(self, text: str, seconds: float = 5.0) -> None:
        """Show a line at the right of the activity bar for a while; "" hides it."""
        self._hint = (text, self.state.clock() + seconds)
        self.show()

    def show(self) -> None:
        """Update everything around the transcript."""
        state, size = self.state, self.app.size
        has_sidebar = self.sidebar is not None and size.width >= MIN_WIDTH_FOR_SIDEBAR
        if self.sidebar is not None:
            self.sidebar.display = has_sidebar
        room = size.width - (SIDEBAR_WIDTH if has_sidebar else 0)
        place = self._place_pane(room)
        width = room - (place.columns if place else 0)
        is_empty = len(self.transcript.lines) == 0
        is_picking = self.picker is not None and not self.picker.listing.beside
        self.welcome.display = is_empty and not is_picking
        self.transcript.display = not is_empty and not is_picking
        is_new = self.welcome.display and not state.transcript.title  # not a chat that went back before its start
        titles = tuple(chat.name for chat in latest_first(state.chats)[:3]) if is_new else ()
        self.welcome.show(state.model, state.is_ready, state.is_loading, titles)
        for view in (self.transcript.view, self.pane.view, self.picker):
            if view is not None and view.display:
                view.fit()
        self.prompt.placeholder = HINTS if width >= 48 else "Ask anything"  # on one line
        self._show_header(size.width)
        self._show_activity(width)
        self._show_figures(has_sidebar, width, is_covered=place is not None and not place.columns)
        ready = "sent when the model is ready" if state.is_ready or state.is_loading else "no model: /model loads one"
        why = "waiting for the current reply" if state.transcript.reply else ready
        why = "sent after your next message" if state.is_held else why
        self.queued.show([clean(text[:1000]) for text in state.queue], f"{why} · ↑ to edit")
        self._show_footer(width)

    def _show_footer(self, width: int) -> None:
        """Show the state of the chat, and as many keys as fit beside it."""
        state = self.state
        if width < 60:
            self.footer.show(f" {footer_text(state.status, width - 2, narrow=True)}")
            return
        room = width - len(footer_text(state.status, 1000, saving=state.saving)) - 3
        keys = next((keys for keys in KEYS if len(keys) <= room), KEYS[-1])
        self.footer.show(f" {footer_text(state.status, width - len(keys) - 3, saving=state.saving)}", keys)

    def _show_header(self, width: int) -> None:
        state, wide = self.state, width >= 100
        gauge, level = gauge_text(state.status, width)
        is_repo = state.model.count("/") == 1 and state.model[0] not in "./~"
        name = state.model if wide and is_repo else short_name(state.model)  # of a folder, its name says enough
        name += f" + {short_name(clean(state.adapter))}" if state.adapter else ""
        left = Text(" ").append("mlxkv", "bold").append(f"  {name}" if name else "")
        fork = f" ⑂{state.status.fork}" if state.status.fork else ""
        title = clean(state.transcript.title) + fork + (" · read-only" if state.read_only else "")
        if title and not wide:
            left.append(f" · {title}")
        self.header.show(left, Text().append(f"{gauge} ", self._levels[level]), title if wide else "")

    def _show_activity(self, width: int) -> None:
        state, (hint, until) = self.state, self._hint
        hint = hint if state.clock() < until else ""
        left, right = state.activity(width)
        if hint:
            left, right = (left, hint) if left else (hint, "")
        elif keys := self._keys():
            right = keys
        elif not self.transcript.view.follow:
            right = "End ↓ to follow" if state.transcript.reply else "End ↓"
        self.activity.show(f" {left}" if left else "", f"{right} ")

    def _keys(self) -> str:
        """What the keys do in a list, a search or the sidebar that has the focus."""
        if self.picker is not None:
            return self.picker.listing.hint
        if self.find_bar is not None:
            return self.find_bar.KEYS
        return self.sidebar.keys if self.sidebar is not None else ""

    def _show_figures(self, has_sidebar: bool, width: int, is_covered: bool) -> None:
        """Show the panel if it is open, unless the pane covers it, else its figures in the sidebar if they fit."""
        state, size, now = self.state, self.app.size, self.state.clock()
        self._is_covered = is_covered
        lines = wide_lines(state.status, state.meter.rates(now), state.meter.prefill_tps, width - 2)
        self._panel_height = len(lines) + AROUND_PANEL
        self.panel.display = self.wants_panel and self._panel_fits and not is_covered
        if self.panel.display:
            self.panel.show(lines)
        if self.sidebar is not None and has_sidebar:
            self.sidebar.show(state.chats, state.session_id, state.today())
            fits = size.height >= MIN_HEIGHT_FOR_FIGURES and not self.panel.display
            lines = narrow_lines(state.status, state.meter.rates(now), state.meter.prefill_tps, 27) if fits else []
            self.sidebar.show_figures(lines)

    # -- the prompt --------------------------------------------------------------------------------------

    def put_back(self, text: str) -> None:
        """Return a prompt that was not sent, and keep the hint that says why."""
        self.prompt.put_back(text)
        self._typed = self.prompt.text

    def on_prompt_submitted(self) -> None:
        """Hide the hint; one that the app then shows about this prompt stays when the text becomes empty."""
        self._typed, self._hint = self.prompt.text, ("", 0.0)

    def on_text_area_changed(self) -> None:
        if self.prompt.text == self._typed:  # sent or put back by us
            return
        self._typed = self.prompt.text
        self.show_hint(slash.hint(self.prompt.text), seconds=600)

    def on_prompt_history_requested(self, message: Prompt.HistoryRequested) -> None:
        if message.step < 0 and not self.prompt.text and (queued := self.state.unqueue()) is not None:
            self.prompt.put(queued)
        else:
            text = self.history.older(self.prompt.text) if message.step < 0 else self.history.newer()
            if text is not None:
                self.prompt.put(text)
        self.sync()

    def on_prompt_scroll_requested(self, message: Prompt.ScrollRequested) -> None:
        if message.pages is None:
            self.transcript.view.follow_end()
        elif self.pane.can_scroll:
            self.pane.scroll_page(message.pages)
        else:
            self.transcript.view.scroll_page(message.pages)

    def on_prompt_editor_requested(self, message: Prompt.EditorRequested) -> None:
        from mlxkv.tui.external_editor import EditorError, edit_text, editor_command

        try:
            command = editor_command(os.environ)
            with self.app.suspend():
                text = edit_text(message.text, command)
        except EditorError as error:
            self.show_hint(str(error))
        except SuspendNotSupported:
            self.show_hint("This terminal cannot be suspended for an editor.")
        else:
            self.prompt.put(text)
            self.app.refresh()

    # -- the transcript ----------------------------------------------------------------------------------

    def on_line_view_follow_changed(self) -> None:
        self.show()

    def action_message_cursor(self, step: int) -> None:
        self.transcript.action_move_cursor(step)

    def on_transcript_cursor_moved(self, message: Transcript.CursorMoved) -> None:
        if message.message is not None:
            self.show_hint(CURSOR_KEYS, seconds=600)
            return
        self.show_hint("")
        if self._type_into_find_bar(message.typed):
            return
        if self.focused is None or self.focused is self.transcript:  # the focus may be in a search or a list by now
            self.prompt.focus()
        if message.typed:
            self.prompt.insert(message.typed)

    def on_transcript_action_requested(self, message: Transcript.ActionRequested) -> None:
        number, state, is_done = message.message, self.state, True
        match message.action:
            case "copy":
                self.copy(lambda: copying.message_text(self.transcript.blocks_of(number)))
            case "copy_code":
                self.copy(lambda: copying.message_code(self.transcript.blocks_of(number)))
            case "edit":
                is_done = state.edit(number) or state.edit(number - 1)
                self.transcript.action_leave_cursor()
            case "retry":
                reply = next((n for n in (number, number + 1) if self._is_reply(n)), None)
                is_done = reply is not None
                if is_done:
                    state.submit(cmd.Retry(reply))
                    self.transcript.action_leave_cursor()
            case "fork":
                state.submit(cmd.Fork(number))
                self.transcript.action_leave_cursor()
            case "find":
                self.open_find_bar()
            case "older" | "newer":
                if state.open_version(number, -1 if message.action == "older" else 1):
                    self._turns_to = number
                else:
                    self.show_hint("There is no other version of this message that way.")
        if not is_done:
            self.show_hint("This message cannot be changed that way.")
        self.sync()

    def _is_reply(self, number: int) -> bool:
        messages = self.state.transcript.messages
        return 0 <= number < len(messages) and messages[number].role == "assistant"

    def action_fold_all(self) -> None:
        self.show_hint("reasoning unfolded" if self.transcript.fold_all() else "reasoning folded", seconds=2)

    def on_transcript_link_clicked(self, message: Transcript.LinkClicked) -> None:
        from mlxkv.tui.screens.link import LinkScreen, is_web

        address = message.address
        if not is_web(address):
            self.show_hint("Only http and https addresses are opened.")
            return

        def act(choice: str | None) -> None:
            if choice == "open":
                self.app.open_url(address)
                self.show_hint("opened in the browser", seconds=2)
            elif choice == "copy":
                self.copy(lambda: address)

        self.app.push_screen(LinkScreen(address), act)

    # -- copying -----------------------------------------------------------------------------------------

    def copy(self, find_text: Callable[[], str]) -> None:
        """Copy a text to the clipboard, or tell the user why there is none."""
        from mlxkv.tui import clipboard

        try:
            self.show_hint(clipboard.copy(self.app, find_text()), seconds=2)
        except copying.CopyError as error:
            self.show_hint(str(error))

    def copy_reply(self, argument: str) -> None:
        """`/copy [n] [code [k]]`: copy the n-th last reply, or its code."""
        replies = [i for i, message in enumerate(self.state.transcript.messages) if message.role == "assistant"]
        if self.state.transcript.reply is not None:
            replies.append(len(self.state.transcript.messages))
        self.copy(lambda: copying.reply_text(argument, replies, self.transcript.blocks_of))

    # -- search in the chat ------------------------------------------------------------------------------

    def open_find_bar(self, words: str = "") -> None:
        from mlxkv.tui.widgets.find_bar import FindBar

        if self.find_bar is not None:
            self.find_bar.input.focus()
            return
        self.find_bar = FindBar(words)
        self.main.mount(self.find_bar, after=self.transcript)
        self.show()

    def _type_into_find_bar(self, typed: str) -> bool:
        """Give the search bar what was typed before it has the focus; returns whether it opens just now."""
        if self.find_bar is None or not self.find_bar.is_opening:
            return False
        self.find_bar.type(typed)
        return True

    def on_input_changed(self, event: Input.Changed) -> None:
        if self.find_bar is not None:  # it may be closed by now
            self.transcript.find(event.value)
            self._show_match_count()

    def on_input_submitted(self) -> None:
        self.action_match(1)

    def action_match(self, step: int) -> None:
        self.transcript.action_match(step)
        self._show_match_count()

    def action_close_find_bar(self) -> None:
        if self.find_bar is not None:
            self.find_bar.remove()
            self.find_bar = None
            self.transcript.find("")
            self.prompt.focus()
            self.show()

    def _show_match_count(self) -> None:
        if self.find_bar is not None:
            self.find_bar.show(*self.transcript.finder.numbers())

    # -- lists -------------------------------------------------------------------------------------------

    def open_picker(self, listing: Listing) -> None:
        from mlxkv.tui.widgets.picker import Picker

        self.close_picker()
        self.close_pane()
        self.picker = Picker(listing, self.prompt.take_word() if listing.searchable else "")
        self.main.mount(self.picker, before=self.panel)

    def close_picker(self) -> None:
        if self.picker is not None:
            self.picker.remove()
            self.picker = None
            self.prompt.focus()

    def on_picker_selected(self, message: Picker.Selected) -> None:
        self.close_picker()
        match message.choice:
            case PutPrompt(text):
                self.prompt.put(text)
            case SendAnyway(text) as choice:
                self.prompt.withdraw(text)
                self.state.send_anyway(choice)
            case RunSlash(name, argument):
                self.post_message(self.SlashRequested(name, argument))
            case command if command is not None:
                self.state.submit(command)
        self.sync()

    # -- the output of commands ---------------------------------------------------------------------------

    @property
    def has_pane(self) -> bool:
        """Whether the output of a command is shown beside the chat, or a list that is one."""
        return self.pane.report is not None or (self.picker is not None and bool(self.picker.listing.beside))

    def close_pane(self) -> None:
        self.pane.close()
        if self.picker is not None and self.picker.listing.beside:
            self.close_picker()

    def toggle_help(self) -> None:
        from mlxkv.tui.state.reports.help import help_report

        if self.pane.report is not None and self.pane.report.command == "help":
            self.close_pane()
        else:
            self.state.report = help_report()

    def _place_pane(self, width: int) -> Place | None:
        """Arrange the output of a command in `width` columns, if there is one."""
        if not self.has_pane:
            return None
        place = place_of(width, self.app.size.height)
        if self.picker is not None:
            put(self.picker, place, len(self.picker.listing.rows) + 1)
        self.pane.take_place(place, width)
        return place

    # -- sidebar and panel -------------------------------------------------------------------------------

    def action_sidebar(self) -> None:
        """Open and focus the sidebar, focus it, or close it; a narrow window has the list instead."""
        if self.app.size.width < MIN_WIDTH_FOR_SIDEBAR:
            self.state.resume("")
        elif self.sidebar is None:
            from mlxkv.tui.widgets.sidebar import Sidebar

            self.sidebar = Sidebar(self._type)
            self.body.mount(self.sidebar, before=self.main)
            self.state.submit(cmd.ListChats())
            self.sidebar.call_after_refresh(self.sidebar.focus_list)
        elif not self.sidebar.has_focus_within:
            self.sidebar.focus_list()
        else:
            self.sidebar.remove()
            self.sidebar = None
            self.prompt.focus()
        self.sync()

    def _type(self, text: str) -> None:
        """Give the prompt the focus and what was typed elsewhere."""
        self.set_focus(self.prompt)  # `focus` acts later, and the next letter would be a command of the list
        self.prompt.insert(text)

    def on_sidebar_action_requested(self, message: Sidebar.ActionRequested) -> None:
        chat = next((chat for chat in self.state.chats if chat.id == message.session_id), None)
        match message.action:
            case "leave":
                self.prompt.focus()
            case _ if chat is None:
                return
            case "open":
                self.prompt.focus()
                if chat.id != self.state.session_id:
                    self.state.submit(cmd.OpenChat(chat.id))
            case "rename":
                self.state.renaming = chat.id
                self.prompt.put(f"/rename {title_line(chat.title)}")
                self.prompt.focus()
            case "delete":
                self.state.listing = choice_lists.delete_list(chat.id, chat.title)
            case "export":
                self.state.submit(cmd.ExportChat(session_id=chat.id))
        self.sync()

    @property
    def _panel_fits(self) -> bool:
        return self.app.size.height >= self._panel_height and self.app.size.width >= PANEL_WIDTH

    def action_panel(self) -> None:
        if self._is_covered:
            self.close_pane()
        self.wants_panel = self._is_covered or not self.wants_panel
        self.sync()
        if self.wants_panel and not self._panel_fits:
            self.show_hint(f"The panel needs {PANEL_WIDTH}×{self._panel_height}.", seconds=2)

    # -- size --------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        if self.focused is None and self.is_current:  # a window that was too small took the focus
            self.prompt.focus()
        self.show()
