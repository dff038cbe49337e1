"""Pictures of the window. The clock stands still and the engine answers at once, so they never differ by chance."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot

from mlxkv.config import Settings
from mlxkv.events import Message, TextDelta
from mlxkv.protocol.branch_names import Departure
from mlxkv.protocol.commands import Command, LoadModel, NewChat, OpenChat
from mlxkv.protocol.events import ChatOpened, ModelCard
from mlxkv.protocol.status import ChatSummary, Unattended
from mlxkv.tui.app import ChatApp
from tests.tui.fake_engine import CHATS, REPLY, RING, STATS, STATUS, FakeEngine

pytestmark = pytest.mark.slow

TODAY = 1_700_049_600.0
FAMILY = (
    replace(CHATS[0], updated=TODAY - 7200.0),
    ChatSummary(
        "c3",
        "Rust lifetimes (2)",
        TODAY - 5000.0,
        4,
        12_000_000,
        "m",
        "c1",
        departure=Departure("And with Rc?", "Why?"),
    ),
    ChatSummary("c4", "async", TODAY - 4000.0, 6, 31_000_000, "m", "c1"),
    ChatSummary("c5", "KV quantisation", TODAY - 90_000.0, 20, 1_700_000_000, "m"),
    replace(CHATS[1], updated=TODAY - 40 * 86_400.0),
)
SnapCompare = Callable[..., bool]
FIRST = (
    ModelCard("tutor", 1_400_000, "MIT", "built in"),
    ModelCard("mlx-community/Qwen3-32B-4bit", 18_400_000_000, "Apache-2.0", fits=False),
)


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def app(*commands: Command, theme: str = "textual-dark", chats: tuple[ChatSummary, ...] = CHATS) -> ChatApp:
    engine = FakeEngine(manual=True, chats=chats)
    settings = Settings(theme=theme)
    return ChatApp(engine, FIRST, settings, None, commands, clock=lambda: 100.0, today=lambda: TODAY)


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    for _ in range(400):
        if condition():
            await pilot.pause()  # until what follows from it is painted
            return
        await pilot.pause(0.01)
    raise AssertionError("never happened")


def settled(window: ChatApp) -> bool:
    """Everything is wrapped, so the scroll bar is final, and the engine has nothing more to say."""
    transcript, bar = window.transcript, window.transcript.view.vertical_scrollbar
    at_end = transcript.view.max_scroll_y == transcript.view.scroll_offset.y == bar.position
    return transcript.lines.is_exact and at_end and bar.window_virtual_size == transcript.lines.height


def streaming() -> tuple[ChatApp, Callable[[Pilot[Any]], Awaitable[None]]]:
    """A resumed chat, a reply half way, and a prompt that waits."""
    window = app(LoadModel("mlx-community/Qwen3-8B-4bit"), OpenChat("c1"))

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.state.transcript.title)
        window.prompt.put("and with async?")
        await pilot.press("enter")
        await until(pilot, lambda: window.state.transcript.reply)
        window.engine.events.extend([TextDelta(REPLY[:330], 127), STATUS])
        window.prompt.put("one more thing")
        await pilot.press("enter")
        await until(pilot, lambda: window.state.queue and "Three ways" in str(window.transcript.lines.blocks))
        await until(pilot, lambda: settled(window))

    return window, play


@pytest.mark.parametrize("size", [(80, 24), (140, 40), (40, 12), (80, 10)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_streaming(snap_compare: SnapCompare, size: tuple[int, int]) -> None:
    window, play = streaming()
    assert snap_compare(window, terminal_size=size, run_before=play)


def test_without_colour(snap_compare: SnapCompare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    window, play = streaming()
    assert snap_compare(window, terminal_size=(80, 24), run_before=play)


@pytest.mark.parametrize("theme", ["textual-light", "ansi-dark"])
def test_themes(snap_compare: SnapCompare, theme: str) -> None:
    window = app(LoadModel("mlx-community/Qwen3-8B-4bit"), OpenChat("c1"), theme=theme)

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.state.status.cache_window and settled(window))

    assert snap_compare(window, terminal_size=(80, 24), run_before=play)


def test_forgetting(snap_compare: SnapCompare) -> None:
    """The rule in the middle of a reply, what is above it muted, and a header that is no alarm."""
    window = app(LoadModel("mlx-community/Qwen3-8B-4bit"), OpenChat("c1"))
    messages = (Message("user", "Why?"), Message("assistant", REPLY, STATS), Message("user", "And *then*?"),
                Message("assistant", "Nothing else.", STATS))  # fmt: skip
    found = Unattended(12_412, 2, 1, REPLY.index("Drop"), pinned=38, pins_system=True)
    full = replace(STATUS, cache_tokens=31_900, cache=replace(RING, evicted=12_412), unattended=found)

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.state.status.cache_window)
        window.engine.events.extend([ChatOpened("c1", "Rust lifetimes", messages), full])
        await until(pilot, lambda: window.state.transcript.rule and settled(window))
        window.transcript.view.scroll_page(-0.2)
        await until(pilot, lambda: not window.transcript.view.follow)

    assert snap_compare(window, terminal_size=(80, 24), run_before=play)


def test_first_screen(snap_compare: SnapCompare) -> None:
    window = app(NewChat())

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.engine.commands)  # pyright: ignore[reportAttributeAccessIssue]

    assert snap_compare(window, terminal_size=(80, 24), run_before=play)


def test_help(snap_compare: SnapCompare) -> None:
    assert snap_compare(app(NewChat()), terminal_size=(80, 24), press=["f1"])


def test_pane_at_the_side(snap_compare: SnapCompare) -> None:
    window = app(LoadModel("mlx-community/Qwen3-8B-4bit"), OpenChat("c1"))

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.state.status.cache and settled(window))
        window.prompt.put("/context")
        await pilot.press("enter")
        await until(pilot, lambda: window.chat.pane.region.height > 20 and settled(window))

    assert snap_compare(window, terminal_size=(160, 30), run_before=play)


def test_sidebar(snap_compare: SnapCompare) -> None:
    window = app(LoadModel("mlx-community/Qwen3-8B-4bit"), OpenChat("c1"), chats=FAMILY)

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.state.status.cache and settled(window))
        await pilot.press("ctrl+b")
        await until(pilot, lambda: window.chat.sidebar and window.chat.sidebar.has_focus_within and window.state.chats)
        await until(pilot, lambda: settled(window))

    assert snap_compare(window, terminal_size=(140, 40), run_before=play)


@pytest.mark.parametrize(
    ("name", "shown"), [("f2", "ring"), ("/model", "Models"), ("/set", "Settings")], ids=["panel", "models", "settings"]
)
def test_panel_and_lists(snap_compare: SnapCompare, name: str, shown: str) -> None:
    window = app(LoadModel("mlx-community/Qwen3-8B-4bit"), OpenChat("c1"))

    async def play(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: window.state.status.cache and settled(window))
        if name == "f2":
            await pilot.press("f2")
            await until(pilot, lambda: window.chat.panel.display and settled(window))
        else:
            window.prompt.put(name)
            await pilot.press("enter")
            await until(pilot, lambda: window.chat.picker and window.chat.picker.listing.title == shown)

    assert snap_compare(window, terminal_size=(80, 24), run_before=play)
