"""Text can be read on its background: the colours of each theme, and those painted in the light one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.color import Color as RichColor
from rich.color import ColorSystem
from textual.color import Color
from textual.theme import BUILTIN_THEMES

from mlxkv.config import Settings
from mlxkv.protocol.commands import OpenChat
from mlxkv.tui.contrast import READABLE, contrast, readable
from mlxkv.tui.markdown.code import highlight
from mlxkv.tui.theme import of_16, theme_colours, with_readable_row
from tests.tui.fake_engine import STATUS, FakeEngine
from tests.tui.window import Window, window

CODE = "@property\ndef f(x: int) -> str:  # a comment\n    return f'{x!r}' + 'text' if x > 3.5 else None\n"
DIFF = "@@ -1 +1 @@\n- removed\n+ added\n"
GRAPHIC = set("─│┃▁▂▃▄▅▆▇█▓░▰▱·▔▌▏▕╸╺━▲ ")


def test_a_ratio_is_that_of_wcag() -> None:
    white, black = Color(255, 255, 255), Color(0, 0, 0)
    assert (contrast(white, black), contrast(black, black)) == (pytest.approx(21), 1)
    assert contrast(Color.parse("#767676"), white) == pytest.approx(4.54, abs=0.01)
    assert readable(black, white) == black
    for grey in range(0, 256, 15):
        assert contrast(readable(Color(grey, grey, grey), Color(grey, grey, grey)), Color(grey, grey, grey)) >= READABLE


@pytest.mark.parametrize("name", [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi])
def test_the_transcript_can_be_read_in_every_theme(name: str) -> None:
    theme = BUILTIN_THEMES[name]
    variables = theme.to_color_system().generate()
    colours, background = theme_colours(variables, theme.dark, theme.ansi), Color.parse(variables["background"])
    shown = [colours.accent, colours.code, colours.error, colours.muted, colours.warning]
    code = [*highlight(CODE, "python", colours.code_theme), *highlight(DIFF, "diff", colours.code_theme)]
    shown += [s.style.color.get_truecolor().hex for line in code for s in line if s.style and s.style.color]
    assert len(shown) > 20
    assert {c: contrast(Color.parse(c), background) for c in shown if _is_faint(c, background)} == {}


@pytest.mark.parametrize("name", BUILTIN_THEMES)
def test_the_selected_row_can_be_read_in_every_theme(name: str) -> None:
    theme = BUILTIN_THEMES[name]
    given = theme.to_color_system().generate()
    made = with_readable_row(given)
    if theme.ansi:
        assert made == given
        return
    row = Color.parse(made["block-cursor-foreground"]), Color.parse(made["block-cursor-background"])
    assert contrast(*row) >= READABLE


def _is_faint(colour: str, background: Color) -> bool:
    return contrast(Color.parse(colour), background) < READABLE


def faint(w: Window) -> set[str]:
    """The painted texts that cannot be read; dim ones are painted in the colour that a terminal would show."""
    ground, found = Color.parse(w.app.theme_variables["background"]), set()
    for strip in w.app.screen._compositor.render_strips():
        for text, style, _ in strip:
            if style is None or style.color is None or not set(text) - GRAPHIC or style.reverse:
                continue
            behind = ground if style.bgcolor is None else Color.from_rich_color(style.bgcolor)
            if contrast(Color.from_rich_color(style.color), behind) < READABLE and len(text.strip()) > 1:
                found.add(text.strip())
    return found


@pytest.mark.parametrize("theme", ["textual-light", "textual-dark"])
async def test_what_a_theme_paints_can_be_read(theme: str) -> None:
    engine = FakeEngine(manual=True)
    async with window(engine, size=(120, 40), settings=Settings(theme=theme)) as w:
        w.app.state.submit(OpenChat("c1"))
        await w.until(lambda: w.app.state.transcript.messages)
        engine.say([replace(STATUS, cache_tokens=25_000)])  # the gauge warns
        await w.pilot.press("ctrl+b", "f2", "escape")
        await w.until(lambda: "November 2023" in w.screen() and "78%" in w.screen() and "Ring" in w.screen())
        await w.until(lambda: "Ask anything" in w.screen())
        assert faint(w) == set()
        await w.ask("why?")
        await w.ask("and then?")
        w.app.prompt.insert("/")
        await w.until(lambda: "waiting for the current reply" in w.screen() and "start a new chat" in w.screen())
        assert faint(w) == set()


@pytest.mark.parametrize("theme", ["textual-dark", "gruvbox", "solarized-light"])
async def test_a_selected_row_can_be_read(theme: str) -> None:
    async with window(size=(120, 40), settings=Settings(theme=theme)) as w:
        await w.ask("/set")
        await w.until(lambda: "Model to start with" in w.screen())
        assert faint(w) == set()


@pytest.mark.parametrize("name", [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi and not theme.dark])
def test_an_error_is_red_in_16_colours(name: str) -> None:
    theme = BUILTIN_THEMES[name]
    found = of_16(theme_colours(theme.to_color_system().generate(), theme.dark, theme.ansi))
    numbers = [RichColor.parse(c).downgrade(ColorSystem.STANDARD).number for c in (found.error, found.warning)]
    assert numbers == [1, 3]


async def test_the_placeholder_can_be_read_in_16_colours() -> None:
    async with window(settings=Settings(theme="textual-light")) as w:
        w.app.add_class("-few-colours")
        await w.until(lambda: "sk anything" in w.screen())
        strips = w.app.screen._compositor.render_strips()
        styles = [style for strip in strips for text, style, _ in strip if "sk anything" in text and style]
        assert {style.color and style.color.downgrade(ColorSystem.STANDARD).number for style in styles} == {8}


@pytest.mark.parametrize(("theme", "pair"), [("textual-dark", ("0", "6")), ("textual-light", ("15", "4"))])
async def test_a_selected_row_can_be_read_in_16_colours(theme: str, pair: tuple[str, str]) -> None:
    """Black on cyan, or white on blue."""
    async with window(settings=Settings(theme=theme)) as w:
        w.app.add_class("-few-colours")
        await w.ask("/set")
        await w.until(lambda: "Model to start with" in w.screen())
        strips = w.app.screen._compositor.render_strips()
        styles = [style for strip in strips for text, style, _ in strip if "Model to start with" in text and style]
        colours = [
            tuple(str(c.downgrade(ColorSystem.STANDARD).number) for c in (style.color, style.bgcolor) if c)
            for style in styles
        ]
        assert colours == [pair]
