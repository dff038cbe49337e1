"""What only the window or line mode can do for a slash command. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UiRequest:
    """An action of the window or line mode: "help", "quit", "theme", "copy", "find", "paste", "keys" or "save"."""

    name: str
    argument: str = ""
