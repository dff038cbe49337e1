"""The window with messages that come back: stopped before a reply, or too long for the window of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from textual.events import Paste

import mlxkv
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.config import Folders, Settings
from mlxkv.engine import Engine
from mlxkv.events import Message, PrefillProgress, TurnFinished
from mlxkv.inference.runner import ModelRunner
from mlxkv.protocol.commands import ChangeSettings, Edit, LoadModel, NewChat, Send
from mlxkv.protocol.events import ChatOpened, Failed, FailureKind, MessageTooLong, TurnStarted
from mlxkv.protocol.status import SessionStatus
from mlxkv.stats import Overflow, TurnStats
from mlxkv.store.session_store import SessionStore
from mlxkv.tui.app import ChatApp
from mlxkv.tui.widgets.picker import Picker
from tests.tui.fake_engine import FakeEngine, reply_events
from tests.tui.window import FIRST, Window, window

pytestmark = pytest.mark.slow

PASTE = "\n".join(f"line {i}" for i in range(40))
OVERFLOW = Overflow(5_102, 1_028, 3_976, 0, 8_192, 96_000_000)


def unanswered(returned: str) -> TurnFinished:
    stats = TurnStats(prompt_tokens=512, prefill_tokens=512, finish_reason="stopped", cache_tokens=512)
    return TurnFinished("stopped", "", stats, unanswered=True, returned=returned)


async def asked(w: Window, text: str) -> str:
    """Send `text` and wait for the engine to prefill it; what was sent."""
    before = len(w.sent(Send))
    await w.ask(text)
    await w.until(lambda: len(w.sent(Send)) > before)
    sent = w.sent(Send)[-1]
    assert isinstance(sent, Send)
    w.engine.say([TurnStarted(sent.text), PrefillProgress(512, 5_000, 0, 100.0)])
    await w.until(lambda: w.app.state.transcript.reply is not None and w.app.state.transcript.reply.prefill is not None)
    return sent.text


async def test_escape_in_prefill_takes_the_message_back_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("some notes\n")
    async with window(FakeEngine(manual=True)) as w:
        w.app.prompt.files.base = tmp_path
        w.app.prompt.post_message(Paste(PASTE))
        await w.until(lambda: w.app.prompt.text == "[Pasted text #1 +40 lines]")
        typed = "[Pasted text #1 +40 lines] and @notes.md"
        sent = await asked(w, typed)
        assert PASTE in sent
        assert "some notes" in sent
        w.app.prompt.post_message(Paste(PASTE.upper()))  # typed since
        await w.until(lambda: "Pasted" in w.app.prompt.text)
        await w.pilot.press("escape")
        await w.until(lambda: w.engine.stopped == 1)
        w.engine.say([unanswered(sent), SessionStatus()])
        await w.until(lambda: w.app.state.transcript.reply is None)
        first, since = w.app.prompt.text.split("\n\n")
        assert "@notes.md" in first
        assert w.app.prompt._pastes.expand(first) == f"{PASTE} and @notes.md"
        assert w.app.prompt._pastes.expand(since) == PASTE.upper()
        assert len(w.app.prompt.text) < 200
        assert w.said() == ""
        assert "tok/s" not in w.screen()
        assert (w.app.state.transcript.title, w.app.state.session_id, w.app.state.transcript.messages) == ("", None, [])
        await w.pilot.press("enter")
        await w.until(lambda: len(w.sent(Send)) == 2)
        again = w.sent(Send)[-1]
        assert isinstance(again, Send)
        assert again.text.startswith(f"{PASTE} and @notes.md\n\n{PASTE.upper()}")


async def test_only_that_message_leaves_the_transcript() -> None:
    async with window() as w:
        await w.ask("Why?")
        await w.until(lambda: "5,871 cached" in w.said())
        w.engine.manual = True
        said = w.said()
        sent = await asked(w, "and then?")
        assert "and then?" in w.said()
        w.engine.say([unanswered(sent)])
        await w.until(lambda: w.app.prompt.text == "and then?")
        assert w.said() == said
        assert [m.role for m in w.app.state.transcript.messages] == ["user", "assistant"]
        await w.pilot.press("enter")
        await w.until(lambda: len(w.sent(Send)) == 3)
        w.engine.say(reply_events())
        await w.until(lambda: w.said().count("5,871 cached") == 2)
        assert w.said().count("and then?") == 1


async def test_what_waits_goes_after_the_message_that_came_back() -> None:
    async with window(FakeEngine(manual=True)) as w:
        sent = await asked(w, "one")
        await w.ask("two")
        await w.until(lambda: "two" in w.queued())
        w.engine.say([unanswered(sent)])
        await w.until(lambda: w.app.prompt.text == "one")
        assert "sent after your next message" in w.queued()
        assert len(w.sent(Send)) == 1
        await w.pilot.press(*"!", "enter")
        await w.until(lambda: len(w.sent(Send)) == 2)
        w.engine.say([TurnStarted("one!"), *reply_events()])
        await w.until(lambda: len(w.sent(Send)) == 3)
        assert [c.text for c in w.sent(Send) if isinstance(c, Send)] == ["one", "one!", "two"]


async def test_what_waits_can_be_taken_back_instead() -> None:
    async with window(FakeEngine(manual=True)) as w:
        sent = await asked(w, "one")
        await w.ask("two")
        await w.until(lambda: "two" in w.queued())
        w.engine.say([unanswered(sent)])
        await w.until(lambda: w.app.prompt.text == "one")
        w.app.prompt.put("")
        await w.pilot.press("up")
        await w.until(lambda: w.app.prompt.text == "two")
        await w.ask("three")
        await w.until(lambda: len(w.sent(Send)) == 2)


async def test_an_edit_that_is_stopped_is_an_edit_again() -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.engine.say([ChatOpened("s1", "title", w.engine.history)])
        await w.until(lambda: w.app.state.transcript.messages)
        await w.ask("/edit")
        await w.until(lambda: w.app.state.editing == 0)
        await w.ask("changed")
        await w.until(lambda: w.sent(Edit))
        w.engine.say([ChatOpened("s1", "title", w.engine.history), unanswered("changed")])
        await w.until(lambda: w.app.prompt.text == "changed")
        assert w.app.state.editing == 0
        assert len(w.app.state.transcript.messages) == 2
        await w.pilot.press("enter")
        await w.until(lambda: len(w.sent(Edit)) == 2)


async def test_a_message_that_could_not_be_sent_comes_back_under_the_reason() -> None:
    async with window(FakeEngine(manual=True)) as w:
        sent = await asked(w, "hello")
        w.engine.say([Failed("The prompt has too many tokens.", returned=sent)])
        await w.until(lambda: w.app.prompt.text == "hello")
        assert "✗ The prompt has too many tokens." in w.said()
        assert "❯ hello" not in w.said()
        assert w.app.state.transcript.messages == []


async def test_a_message_without_a_reply_is_said_to_be_one() -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.engine.say([ChatOpened("s1", "title", (*w.engine.history, Message("user", "lost?")))])
        await w.until(lambda: "not answered · /retry asks again" in w.said())
        await asked(w, "another")
        assert [m.role for m in w.app.state.transcript.messages] == ["user", "assistant"] * 2 + [
            "user"
        ]  # as in the chat


# -- too long --------------------------------------------------------------------------------------------------------


async def too_long(w: Window, overflow: Overflow = OVERFLOW) -> str:
    sent = await asked(w, "much " * 100)
    w.engine.say([MessageTooLong(sent, overflow)])
    await w.until(lambda: isinstance(w.app.focused, Picker) and "Send it; its oldest 3,976 tok" in w.screen())
    return sent


@pytest.mark.parametrize("keys", [("enter",), ("escape",), ("n", "enter"), ("enter", "enter")])
async def test_enter_alone_does_not_send_what_is_too_long(keys: tuple[str, ...]) -> None:
    """A paste that ends with a line feed, or one press too many: the message is in the prompt, and nothing was sent.

    A second Enter sends that again, and the question comes again.
    """
    async with window(FakeEngine(manual=True)) as w:
        sent = await too_long(w)
        assert "Not sent: 5,102 tok, but the window holds 1,028" in w.screen()
        await w.until(lambda: "Send it with /set window 8192" in w.screen())
        await w.pilot.press(*keys)
        await w.until(lambda: not w.app.query(Picker))
        if keys[1:] != ("enter",) or keys[0] == "n":
            assert w.app.prompt.text == sent
        assert not any(c.anyway for c in w.sent(Send) if isinstance(c, Send))
        assert w.app.state.transcript.messages == [] or keys == ("enter", "enter")


async def test_it_is_sent_without_its_oldest_part_where_that_is_chosen() -> None:
    async with window(FakeEngine(manual=True)) as w:
        sent = await too_long(w)
        await w.pilot.press("down", "down", "enter")
        await w.until(lambda: len(w.sent(Send)) == 2)
        last = w.sent(Send)[-1]
        assert isinstance(last, Send)
        assert (last.text, last.anyway) == (sent, True)
        await w.until(lambda: w.app.prompt.text == "")
        assert [m.text for m in w.app.state.transcript.messages] == [sent]


async def test_it_is_sent_into_a_larger_window_where_that_is_chosen() -> None:
    async with window(FakeEngine(manual=True)) as w:
        sent = await too_long(w, replace(OVERFLOW, trained=2_048))
        await w.until(lambda: "Send it with /set window 8192; it was trained for 2,048" in w.screen())
        assert "96 MB of KV" in w.screen()
        await w.pilot.press("down", "enter")
        await w.until(lambda: len(w.sent(Send)) == 2)
        (change,) = w.sent(ChangeSettings)
        assert isinstance(change, ChangeSettings)
        assert change.values == {"window": 8_192}
        assert w.engine.commands.index(change) < len(w.engine.commands) - 1
        last = w.sent(Send)[-1]
        assert isinstance(last, Send)
        assert (last.text, last.anyway) == (sent, False)
        assert w.app.prompt.text == ""


async def test_where_the_window_cannot_be_raised_that_is_not_offered() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await too_long(w, replace(OVERFLOW, window=0, evicted_before=200))
        assert "/set window" not in w.screen()
        await w.until(lambda: "its oldest 3,976 tok and 200 tok of the chat are evicted" in w.screen())


async def test_a_window_that_cannot_be_had_loses_nothing() -> None:
    """Raising it fails: the message is sent into the old one, which asks again."""

    class Full(FakeEngine):
        def answer(self, command: object) -> list:  # type: ignore[override]
            if isinstance(command, ChangeSettings):
                return [Failed("This KV cache needs 9 GB.", FailureKind.MEMORY)]
            return super().answer(command)  # type: ignore[arg-type]

    async with window(Full(manual=True)) as w:
        sent = await too_long(w)
        await w.pilot.press("down", "enter")
        await w.until(lambda: len(w.sent(Send)) == 2)
        assert "✗ This KV cache needs 9 GB." in w.said()
        assert w.sent(Send)[-1] == Send(sent, w.sent(Send)[-1].sent_at)  # type: ignore[union-attr]


class Held(ModelRunner):
    """Prefills one small chunk, then waits to be cancelled, once."""

    is_held = True

    def prefill(
        self,
        cache: PromptCache,
        ids: Sequence[int],
        cancelled: Callable[[], bool] = bool,
        checkpoints: Collection[int] = (),
        prefixes: Collection[int] = (),
    ) -> Iterator[int]:
        for done in super().prefill(cache, ids, cancelled, checkpoints, prefixes):
            yield done
            while self.is_held and not cancelled():
                threading.Event().wait(0.001)
        self.is_held = False


async def test_with_a_real_engine(home: Path, tiny_path: Path) -> None:
    """Esc, a word fixed, Enter: only what follows the common beginning is prefilled, and the chat has it once."""

    def load(name: str) -> mlxkv.Model:
        model = mlxkv.load(str(tiny_path))
        model._runtime.runner = Held(model.loaded.model, 16)
        return model

    settings = Settings(temperature=0.0, max_tokens=4, window=512)
    engine = Engine(Folders.from_env(), settings, load=load)
    app = ChatApp(engine, FIRST, settings, None, [LoadModel("m"), NewChat()])
    text = " ".join(f"word {i}" for i in range(20))
    try:
        async with app.run_test(size=(100, 30)) as pilot:
            w = Window(app, engine, pilot)  # type: ignore[arg-type]
            await w.until(lambda: app.state.is_ready)
            await w.ask(text)
            await w.until(
                lambda: (
                    app.state.transcript.reply
                    and app.state.transcript.reply.prefill
                    and app.state.transcript.reply.prefill.done
                )
            )
            await pilot.press("escape")
            await w.until(lambda: app.prompt.text == text)
            assert w.said() == ""
            app.prompt.put(f"{text}!")
            await pilot.press("enter")
            await w.until(lambda: len(app.state.transcript.messages) == 2)
            reply = app.state.transcript.messages[-1]
            assert reply.stats is not None
            assert reply.stats.cached_tokens == 16
    finally:
        engine.close()
    with SessionStore.open(Folders.from_env()) as store:
        assert [(c.title[:6], c.num_turns) for c in store.list()] == [("word 0", 2)]
