"""An app under a pilot with a fake engine, for the tests of the window."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from textual.pilot import Pilot

from mlxkv.config import Folders, Settings
from mlxkv.protocol.commands import Command, LoadModel, NewChat
from mlxkv.protocol.events import ModelCard
from mlxkv.tui.app import ChatApp
from tests.tui.fake_engine import FakeEngine

FIRST = (ModelCard("tutor", 1_400_000, "MIT", "built in"),)


class Window:
    """An app under a pilot, and what a test wants to know of it."""

    def __init__(self, app: ChatApp, engine: FakeEngine, pilot: Pilot[int]) -> None:
        self.app, self.engine, self.pilot = app, engine, pilot

    async def until(self, condition: Callable[[], object], why: str = "") -> None:
        for _ in range(400):
            if condition():
                return
            await self.pilot.pause(0.01)
        raise AssertionError(f"never happened: {why or condition}\n{self.screen()}")

    async def type(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(*(key if len(key) > 1 and " " in key else [key]))

    async def ask(self, text: str) -> None:
        self.app.prompt.put(text)
        await self.pilot.press("enter")

    def said(self) -> str:
        return "\n".join(strip.text for strip in map(self.app.transcript.lines.line, range(self.height)))

    @property
    def height(self) -> int:
        return self.app.transcript.lines.height

    def bar(self, name: str) -> str:
        return getattr(self.app.chat, name).render().plain

    def queued(self) -> str:
        return self.app.chat.queued.render().plain

    def screen(self) -> str:
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    def sent(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.engine.commands if isinstance(command, kind)]


@asynccontextmanager
async def window(
    engine: FakeEngine | None = None,
    size: tuple[int, int] = (80, 24),
    model: str | None = "org/Qwen3-8B-4bit",
    ask: str | None = None,
    settings: Settings | None = None,
    folders: Folders | None = None,
) -> AsyncIterator[Window]:
    engine = engine or FakeEngine()
    commands: list[Command] = [LoadModel(model)] if model else []
    app = ChatApp(engine, FIRST, settings or Settings(), folders, [*commands, NewChat()], ask)
    async with app.run_test(size=size) as pilot:
        here = Window(app, engine, pilot)
        await here.until(lambda: engine.started, "engine started")
        if model and model != "missing":
            await here.until(lambda: app.state.is_ready, "model ready")
        yield here
