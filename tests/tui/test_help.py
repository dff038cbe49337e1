"""What help promises: every key of the prompt and of a message is named, and every command does something."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from textual.binding import Binding

from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.commands.slash import COMMANDS, help_rows
from mlxkv.tui.state.reports.help import KEYS, help_report
from mlxkv.tui.state.reports.report import Line
from mlxkv.tui.widgets.prompt import Prompt
from mlxkv.tui.widgets.transcript import Transcript
from tests.tui.window import Window, window

# What the page names otherwise, or need not: ways out, and what works while a search is open.
ELSEWHERE = {"message.leave", "message.next", "message.previous", "message.find", "message.page_up",
             "message.page_down", "prompt.interrupt", "prompt.end"}  # fmt: skip
NAMES = {"left_square_bracket": "[", "right_square_bracket": "]", "space": "Space", "up": "↑", "down": "↓",
         "enter": "Enter"}  # fmt: skip


def test_every_key_of_the_prompt_and_of_a_message_is_named() -> None:
    said = "\n".join(line.text for line in help_report().rows if isinstance(line, Line))
    for owner in (Prompt, Transcript):
        for binding in owner.BINDINGS:
            assert isinstance(binding, Binding)
            if binding.id in ELSEWHERE:
                continue
            key = binding.key.split(",")[0].split("+")
            parts = [NAMES.get(part, part.title() if len(part) > 1 else part) for part in key]
            if len(parts) > 1:
                parts[-1] = parts[-1].upper()
            shown = "+".join(parts) if binding.id != "prompt.message_below" and binding.id != "message.below" else "↓"
            assert re.search(rf"(^|\s){re.escape(shown)}(\s|$)", said, re.MULTILINE), binding.id


@pytest.mark.parametrize("width", [26, 40, 68, 120])
def test_no_word_is_cut_off(width: int) -> None:
    """At 80 columns the ends of lines were."""
    render = Renderer(Colours()).strips
    lines = [row.text for block in help_report().blocks() for row in render(block, width)]
    assert max(map(cell_len, lines)) <= max(width, 1 + max(len(usage) for usage, _ in help_rows()))
    words = " ".join(" ".join(lines).split())
    assert all(about in words for _, about in (*KEYS, *help_rows()))


@pytest.mark.slow
async def test_every_command_does_something() -> None:
    """A command that nobody takes up would pass by in silence."""
    async with window(size=(100, 30)) as w:
        await w.ask("hello")
        await w.until(lambda: not w.app.state.is_busy, "the reply is there")
        for command in COMMANDS:
            if command.name == "quit":
                continue
            before = seen(w)
            w.app._run_command(command.name, "")
            w.app.chat.sync()
            await w.until(changed(w, before), f"/{command.name} was taken up")
            await w.until(lambda: not w.app.state.is_busy, f"/{command.name} is done")
            await w.until(lambda: w.app.screen.is_mounted, "a dialog is there before it goes")
            while len(w.app.screen_stack) > 1:
                w.app.pop_screen()
            w.app.chat.close_picker()
            w.app.chat.close_pane()
            w.app.prompt.put("")
            w.app.state.editing = None
            w.app.chat._hint = ("", 0.0)
        w.app._run_command("quit", "")
        assert w.app.return_code == 0


def seen(w: Window) -> tuple[object, ...]:
    app, chat = w.app, w.app.chat
    return (len(w.engine.commands), len(app.screen_stack), chat.picker, app.prompt.text, chat._hint, chat.find_bar,
            chat.pane.report, len(app.transcript.lines))  # fmt: skip


def changed(w: Window, before: tuple[object, ...]) -> Callable[[], bool]:
    return lambda: seen(w) != before
