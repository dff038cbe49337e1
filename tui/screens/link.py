"""The link screen: shows an address in full before it is opened. Imported when it is first needed. UI thread."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from mlxkv.text.clean import clean


def is_web(address: str) -> bool:
    """Whether an address may be opened: `file:`, `javascript:` and the like may run something at once."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and clean(address) == address


def host_note(address: str) -> str:
    """The ASCII form of a host with other letters: `аpple.com` in Cyrillic is not apple.com."""
    host = urlsplit(address).hostname or ""
    if host.isascii():
        return ""
    try:
        return f"The host has letters that are not ASCII: {host.encode('idna').decode()}"
    except UnicodeError:
        return "The host has letters that are not ASCII and is not a valid name."


class LinkScreen(ModalScreen[str]):
    """Dismissed with "open", "copy" or ""."""

    DEFAULT_CSS = """
    LinkScreen { align: center middle; }
    LinkScreen > VerticalScroll {
        width: auto;
        min-width: 40;
        max-width: 96%;
        height: auto;
        max-height: 80%;
        padding: 0 2;
        border: round $panel;
        background: $surface;
    }
    LinkScreen Static { width: auto; max-width: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "close('open')", "Open", id="link.open"),
        Binding("y", "close('copy')", "Copy", id="link.copy"),
        Binding("escape,q,n", "close('')", "Close", id="link.close"),
    ]

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def compose(self) -> ComposeResult:
        text = Text("Open this address in the browser?\n\n", "bold", overflow="fold").append(self.address, "not bold")
        if note := host_note(self.address):
            text.append(f"\n\n▲ {note}", "not bold")
        text.append("\n\n⏎ open · y copy · esc close", "not bold dim")
        with VerticalScroll():
            yield Static(text, markup=False)

    def action_close(self, choice: str) -> None:
        self.dismiss(choice)
