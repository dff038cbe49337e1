"""A text area that offers what may be meant while a command, a file or an earlier prompt is being named. UI thread.

What is offered comes from `tui/state/completion.py`; `completion_menu.py` draws it above the prompt. What Enter means
is the prompt's business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from textual.events import Key
from textual.widgets import TextArea

from mlxkv.stats import tokens_text
from mlxkv.text.clean import clean
from mlxkv.tui.state import attachments as attach
from mlxkv.tui.state import completion as offers
from mlxkv.tui.state import file_index as files
from mlxkv.tui.widgets.completion_menu import Entry, Menu, MenuList, Source

FRESH = 10.0  # seconds for which a list of files is good


class OfferingArea(TextArea):
    """`words`: arguments to offer, by command. `earlier`: prompts. Relative paths start at `base`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.words: Mapping[str, Sequence[str]] = {}
        self.earlier: Sequence[str] = ()
        self.base = Path()
        self.count: Callable[[str], int | None] = lambda text: None  # tokens of a file's text, where they are known
        self.window = 0  # tokens that the model sees at a time, 0 while unknown
        self.menu: Menu | None = None
        self.menu_list = MenuList(self._pick)
        self._place = offers.Place((0, 0), (0, 0))  # what an entry of the menu takes the place of
        self._refused = ""  # for this text the menu was closed
        self._draft: str | None = None  # what was typed before earlier prompts were searched
        self._offered: object = None  # the text and the cursor that the menu is for
        self._seen: dict[str, tuple[object, attach.Attachment]] = {}  # files that were named, by path
        self._recalled: Mapping[str, attach.Attachment] = {}  # files that came with the text that was put here last
        self._files: list[str] | None = None  # None: not listed yet
        self._files_at = float("-inf")

    def on_mount(self) -> None:
        row = self.parent
        if row is not None and row.parent is not None:
            self.call_later(row.parent.mount, self.menu_list, before=row)  # pyright: ignore[reportAttributeAccessIssue]

    def put(self, text: str) -> None:
        """Replace the text; the cursor goes to its end. Of files that were sent along, the names stay."""
        typed, files = attach.recall(text)
        self._recalled = files or self._recalled
        typed = clean(typed, joined=True)
        if not offers.is_command(typed):
            self._refused = typed  # it is all there already: Enter must send it, and Up go on to the prompt before it
        self.load_text(typed)
        self.move_cursor(self.document.end)

    # -- the menu ----------------------------------------------------------------------------------------

    def _on_text_area_changed(self) -> None:
        self._offer()

    def _on_text_area_selection_changed(self) -> None:
        if self.menu is not None and self.menu.source is Source.FILE:  # it is about where the cursor was
            self._offer()

    def _offer(self) -> None:
        """Bring the menu up to date with the text and the cursor."""
        text, (row, column) = self.text, self.cursor_location
        here = (text, row, column, self._draft is None, None if self._files is None else len(self._files))
        if here == self._offered:
            return
        self._offered = here
        if self._draft is not None:
            self._place = offers.Place((0, 0), self.document.end)
            self._show_menu(offers.history_menu(text, self.earlier))
            return
        if not text:
            self._refused = ""
            if self.menu is not None or self.menu_list.display:
                self._show_menu(None)
            return
        menu, note = None, ""
        if text.startswith("/") and "\n" not in text and (text == "/" or offers.is_command(text)):
            self._place = offers.Place((0, 0), self.document.end)
            menu = offers.command_menu(text, self.words)
        elif found := attach.partial_mention(self.document[row][:column]):
            self._place = offers.Place((row, found[0]), (row, column))
            known = self._known_files()
            menu = offers.file_menu(found[1], known or (), self.base)
            if menu is None and known is not None:
                note = files.nothing_found(found[1], self.base)
        if self._refused == text:
            menu, note = None, ""
        note = "" if menu else self._attached_note(text) or note
        if menu is not None or note or self.menu_list.display:
            self._show_menu(menu, note)

    def _show_menu(self, menu: Menu | None, note: str = "") -> None:
        self.menu = menu
        self.menu_list.show(menu, note)

    def _typed(self) -> str:
        return self.get_text_range(self._place.start, self._place.end)

    def _take(self, entry: Entry) -> None:
        """Put the entry in the place of what was typed."""
        source = self.menu.source if self.menu else Source.COMMAND
        if source is Source.HISTORY:
            self._draft = None
            self.put(entry.insert)
            self._close_menu()
            return
        goes_on = entry.insert.endswith(("/", '/"', " "))
        insert = entry.insert + (" " if source is Source.FILE and not goes_on else "")
        result = self.replace(insert, self._place.start, self._place.end)
        self.move_cursor(result.end_location)
        if not goes_on:
            self._close_menu()

    def _close_menu(self) -> None:
        if self._draft is not None:
            draft, self._draft = self._draft, None
            self.put(draft)
        self._refused = self.text
        self._show_menu(None, self._attached_note(self.text))

    def _pick(self, index: int) -> None:
        if self.menu is not None:
            self._take(self.menu.entries[index])

    def _menu_key(self, event: Key) -> bool:
        """Keys that mean the menu while it is there; whether it was one."""
        if self.menu is None:
            return False
        self._offer()  # letters may have come since
        if self.menu is None:
            return False
        match event.key:
            case "up" | "ctrl+p":
                self.menu.move(-1)
            case "down" | "ctrl+n" | "ctrl+r" if event.key != "ctrl+r" or self._draft is not None:
                self.menu.move(1)
            case "tab" if self.menu.chosen is not None:
                self._take(self.menu.chosen)
                return True
            case "escape":
                self._close_menu()
                return True
            case _:
                return False
        self.menu_list.show(self.menu)
        return True

    def _known_files(self) -> list[str] | None:
        if time.monotonic() - self._files_at > FRESH:
            self._files_at = time.monotonic()
            self.run_worker(self._list_files, thread=True, exclusive=True, group="files")
        return self._files

    def _list_files(self) -> None:
        found = files.list_files(self.base)
        self.app.call_from_thread(self._listed, found)

    def _listed(self, found: list[str]) -> None:
        self._files, self._files_at = found, time.monotonic()
        self._offer()

    def _attached_note(self, text: str) -> str:
        """What will be sent along: `src/main.rs 212 lines · ~2.9k tok`."""
        if "@" not in text or offers.is_command(text):
            return ""
        notes = []
        for path in attach.mentioned_files(text, self.base, self._recalled)[:4]:
            try:
                file = self._read(path)
                tokens = self.count(file.text)
                over = tokens is not None and 0 < self.window < tokens
                more = f" · ▲ the window holds {tokens_text(self.window)}" if over else ""
                gone = "" if attach.exists(self.base, path) else " · gone, as it was sent"
                notes.append(f"@{path} {file.size(tokens)}{gone}{more}")
            except attach.AttachError as error:
                notes.append(f"✗ {error}")
        return "   ".join(notes)

    def _read(self, path: str) -> attach.Attachment:
        """The file; read again only if it changed: this is asked with every letter."""
        if path in self._recalled and not attach.exists(self.base, path):
            return self._recalled[path]
        stamp: object = None
        with suppress(OSError, ValueError, RuntimeError):
            status = os.stat(self.base / Path(path).expanduser())
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen = self._seen.get(path)
        if seen is None or stamp is None or seen[0] != stamp:
            seen = self._seen[path] = (stamp, attach.read(path, self.base))
        return seen[1]

    def recount(self) -> None:
        """Tokens of files are known that were not."""
        if self.menu is None and self.menu_list.display and "@" in self.text:
            self._show_menu(None, self._attached_note(self.text))

    def action_search_history(self) -> None:
        if self._draft is None:
            self._draft = self.text
            self._offer()
