"""Screenshots of the chat for docs/chat.md, from the real program: `python -m bench.screenshots -m MODEL --out FOLDER`.

The window runs without a terminal, with a real engine and a home folder of its own; Textual exports its screen as SVG.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from mlxkv.config import Folders, Settings
from mlxkv.engine import Engine
from mlxkv.protocol.commands import LoadModel, NewChat
from mlxkv.tui.app import ChatApp

QUESTIONS = ("What is a KV cache?", "How do I save a prompt cache?", "What happens when the window is full?")
SIZE = (110, 34)


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
        path.write_text(self.app.export_screenshot(title="mlxkv", simplify=True), encoding="utf-8")
        print(path)


async def pictures(model: str, questions: tuple[str, ...], out: Path, folders: Folders) -> None:
    settings = Settings(temperature=0.0, max_tokens=160)
    engine = Engine(folders, settings)
    app = ChatApp(engine, (), settings, None, [LoadModel(model), NewChat()])
    try:
        async with app.run_test(size=SIZE) as pilot:
            camera, state, transcript = Camera(app, pilot, out), app.state, app.state.transcript
            await camera.until(lambda: state.is_ready)
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
    finally:
        engine.stop()
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="tutor")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="at least two")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        folders = Folders.from_env({"MLXKV_HOME": home})
        asyncio.run(pictures(args.model, tuple(args.questions), args.out, folders))


if __name__ == "__main__":
    main()
