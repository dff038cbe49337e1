"""Colours of the transcript from a Textual theme. UI thread."""

from __future__ import annotations

from collections.abc import Mapping

from textual.color import Color, ColorParseError

from mlxkv.tui.markdown.block_renderer import Look


def theme_colours(variables: Mapping[str, str], dark: bool, ansi: bool, joined_emoji: bool = False) -> Look:
    """`variables` are the theme's (`app.theme_variables`). An ANSI theme uses the terminal's own colours."""
    if ansi:
        return Look("blue", "green", "red", "dim", "ansi_dark" if dark else "ansi_light", joined_emoji)
    plain = Look()

    def colour(name: str, default: str) -> str:
        try:
            return Color.parse(variables[name]).hex6.lower()
        except (KeyError, ColorParseError):
            return default

    return Look(
        accent=colour("text-primary", plain.accent),
        code_ink=colour("text-success", plain.code_ink),
        error=colour("text-error", plain.error),
        muted=_blend(variables, plain.muted),
        code="monokai" if dark else "friendly",
        joined_emoji=joined_emoji,
    )


def _blend(variables: Mapping[str, str], default: str) -> str:
    """A colour between text and background, for secondary lines."""
    try:
        background, text = Color.parse(variables["background"]), Color.parse(variables["foreground"])
    except (KeyError, ColorParseError):
        return default
    return background.blend(text, 0.6).hex6.lower()
