"""Completions in the prompt: commands, arguments, files, earlier prompts. Pure; UI thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mlxkv.tui.state.commands.slash import BY_NAME, Completion, Prompt, complete, parse
from mlxkv.tui.state.prompt import file_index
from mlxkv.tui.state.prompt.attachments import mention
from mlxkv.tui.state.prompt.fuzzy import best


class Source(StrEnum):
    COMMAND = "command"
    ARGUMENT = "argument"
    FILE = "file"
    HISTORY = "history"


@dataclass
class Menu:
    """Completions, one of them chosen. `moved`: the user has moved the choice."""

    source: Source
    entries: list[Completion]
    title: str = ""
    at: int = 0
    moved: bool = False

    @property
    def chosen(self) -> Completion | None:
        return self.entries[self.at] if self.entries else None

    def move(self, step: int) -> None:
        if self.entries:
            self.at = (self.at + step) % len(self.entries)
            self.moved = True


def command_menu(text: str, presets: Sequence[str] = ()) -> Menu | None:
    """Completions of a line that starts with `/`."""
    entries = complete(text, presets)
    return Menu(Source.ARGUMENT if " " in text else Source.COMMAND, entries) if entries else None


def file_menu(typed: str, known: Sequence[str], base: Path) -> Menu | None:
    """Completions of `@` and a partial path."""
    found = file_index.list_folder(typed, base) if file_index.is_path(typed) else file_index.matching(typed, known)
    if not found:
        return None
    return Menu(Source.FILE, [Completion(mention(path), path, "", path.startswith(typed)) for path in found])


def history_menu(typed: str, entries: Sequence[str]) -> Menu:
    """Earlier prompts that contain every word of `typed`, latest first, without duplicates."""
    words = typed.casefold().split()
    newest = list(dict.fromkeys(reversed(entries)))
    found = [entry for entry in newest if all(word in entry.casefold() for word in words)]
    found = found or best(typed, newest, lambda entry: (entry[:200],))
    title = "earlier prompts · type to search · ⏎ insert · esc back"
    return Menu(Source.HISTORY, [Completion(entry, entry) for entry in found[:200]], title)


def runs_as_typed(text: str, menu: Menu) -> bool:
    """Whether Enter submits the line as typed, instead of the selected entry."""
    if menu.moved or menu.chosen is None:
        return menu.chosen is None
    if menu.source is Source.ARGUMENT:
        return True
    return menu.source is Source.COMMAND and text[1:].strip().lower() in BY_NAME


def runs_at_once(entry: Completion) -> bool:
    """Whether Enter runs the selected command: not after a fuzzy match, or if its argument is missing."""
    command = BY_NAME[entry.insert[1:].strip()]
    return entry.is_prefix and not command.needs_argument


def is_command(text: str) -> bool:
    return not isinstance(parse(text), Prompt)
