"""Completion for a text area: suggests commands, files or earlier prompts while one is typed. UI thread.

Owns the open menu and the span that an entry replaces. Entries come from `tui/state/prompt/completion.py`,
`completion_menu.py` draws them, and the prompt decides what Enter does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from textual.widgets import TextArea

from mlxkv.tui.state.commands.slash import Completion
from mlxkv.tui.state.prompt import attachments, completion, file_index
from mlxkv.tui.state.prompt.completion import Menu, Source
from mlxkv.tui.widgets.attached_files import AttachedFiles
from mlxkv.tui.widgets.completion_menu import MenuList

FILE_LIST_AGE = 10.0  # seconds for which a list of files is used


class Completer:
    """Completes in `area`; `put` replaces its whole text. `earlier` are prompts that were sent before."""

    def __init__(self, area: TextArea, files: AttachedFiles, put: Callable[[str], None]) -> None:
        self._area, self._attached, self._put = area, files, put
        self.earlier: Sequence[str] = ()
        self.presets: Callable[[], Sequence[str]] = tuple
        self.menu: Menu | None = None
        self.menu_list = MenuList(self._pick)
        self.dismissed = ""  # a text that gets no menu
        self._replaced = (0, 0), (0, 0)  # the span that an entry replaces
        self._draft: str | None = None  # typed before the search in earlier prompts began
        self._completed: object = None  # the text and the cursor that the menu is for
        self._paths: list[str] | None = None  # None: not listed yet
        self._paths_at = float("-inf")

    @property
    def typed(self) -> str:
        """The text that an entry would replace."""
        return self._area.get_text_range(*self._replaced)

    def update(self) -> None:
        """Update the menu after a change of the text or the cursor."""
        area, text, (row, column) = self._area, self._area.text, self._area.cursor_location
        here = (text, row, column, self._draft is None, None if self._paths is None else len(self._paths))
        if here == self._completed:
            return
        self._completed = here
        if self._draft is not None:
            self._replaced = (0, 0), area.document.end
            self.show(completion.history_menu(text, self.earlier))
            return
        if not text:
            self.dismissed = ""
            if self.menu is not None or self.menu_list.display:
                self.show(None)
            return
        menu, note = None, ""
        if text.startswith("/") and "\n" not in text and (text == "/" or completion.is_command(text)):
            self._replaced = (0, 0), area.document.end
            menu = completion.command_menu(text, self.presets() if text.startswith("/preset ") else ())
        elif found := attachments.partial_mention(area.document[row][:column]):
            self._replaced = (row, found[0]), (row, column)
            known = self._known_paths()
            base = self._attached.base
            menu = completion.file_menu(found[1], known or (), base)
            if menu is None and known is not None:
                note = file_index.nothing_found(found[1], base)
        if self.dismissed == text:
            menu, note = None, ""
        note = "" if menu else self._attached.note(text) or note
        if menu is not None or note or self.menu_list.display:
            self.show(menu, note)

    def cursor_moved(self) -> None:
        if self.menu is not None and self.menu.source is Source.FILE:  # it is about the text before the cursor
            self.update()

    def recount(self) -> None:
        """Refresh the note on attached files once their tokens have been counted."""
        if self.menu is None and self.menu_list.display and "@" in self._area.text:
            self.show(None, self._attached.note(self._area.text))

    def search_history(self) -> None:
        if self._draft is None:
            self._draft = self._area.text
            self.update()

    def show(self, menu: Menu | None, note: str = "") -> None:
        self.menu = menu
        self.menu_list.show(menu, note)

    def insert(self, entry: Completion) -> None:
        """Replace the typed part by the entry."""
        source = self.menu.source if self.menu else Source.COMMAND
        if source is Source.HISTORY:
            self._draft = None
            self._put(entry.insert)
            self.close()
            return
        has_more = entry.insert.endswith(("/", '/"', " "))
        text = entry.insert + (" " if source is Source.FILE and not has_more else "")
        result = self._area.replace(text, *self._replaced)
        self._area.move_cursor(result.end_location)
        if not has_more:
            self.close()

    def close(self) -> None:
        """Close the menu; a search in earlier prompts ends with the draft restored."""
        if self._draft is not None:
            draft, self._draft = self._draft, None
            self._put(draft)
        self.dismissed = self._area.text
        self.show(None, self._attached.note(self._area.text))

    def reset(self) -> None:
        """Forget menu and draft: the prompt was sent."""
        self._draft = None
        self.show(None)

    def _pick(self, index: int) -> None:
        if self.menu is not None:
            self.insert(self.menu.entries[index])

    def handle_key(self, key: str) -> bool:
        """Move in the open menu, take an entry or close it; returns whether the key was handled."""
        if self.menu is None:
            return False
        self.update()  # letters may have been typed since
        if self.menu is None:
            return False
        match key:
            case "up" | "ctrl+p":
                self.menu.move(-1)
            case "down" | "ctrl+n" | "ctrl+r" if key != "ctrl+r" or self._draft is not None:
                self.menu.move(1)
            case "tab" if self.menu.chosen is not None:
                self.insert(self.menu.chosen)
                return True
            case "escape":
                self.close()
                return True
            case _:
                return False
        self.menu_list.show(self.menu)
        return True

    # -- the list of files, made in a thread ---------------------------------------------------------------

    def _known_paths(self) -> list[str] | None:
        if time.monotonic() - self._paths_at > FILE_LIST_AGE:
            self._paths_at = time.monotonic()
            self._area.run_worker(self._list_files, thread=True, exclusive=True, group="files")
        return self._paths

    def _list_files(self) -> None:
        found = file_index.list_files(self._attached.base)
        self._area.app.call_from_thread(self._set_paths, found)

    def _set_paths(self, found: list[str]) -> None:
        self._paths, self._paths_at = found, time.monotonic()
        self.update()
