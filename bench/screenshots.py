"""Screenshots for README.md and docs/chat.md, of the program itself: `python -m bench.screenshots -m MODEL`.

The window runs without a terminal, with a real engine and a home folder of its own; Textual exports its screen as SVG.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot

from mlxkv.config import Folders, Settings
from mlxkv.engine import Engine
from mlxkv.protocol.commands import Command, LoadModel, NewChat, OpenChat
from mlxkv.tui.app import ChatApp

QUESTIONS = ("What is a KV cache?", "How do I save a prompt cache?", "What happens when the window is full?")
SIZE = (110, 34)
README_QUESTIONS = ("My name is Ada.", "What is my name?")
README_SIZE = (100, 24)


class Camera:
    """Screenshots of an app under a pilot, written to `out`."""

    def __init__(self, app: ChatApp, pilot: Pilot[int], out: Path) -> None:
        self.app, self.pilot, self.out = app, pilot, out

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.pilot.pause(0.05)
        await self.pilot.pause(0.3)  # until its effects are painted

    async def run(self, line: str) -> None:
        self.app.prompt.put(line)
        await self.pilot.press("enter")

    async def ask(self, question: str) -> None:
        state, transcript = self.app.state, self.app.state.transcript
        done = len(transcript.messages) + 2
        await self.run(question)
        await self.until(
            lambda: len(transcript.messages) >= done and not transcript.reply and "saved" in state.status.saved
        )

    def take(self, name: str) -> None:
        path = self.out / f"{name}.svg"
        path.write_text(without_fonts(self.app.export_screenshot(title="mlxkv", simplify=True)), encoding="utf-8")
        print(path)


def without_fonts(svg: str) -> str:
    """Leave out the fonts that Textual names on another host: the page then uses its own monospace font."""
    return re.sub(r"\s*@font-face \{[^}]*\}", "", svg)


@asynccontextmanager
async def window(
    model: str, folders: Folders, out: Path, start: Command, size: tuple[int, int] = SIZE
) -> AsyncIterator[Camera]:
    """A window with its engine, closed at the end as a user closes it."""
    settings = Settings(temperature=0.0, max_tokens=160)
    engine = Engine(folders, settings)
    app = ChatApp(engine, (), settings, None, [LoadModel(model), start])
    try:
        async with app.run_test(size=size) as pilot:
            camera = Camera(app, pilot, out)
            await camera.until(lambda: app.state.is_ready)
            yield camera
    finally:
        engine.stop()
        engine.close()


async def resumed(model: str, out: Path, folders: Folders) -> None:
    """The picture of README.md: a chat closed in one process's window and continued in another window."""
    async with window(model, folders, out, NewChat(), README_SIZE) as camera:
        await camera.ask(README_QUESTIONS[0])
        session_id = camera.app.state.session_id
    assert session_id
    async with window(model, folders, out, OpenChat(session_id), README_SIZE) as camera:
        await camera.ask(README_QUESTIONS[1])
        camera.take("resume")


async def pictures(model: str, questions: tuple[str, ...], out: Path, folders: Folders) -> None:
    """The pictures of docs/chat.md."""
    async with window(model, folders, out, NewChat()) as camera:
        app, pilot, state = camera.app, camera.pilot, camera.app.state
        transcript = state.transcript
        await camera.ask(questions[-1])
        await camera.run("/new")
        await camera.until(lambda: transcript.is_empty)
        for question in questions[:-1]:
            await camera.ask(question)
        camera.take("chat")
        await pilot.press("f2")
        await camera.until(lambda: app.chat.panel.display)
        camera.take("cache")
        await pilot.press("f2")
        before = state.session_id
        await camera.run("/retry")
        await camera.until(
            lambda: state.session_id != before and not transcript.reply and len(transcript.messages) >= 4
        )
        await pilot.press("ctrl+b")
        await camera.until(lambda: app.chat.sidebar and state.chats)
        camera.take("chats")
        await pilot.press("escape", "ctrl+b", "ctrl+b")
        for name, line in (("context", "/context"), ("models", "/model"), ("settings", "/set")):
            await camera.run(line)
            await camera.until(lambda: not state.is_busy)
            camera.take(name)
            await pilot.press("escape")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="tutor")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="at least two")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        folders = Folders.from_env({"MLXKV_HOME": home})
        asyncio.run(resumed(args.model, args.out, folders))
        asyncio.run(pictures(args.model, tuple(args.questions), args.out, folders))


if __name__ == "__main__":
    main()
