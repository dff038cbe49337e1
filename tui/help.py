"""The help screen: keys and commands on one page. Imported when it is first asked for. UI thread."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from mlxkv.tui.commands import help_rows

KEYS = (
    ("Enter", "send; while a reply runs, queue"),
    ("Ctrl+J, Shift+Enter, \\ Enter", "new line"),
    ("Esc", "stop the reply and keep it; twice clears the prompt"),
    ("Ctrl+C", "copy the selection, clear, stop, or quit (twice)"),
    ("Ctrl+D", "quit when the prompt is empty"),
    ("↑ ↓", "earlier prompts; ↑ takes a queued prompt back"),
    ("PgUp PgDn, wheel", "scroll"),
    ("End", "follow the reply again"),
    ("Ctrl+P", "menu and themes"),
    ("Mouse", "drag to select, Ctrl+C copies"),
)


def help_text() -> Text:
    rows = [("Keys", ""), *KEYS, ("", ""), ("Commands", ""), *help_rows(), ("//text", "send a text that starts with /")]
    width = max(len(left) for left, _ in rows) + 2
    text = Text()
    for left, right in rows:
        text.append(left.ljust(width), "" if right else "bold").append(right + "\n", "dim")
    text.rstrip()
    return text


class HelpScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: auto;
        max-width: 96%;
        height: auto;
        max-height: 96%;
        padding: 1 3;
        border: round $panel;
        background: $surface;
    }
    HelpScreen Static { width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1,question_mark,enter", "dismiss", "Close", id="help.close")
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(help_text(), markup=False)
