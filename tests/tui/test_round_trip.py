"""What was sent comes back as it must be typed, by whichever way, and sends the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.events import Message
from mlxkv.protocol import commands as cmd
from mlxkv.tui.state.commands.slash import Prompt, as_typed, parse
from mlxkv.tui.state.prompt import attachments as attach
from tests.tui.fake_engine import FakeEngine, reply_events
from tests.tui.window import Window, window

SENT = [
    "/help me", "/", "/quit", "/frobnicate", "//", "//two", "/usr/bin/env is a path", "/?", " /help", "a /help",
    "\n/stats", "  //two",
    "/set temp 9\nand more", "@someone said /help", "@", "@nobody", "say `x`\n\n  indented\n", "\\", "a\tb",
    "\U0001f469\u200d\U0001f467",
]  # fmt: skip


@pytest.mark.parametrize("text", SENT)
def test_what_must_be_typed(text: str) -> None:
    assert parse(as_typed(text)) == Prompt(text)


FILE = attach.Attachment("notes.txt", "one\ntwo")
SECTION = "\n\nFile `notes.txt`:\n```\none\ntwo\n```"


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("see @notes.txt" + SECTION, "see @notes.txt"),
        ("see @notes.txt, please" + SECTION, "see @notes.txt, please"),
        ('see @"notes.txt"' + SECTION, 'see @"notes.txt"'),
        ("/etc/hosts @notes.txt" + SECTION, "/etc/hosts @notes.txt"),
        ("this was pasted:" + SECTION, "this was pasted:" + SECTION),
        ("@other.txt and pasted:" + SECTION, "@other.txt and pasted:" + SECTION),
    ],
)
def test_files_that_came_with_it(text: str, typed: str, tmp_path: Path) -> None:
    """The file is gone by now: it is sent as it was."""
    assert attach.recall(text)[0] == typed
    assert attach.attach(*_swapped(attach.recall(text), tmp_path)) == text


def _swapped(
    recalled: tuple[str, dict[str, attach.Attachment]], base: Path
) -> tuple[str, Path, dict[str, attach.Attachment]]:
    return recalled[0], base, recalled[1]


async def _sent_again(w: Window, kind: type[cmd.Send | cmd.Edit], before: int) -> str:
    await w.pilot.press("enter")
    await w.until(lambda: len(w.sent(kind)) > before)
    last = w.sent(kind)[-1]
    assert isinstance(last, cmd.Send | cmd.Edit)
    return last.text


async def _replied(w: Window, engine: FakeEngine) -> None:
    await w.until(lambda: w.app.state.transcript.reply)
    engine.say(reply_events("ok"))
    await w.until(lambda: not w.app.state.is_busy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["/help me", "@someone and\n@nobody", "see @gone.txt" + SECTION.replace("notes", "gone")]
)
async def test_every_way_back_to_the_prompt_sends_the_same(text: str, tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with window(engine) as w:
        w.app.prompt.files.base = tmp_path
        w.app.state.submit(cmd.OpenChat("c1"))  # in an empty chat the window lists others beside, which takes its time
        w.app.chat.sync()
        await w.until(lambda: len(w.app.state.transcript.messages) == 2 and not w.app.state.is_busy)
        w.app.state.prompt(text)  # as if typed
        w.app.chat.sync()
        await _replied(w, engine)
        assert w.app.state.edit()  # /edit, and `e` at the message cursor
        w.app.chat.sync()
        assert await _sent_again(w, cmd.Edit, 0) == text
        await _replied(w, engine)
        engine.history = (*engine.history[:2], Message("user", text))  # /rewind, /undo, /fork
        w.app.state.submit(cmd.Rewind(2))
        w.app.chat.sync()
        await w.until(lambda: w.app.prompt.text)
        assert await _sent_again(w, cmd.Send, 1) == text
        w.app.state.prompt(text)  # waits for the reply to the one before
        w.app.chat.sync()
        await w.pilot.press("up")
        await w.until(lambda: w.app.prompt.text and not w.app.state.queue)
        await _replied(w, engine)
        assert await _sent_again(w, cmd.Send, 2) == text


@pytest.mark.slow
async def test_a_paste_that_looks_like_a_command_is_none_from_the_history_either() -> None:
    async with window() as w:
        pasted = "/quit\n" * 9
        w.app.prompt.insert(w.app.prompt._pastes.fold(pasted))
        assert await _sent_again(w, cmd.Send, 0) == pasted
        await w.until(lambda: not w.app.state.is_busy)
        await w.pilot.press("up")
        await w.until(lambda: w.app.prompt.text)
        assert await _sent_again(w, cmd.Send, 1) == pasted


@pytest.mark.slow
async def test_files_go_along_with_a_path_that_looks_like_a_command(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("one\ntwo")
    async with window() as w:
        w.app.prompt.files.base = tmp_path
        w.app.prompt.put("/etc/hosts @notes.txt")
        assert await _sent_again(w, cmd.Send, 0) == "/etc/hosts @notes.txt" + SECTION
