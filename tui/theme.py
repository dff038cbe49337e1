"""Colours of the transcript from a Textual theme. UI thread."""

from __future__ import annotations

from collections.abc import Mapping

from textual.color import Color, ColorParseError

from mlxkv.tui.markdown.block_renderer import Colours


def theme_colours(variables: Mapping[str, str], dark: bool, ansi: bool, joined_emoji: bool = False) -> Colours:
    """`variables` are the theme's (`app.theme_variables`). An ANSI theme uses the terminal's own colours."""
    if ansi:
        return Colours("blue", "green", "red", "dim", "ansi_dark" if dark else "ansi_light", joined_emoji)
    plain = Colours()

    def colour(name: str, default: str) -> str:
        try:
            return Color.parse(variables[name]).hex6.lower()
        except (KeyError, ColorParseError):
            return default

    try:  # between background and text, for secondary lines
        background, text = Color.parse(variables["background"]), Color.parse(variables["foreground"])
        muted = background.blend(text, 0.6).hex6.lower()
    except (KeyError, ColorParseError):
        muted = plain.muted
    return Colours(
        accent=colour("text-primary", plain.accent),
        code=colour("text-success", plain.code),
        error=colour("text-error", plain.error),
        muted=muted,
        code_theme="monokai" if dark else "friendly",
        joined_emoji=joined_emoji,
    )
