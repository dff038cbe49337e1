"""Colours that can be read on a background, by the contrast ratio of WCAG 2. Pure; any thread."""

from __future__ import annotations

from textual.color import BLACK, WHITE, Color

READABLE = 4.5  # the least ratio for text


def contrast(one: Color, other: Color) -> float:
    """From 1 (equal) to 21 (black and white)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def readable(colour: Color, background: Color) -> Color:
    """The colour, darker or lighter as far as needed for text on `background`."""
    end = max(BLACK, WHITE, key=lambda c: contrast(c, background))
    mixed = (colour.blend(end, step / 20) for step in range(20))
    return next((found for found in mixed if contrast(found, background) >= READABLE), end)


def _luminance(colour: Color) -> float:
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
