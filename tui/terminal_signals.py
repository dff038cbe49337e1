"""Sequences that set the terminal's title and call for attention, for terminals known to have them. Pure.

Inside tmux and screen, which may pass nothing on, attention is a bell; they mark the window that has rung.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from mlxkv.text.clean import clean

BELL = "\a"
_PUSH, _POP = "\x1b[22;0t", "\x1b[23;0t"  # a stack of titles, which most terminals have
_OSC_9 = {"iTerm.app", "iTerm2", "WezTerm", "ghostty", "WarpTerminal"}  # TERM_PROGRAM, LC_TERMINAL
_OSC_9_TERMS = ("xterm-kitty", "xterm-ghostty", "wezterm")
_OSC_777_TERMS = ("foot", "rxvt-unicode")


@runtime_checkable
class HasTitle(Protocol):
    """A driver of a terminal with a title."""

    def set_title(self, text: str) -> None: ...


def has_title(env: Mapping[str, str]) -> bool:
    return not env.get("TERM", "").startswith(("linux", "dumb")) and bool(env.get("TERM"))


def first_title(text: str) -> str:
    """Keeps the terminal's own title, and sets ours."""
    return _PUSH + set_title(text)


def set_title(text: str) -> str:
    return f"\x1b]0;{_line(text)}\x1b\\"


def own_title() -> str:
    """Gives the terminal its own title back; one without a stack makes it anew when it is empty."""
    return set_title("") + _POP


def attention(text: str, env: Mapping[str, str]) -> str:
    """A notification with `text`, or the bell."""
    term = env.get("TERM", "")
    if env.get("TMUX") or env.get("STY") or term.startswith(("tmux", "screen")):
        return BELL
    if _OSC_9 & {env.get("TERM_PROGRAM", ""), env.get("LC_TERMINAL", "")} or term.startswith(_OSC_9_TERMS):
        return f"\x1b]9;{_line(text)}\x1b\\"
    if term.startswith(_OSC_777_TERMS):
        return f"\x1b]777;notify;mlxkv;{_line(text).replace(';', ',')}\x1b\\"
    return BELL


def _line(text: str) -> str:
    return " ".join(clean(text).split())
