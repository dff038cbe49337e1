"""Whether the terminal draws joined emoji (a family, a profession) as one, two cells wide. Pure.

Other terminals draw each part two cells wide, which shifts the rest of the line, so there they are shown in parts.
Textual does not pass on a terminal's support of grapheme clusters (mode 2027), so terminals are known by their names.
"""

from __future__ import annotations

from collections.abc import Mapping

_PROGRAMS = {"iTerm.app", "WezTerm", "ghostty", "contour"}  # TERM_PROGRAM, TERMINAL_NAME
_TERMS = ("xterm-kitty", "xterm-ghostty", "foot", "wezterm", "contour")


def joins_emoji(setting: bool | None, env: Mapping[str, str]) -> bool:
    """The setting; without one, whether the terminal is known to, and no tmux or screen in between counts cells."""
    if setting is not None:
        return setting
    term = env.get("TERM", "")
    if env.get("TMUX") or env.get("STY") or term.startswith(("tmux", "screen")):
        return False
    names = (env.get("TERM_PROGRAM", ""), env.get("TERMINAL_NAME", ""))
    return term.startswith(_TERMS) or any(name in _PROGRAMS for name in names)
