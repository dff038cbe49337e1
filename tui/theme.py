"""Colours that a Textual theme leaves open: those of the transcript, and of a selected row. UI thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from textual.color import Color, ColorParseError

from mlxkv.tui.contrast import readable
from mlxkv.tui.markdown.block_renderer import CodeTheme, Colours

_ROW = "block-cursor-"  # the selected row of a list; its colours are variables of a theme


def with_readable_row(variables: Mapping[str, str]) -> dict[str, str]:
    """A theme's variables, with a selected row that can be read."""
    background = Color.parse(variables[f"{_ROW}background"])
    if background.ansi is not None:
        return dict(variables)
    try:
        text = Color.parse(variables[f"{_ROW}foreground"])
    except ColorParseError:  # "auto"
        text = background.get_contrast_text(1.0)
    return {**variables, f"{_ROW}foreground": readable(text, background).hex6}


def theme_colours(variables: Mapping[str, str], dark: bool, ansi: bool, joined_emoji: bool = False) -> Colours:
    """`variables` are the theme's (`app.theme_variables`). An ANSI theme uses the terminal's own colours."""
    if ansi:
        code = CodeTheme("ansi_dark" if dark else "ansi_light")
        return Colours("blue", "green", "red", "dim", "yellow", code, joined_emoji)
    plain = Colours()
    try:
        background, text = Color.parse(variables["background"]), Color.parse(variables["foreground"])
    except (KeyError, ColorParseError):
        return replace(plain, joined_emoji=joined_emoji)

    def colour(name: str, default: str) -> str:
        try:
            found = Color.parse(variables[name])
        except (KeyError, ColorParseError):
            found = Color.parse(default)
        return readable(found, background).hex6.lower()

    return Colours(
        accent=colour("text-primary", plain.accent),
        code=colour("text-success", plain.code),
        error=colour("text-error", plain.error),
        muted=readable(background.blend(text, 0.6), background).hex6.lower(),  # for secondary lines
        warning=colour("text-warning", plain.warning),
        code_theme=CodeTheme("monokai" if dark else "friendly", background.hex6),
        joined_emoji=joined_emoji,
    )


def of_16(colours: Colours) -> Colours:
    """Colours of a light theme where the terminal has 16: the nearest to its dark red is grey."""
    return replace(colours, error="#aa0000", warning="#aa5500")
