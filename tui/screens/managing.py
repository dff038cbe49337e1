"""What the window does about chats, models and settings: sidebar, lists, panel, and the wishes of slash commands.

What is decided is decided in `tui/state/chat_state.py` and `tui/state/slash_actions.py`. UI thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from textual.binding import Binding

from mlxkv.config import Folders, Settings
from mlxkv.errors import ConfigError
from mlxkv.protocol import commands as cmd
from mlxkv.tui.screens.chat import ROOM_FOR_SIDEBAR
from mlxkv.tui.screens.reading import ReadingApp
from mlxkv.tui.state import choice_lists as lists
from mlxkv.tui.state.choices import Listing, PutPrompt, Row, SendAnyway
from mlxkv.tui.state.slash_actions import Wish, run
from mlxkv.tui.state.transcript import title_line

if TYPE_CHECKING:
    from mlxkv.tui.widgets.picker import Picker
    from mlxkv.tui.widgets.sidebar import Sidebar


class ManagingApp(ReadingApp):
    """The app's own parts are declared here and made by the subclass."""

    settings: Settings
    folders: Folders | None

    def action_help(self) -> None:
        raise NotImplementedError

    def action_quit_chat(self) -> None:
        raise NotImplementedError

    # -- wishes of slash commands ------------------------------------------------------------------------

    def grant(self, wish: Wish) -> None:
        match wish:
            case Wish("help"):
                self.action_help()
            case Wish("keys"):
                self.show_keys()
            case Wish("quit"):
                self.action_quit_chat()
            case Wish("theme", name):
                self.choose_theme(name)
            case Wish("copy", what):
                self.copy_reply(what)
            case Wish("find", words):
                self.action_find(words)
            case Wish("paste"):
                self.prompt.action_paste()
            case Wish("save", name):
                self.save_setting(name)

    def show_keys(self) -> None:
        """Every binding by the id under which `[keys]` in config.toml binds it anew."""
        from mlxkv.tui.widgets.sidebar import Sidebar

        now = dict(self.settings.keys)
        rows = [
            Row(binding.id, PutPrompt(""), (binding.description, now.get(binding.id, binding.key)))
            for owner in (type(self), type(self.prompt), type(self.transcript), Sidebar)
            for binding in owner.BINDINGS
            if isinstance(binding, Binding) and binding.id
        ]
        self.state.show(Listing("Keys", tuple(rows), "[keys] in config.toml binds them · esc close"))

    def choose_theme(self, name: str) -> None:
        if not name:
            self.search_themes()
        elif name not in self.available_themes:
            self._say(f"There is no theme {name!r}; /theme lists them.")
        else:
            self.theme = name
            self.state.settings = replace(self.state.settings, theme=name)
            self.save_setting("theme")

    def save_setting(self, name: str) -> None:
        """Into config.toml, if this window has one."""
        if self.folders is None:
            return
        from mlxkv.config import save_setting

        value = self.theme if name == "theme" else getattr(self.state.settings, name)
        try:
            save_setting(self.folders, name, value)
        except ConfigError as error:
            self.state.error(str(error))

    # -- lists -------------------------------------------------------------------------------------------

    def on_picker_picked(self, message: Picker.Picked) -> None:
        self.view.close_picker()
        match message.choice:
            case PutPrompt(text):
                self.prompt.put(text)
            case SendAnyway(text) as choice:
                self.prompt.withdraw(text)
                self.state.send_anyway(choice)
            case None:
                pass
            case command:
                self.state.submit(command)
        self._sync()

    def action_chats(self) -> None:
        self.state.resume("")
        self._sync()

    def action_new_chat(self) -> None:
        self.state.submit(cmd.NewChat())
        self._sync()

    def action_models(self) -> None:
        self.state.submit(cmd.ListModels())
        self._sync()

    def action_think(self) -> None:
        if wish := run(self.state, "think", ""):
            self.grant(wish)
        self._sync()

    def action_rewind(self) -> None:
        if self.state.messages:
            self.state.show(lists.rewind_list(self.state.messages))
            self._sync()

    # -- sidebar and panel -------------------------------------------------------------------------------

    def action_sidebar(self) -> None:
        """Open and enter it, enter it, close it; a narrow window has the list instead."""
        if self.size.width < ROOM_FOR_SIDEBAR:
            self.action_chats()
            return
        if self.view.sidebar is None:
            sidebar = self.view.open_sidebar()
            self.state.submit(cmd.ListChats())
            sidebar.call_after_refresh(sidebar.focus_list)
        elif not self.view.sidebar.has_focus_within:
            self.view.sidebar.focus_list()
        else:
            self.view.close_sidebar()
        self._sync()

    def action_panel(self) -> None:
        self.view.wants_panel = not self.view.wants_panel
        if self.view.wants_panel and (self.size.height < 16 or self.size.width < 60):
            self._say("The panel needs 60×16.", seconds=2)
        self._sync()

    def on_sidebar_wanted(self, message: Sidebar.Wanted) -> None:
        chat = next((chat for chat in self.state.chats if chat.id == message.session_id), None)
        match message.wish:
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
                self.state.show(lists.delete_list(chat.id, chat.title))
            case "export":
                self.state.submit(cmd.ExportChat(session_id=chat.id))
        self._sync()
