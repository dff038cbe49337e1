"""The window's size changes while a reply comes."""

from __future__ import annotations

import pytest

from mlxkv.events import TextDelta
from mlxkv.protocol.events import TurnStarted
from tests.tui.fake_engine import FakeEngine
from tests.tui.window import window

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [(25, 6), (40, 12), (140, 40)])
async def test_a_reply_is_followed_through_any_size(size: tuple[int, int]) -> None:
    """After a window too small to show anything it stood still, as if the reader had scrolled away."""
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        lines = w.app.transcript.lines  # nothing is wrapped while nothing can be shown
        await w.ask("go")
        engine.say([TurnStarted("go")])
        for number, then in enumerate((size, (80, 24))):
            engine.say(TextDelta(f"word{number}{i} and more ", i) for i in range(90))
            await w.until(lambda number=number: any(f"word{number}89" in block.text for block in lines.blocks))
            await w.pilot.resize_terminal(*then)
            engine.say(TextDelta(f"then{number}{i} and more ", i) for i in range(90))
            await w.until(lambda number=number: any(f"then{number}89" in block.text for block in lines.blocks))
            await w.pilot.pause()
            assert w.app.transcript.view.follow, then
        await w.until(lambda: "then189" in w.screen())
