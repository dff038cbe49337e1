"""Whether this terminal draws emoji that are joined as one (a family, a profession), two cells wide. Pure.

Elsewhere each part takes two cells, and the rest of the line would stand too far right: there they are shown in parts.
Textual does not pass on what a terminal says of grapheme clusters (mode 2027), so it is known by its name.
"""

from __future__ import annotations

from collections.abc import Mapping

_PROGRAMS = {"iTerm.app", "WezTerm", "ghostty", "contour"}  # TERM_PROGRAM, TERMINAL_NAME
_TERMS = ("xterm-kitty", "xterm-ghostty", "foot", "wezterm", "contour")


def joins_emoji(setting: bool | None, env: Mapping[str, str]) -> bool:
    """The setting; where there is none, whether the terminal is one of those that do, and nothing between it and us
    (tmux, screen) counts cells its own way."""
    if setting is not None:
        return setting
    term = env.get("TERM", "")
    if env.get("TMUX") or env.get("STY") or term.startswith(("tmux", "screen")):
        return False
    names = (env.get("TERM_PROGRAM", ""), env.get("TERMINAL_NAME", ""))
    return term.startswith(_TERMS) or any(name in _PROGRAMS for name in names)
