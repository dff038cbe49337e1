"""The help screen: keys and commands on one page. Imported when it is first opened. UI thread."""

from __future__ import annotations

from textwrap import wrap
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Static

from mlxkv.tui.state.slash import help_rows

KEYS = (
    ("Enter", "send, or queue while a reply runs"),
    ("Ctrl+J", "new line (also Shift+Enter, Alt+Enter, \\ Enter)"),
    ("Esc", "stop the reply; twice clears the prompt, or goes back to a message"),
    ("Ctrl+C", "copy the selection, clear, stop; twice quits"),
    ("Ctrl+D", "quit when the prompt is empty"),
    ("↑ ↓ Ctrl+R", "earlier prompts, search them; ↑ also edits a queued one"),
    ("Ctrl+G", "write the prompt in $EDITOR"),
    ("@", "attach a file"),
    ("PgUp PgDn", "scroll (also Shift+↑ ↓, the wheel)"),
    ("End", "follow the reply again"),
    ("Ctrl+B Ctrl+K", "chats in a sidebar, chats in a list"),
    ("Ctrl+N", "new chat"),
    ("F2", "the cache: ring, speed, memory, disk"),
    ("Ctrl+T Ctrl+O", "reasoning on or off; fold or unfold it"),
    ("Ctrl+F", "search in this chat"),
    ("Alt+↑ ↓", "move over the messages; then:"),
    ("  y c", "copy it, copy its code"),
    ("  e r f", "edit and ask again, reply again, fork here"),
    ("  [ ] Space", "its other versions; fold or unfold"),
    ("Ctrl+P", "menu and themes"),
    ("Ctrl+L Ctrl+Z", "redraw, suspend"),
    ("```", "code; fences follow CommonMark, but ```markdown may contain fences with a language"),
    ("Mouse", "drag to select, Ctrl+C copies; a click on a link shows its full address first"),
)


def help_text(width: int = 120) -> Text:
    """Two columns, the right one wrapped; in a narrow window the right one is below the left."""
    rows = [("Keys", ""), *KEYS, ("", ""), ("Commands", ""), *help_rows(), ("//text", "send a text that starts with /")]
    column = max(len(left) for left, _ in rows) + 2
    is_narrow = width < 2 * column
    column = 4 if is_narrow else column
    text = Text()
    for left, right in rows:
        lines = wrap(right, max(10, width - column))
        if not lines:
            text.append(f"{left}\n", "bold")
            continue
        text.append(f"{left.strip()}\n{' ' * column}" if is_narrow else left.ljust(column))
        text.append(f"\n{' ' * column}".join(lines) + "\n", "dim")
    text.rstrip()
    return text


class HelpScreen(ModalScreen[None]):
    """The help text, in a window of its size."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: auto;
        max-width: 96%;
        height: auto;
        max-height: 96%;
        padding: 0 2;
        border: round $panel;
        background: $surface;
    }
    HelpScreen Static { width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1,question_mark,enter", "dismiss", "Close", id="help.close")
    ]

    def __init__(self) -> None:
        super().__init__()
        self._text = Static(markup=False)

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield self._text

    def on_resize(self, event: Resize) -> None:
        self._text.update(help_text(event.size.width * 96 // 100 - 8))  # borders, padding, the scroll bar
