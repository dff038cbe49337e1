"""Process time of the window: `python -m bench.tui`. No model; a fake engine emits the text.

Budgets (design/chat-ui.md): a flush <= 20 ms at 200 messages, key echo <= 8 ms, 500 messages to first paint <= 150 ms,
first frame <= 0.5 s after the process starts, >= 95 % of decode speed kept at 500 tok/s.
"""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
import threading
import time
from statistics import median

import textual
from textual.events import Key

from mlxkv.config import Settings
from mlxkv.events import Message, TextDelta
from mlxkv.protocol.commands import Command, LoadModel, NewChat, OpenChat, Send
from mlxkv.protocol.events import ChatOpened
from mlxkv.tui.app import ChatApp
from tests.tui.fake_engine import REPLY, STATS, FakeEngine

MODEL = "mlx-community/Qwen3-8B-4bit"


def old_messages(count: int) -> tuple[Message, ...]:
    pair = (Message("user", "Why does this borrow fail?"), Message("assistant", REPLY, STATS))
    return tuple(pair[i % 2] for i in range(count))


def app_with(num_messages: int) -> tuple[ChatApp, FakeEngine]:
    engine = FakeEngine(manual=True)
    engine.history = old_messages(num_messages)
    commands: list[Command] = [LoadModel(MODEL), OpenChat("c1")]
    return ChatApp(engine, (), Settings(), None, commands), engine


async def painted(app: ChatApp) -> None:
    """Wait until everything that is queued now is on the screen."""
    done = asyncio.Event()
    app.call_after_refresh(done.set)
    await done.wait()


async def flush_and_key(num_messages: int, rounds: int = 60) -> tuple[float, float]:
    """Median process time of one flush (40 characters of a reply) and of one key."""
    app, engine = app_with(num_messages)
    flushes: list[float] = []
    keys: list[float] = []
    async with app.run_test(size=(120, 40)) as pilot:
        while not app.state.is_ready or not len(app.transcript.lines):
            await pilot.pause(0.02)
        while app.transcript.view.is_wrapping:
            await pilot.pause(0.02)
        app.state.prompt("go")
        text = REPLY * 40
        for i in range(rounds):
            app.state.apply(TextDelta(text[40 * i : 40 * i + 40], 8 * i))
            start = time.process_time()
            app.chat.sync()
            await painted(app)
            flushes.append(time.process_time() - start)
        for _ in range(rounds // 2):
            before = app.prompt.text
            start = time.process_time()
            app.post_message(Key("x", "x"))
            while app.prompt.text == before:
                await asyncio.sleep(0)
            await painted(app)
            keys.append(time.process_time() - start)
        engine.events.clear()
    return median(flushes), median(keys)


async def opening(num_messages: int) -> float:
    """Process time from `ChatOpened` to its visible part on the screen."""
    app, engine = app_with(0)
    async with app.run_test(size=(120, 40)) as pilot:
        while not app.state.is_ready:
            await pilot.pause(0.02)
        event = ChatOpened("c2", "long", old_messages(num_messages))
        start = time.process_time()
        app.state.apply(event)
        app.chat.sync()
        await painted(app)
        spent = time.process_time() - start
        engine.events.clear()
    return spent


class BusyEngine(FakeEngine):
    """A thread that burns as much processor per token as a small model's Python loop does."""

    def __init__(self, tokens: int, work_s: float) -> None:
        super().__init__(manual=True)
        self.tokens, self.work_s, self.spent = tokens, work_s, 0.0
        self.done = threading.Event()

    def submit(self, command: Command) -> None:
        if isinstance(command, Send):
            threading.Thread(target=self.decode).start()
        else:
            super().submit(command)

    def decode(self) -> None:
        start = time.perf_counter()
        text = REPLY * (1 + 5 * self.tokens // len(REPLY))
        for i in range(self.tokens):
            until = time.thread_time() + 0.15 * self.work_s  # Python's share; the rest is the GPU's, and holds no lock
            while time.thread_time() < until:
                pass
            time.sleep(0.85 * self.work_s)
            self.events.append(TextDelta(text[5 * i : 5 * i + 5], i + 1))
        self.spent = time.perf_counter() - start
        self.done.set()


async def kept_speed(tokens: int = 750, rate: float = 500.0, rounds: int = 5) -> tuple[float, float]:
    """Ratio of the decode speed with the window to that without, the median of alternating rounds.

    And the window's processor time per second of the stream, which a busy machine disturbs less.
    """
    ratios: list[float] = []
    shares: list[float] = []
    for _ in range(rounds):
        alone = BusyEngine(tokens, 1 / rate)
        await asyncio.to_thread(alone.decode)
        beside = BusyEngine(tokens, 1 / rate)
        app = ChatApp(beside, (), Settings(), None, [LoadModel(MODEL), NewChat()], "go")
        async with app.run_test(size=(120, 40)):
            cpu, start = time.thread_time(), time.perf_counter()
            await asyncio.to_thread(beside.done.wait)
            shares.append((time.thread_time() - cpu) / (time.perf_counter() - start))
        ratios.append(alone.spent / beside.spent)
    return median(ratios), median(shares)


FIRST_FRAME = """
import time
from mlxkv.config import Folders, Settings
from mlxkv.tui.app import ChatApp
from tests.tui.fake_engine import FakeEngine
class Engine(FakeEngine):
    def start(self):
        print(time.time() - START, time.process_time())
        app.exit(0)
app = ChatApp(Engine(), (), Settings(), Folders.from_env())
app.run(headless=True, size=(120, 40))
"""


def first_frame() -> tuple[float, float]:
    """Wall and process time from the start of the process to the start of the engine, which follows the first frame."""
    code = f"START = {time.time()}\n" + FIRST_FRAME
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    wall, cpu = map(float, out.split())
    return wall, cpu


def main() -> None:
    sys.setswitchinterval(0.0005)
    print(
        f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, textual {textual.__version__}"
    )
    frames = [first_frame() for _ in range(5)]
    print(f"first frame        {median(w for w, _ in frames) * 1e3:6.0f} ms wall, "
          f"{median(c for _, c in frames) * 1e3:.0f} ms cpu   (budget 500 wall)")  # fmt: skip
    for count in (0, 200, 500):
        flush, key = asyncio.run(flush_and_key(count))
        print(f"{count:3} messages: flush {flush * 1e3:5.1f} ms (budget 20), key {key * 1e3:5.1f} ms (budget 8)")
    for count in (500, 2000):
        spent = [asyncio.run(opening(count)) for _ in range(3)]
        print(f"{count:4} messages open {median(spent) * 1e3:6.1f} ms cpu to first paint (budget 150)")
    kept, share = asyncio.run(kept_speed())
    print(f"decode speed kept  {kept * 100:6.1f} % at 500 tok/s (budget 95)")
    print(f"window             {share * 100:6.1f} % of a core meanwhile")


if __name__ == "__main__":
    main()
