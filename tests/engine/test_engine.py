"""The engine thread: commands in, events out, errors as events, and an orderly end."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.config import Folders, Settings
from mlxkv.engine import Engine
from mlxkv.events import Notice, PrefillProgress, TextDelta, TurnFinished
from mlxkv.protocol.commands import ListChats, LoadModel, NewChat, OpenChat, Retry, Send
from mlxkv.protocol.events import (
    ChatList,
    ChatOpened,
    ChatReleased,
    EngineEvent,
    EngineStopped,
    Failed,
    ModelLoading,
    ModelReady,
    TurnStarted,
)
from mlxkv.protocol.status import SessionStatus
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.hybrids import hybrid_folder
from tests.tokenizer.test_hostile_tokenizers import MANY, ROWS, folder_of
from tests.tokenizers import tiny_folder, tiny_tokenizer

SETTINGS = Settings(temperature=0.0, max_tokens=12, window=256)


class Watched:
    """An engine, and a way to wait for what it says instead of for time to pass."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.seen = engine, []

    def until(self, *kinds: type) -> list[EngineEvent]:
        """Every event up to the first of one of these kinds."""
        out: list[EngineEvent] = []
        end = time.monotonic() + 120  # a test that would wait for ever fails instead
        while True:
            assert time.monotonic() < end, out
            if not self.engine.events:
                assert self.engine._thread.is_alive(), out
                threading.Event().wait(0.001)
                continue
            event = self.engine.events.popleft()
            out.append(event)
            if isinstance(event, kinds):
                return out

    def send(self, text: str) -> list[EngineEvent]:
        self.engine.submit(Send(text, time.perf_counter()))
        events = self.until(TurnFinished, Failed)
        return events + self.until(SessionStatus)


@pytest.fixture
def watched(home: Path) -> Iterator[Watched]:
    engine = Engine(Folders.from_env(), SETTINGS)
    engine.start()
    yield Watched(engine)
    engine.close()


def loaded(watched: Watched, path: Path) -> Watched:
    watched.engine.submit(LoadModel(str(path)))
    events = watched.until(ModelReady, Failed)
    assert any(isinstance(e, ModelLoading) for e in events)
    assert isinstance(events[-1], ModelReady), events
    return watched


@pytest.mark.slow
def test_a_turn_tells_everything_in_order(watched: Watched, tiny_path: Path) -> None:
    loaded(watched, tiny_path)
    watched.engine.submit(NewChat("be good"))
    watched.until(SessionStatus)
    events = watched.send("hi")
    kinds = [type(e) for e in events if not isinstance(e, SessionStatus)]
    assert kinds[0] is TurnStarted
    assert kinds[1] is PrefillProgress
    assert TextDelta in kinds
    assert kinds[-1] is TurnFinished
    status = events[-1]
    assert isinstance(status, SessionStatus)
    assert status.saved == "saved"
    assert 0 < status.cache_tokens < status.cache_window
    assert status.kv_bytes > 0


@pytest.mark.slow
def test_a_chat_is_listed_and_opened_again_without_reading(watched: Watched, tiny_path: Path) -> None:
    loaded(watched, tiny_path)
    watched.send("hi there")
    watched.engine.submit(ListChats())
    listed = watched.until(ChatList)[-1]
    assert isinstance(listed, ChatList)
    assert [c.title for c in listed.chats] == ["hi there"]
    watched.engine.submit(NewChat())
    watched.until(SessionStatus)
    watched.engine.submit(OpenChat(listed.chats[0].id))
    opened = watched.until(ChatOpened, Failed)[-1]
    assert isinstance(opened, ChatOpened)
    assert opened.messages[0].text == "hi there"
    assert opened.restored_tokens > 0
    watched.until(SessionStatus)
    finished = watched.send("and?")[-2]
    assert isinstance(finished, TurnFinished)
    assert finished.stats.cached_tokens >= opened.restored_tokens


@pytest.mark.slow
def test_without_saving_a_resumed_chat_stays_as_it_was(home: Path, tiny_path: Path) -> None:
    """`mlxkv -c --no-save`: what follows is not kept, and the options given are the ones that count."""
    for save in (True, False):
        settings = SETTINGS if save else Settings(temperature=0.0, max_tokens=3)
        watched = Watched(Engine(Folders.from_env(), settings, save=save))
        watched.engine.start()
        loaded(watched, tiny_path)
        watched.engine.submit(ListChats())
        listed = watched.until(ChatList)[-1]
        assert isinstance(listed, ChatList)
        if not save:
            watched.engine.submit(OpenChat(listed.chats[0].id))
            opened = watched.until(ChatOpened, Failed)[-1]
            assert isinstance(opened, ChatOpened)
            assert opened.restored_tokens > 0  # the window of the saved chat, not the default one
            watched.until(SessionStatus)
        *_, finished, status = watched.send("hi")
        assert isinstance(finished, TurnFinished)
        assert isinstance(status, SessionStatus)
        assert status.saved == ("saved" if save else "off")
        watched.engine.close()
    assert finished.stats.generated_tokens == 3
    with SessionStore.open(Folders.from_env()) as store:
        assert [c.num_turns for c in store.list()] == [2]


@pytest.mark.slow
def test_stop_from_another_thread_keeps_what_was_said(home: Path, tiny_path: Path) -> None:
    engine = Engine(Folders.from_env(), Settings(temperature=0.0, max_tokens=5000, window=256))
    engine.start()
    watched = loaded(Watched(engine), tiny_path)
    engine.submit(Send("hi", time.perf_counter()))
    watched.until(TextDelta)
    engine.stop()
    finished = watched.until(TurnFinished)[-1]
    engine.close()
    assert isinstance(finished, TurnFinished)
    assert finished.reason == "stopped"
    assert finished.text


@pytest.mark.slow
def test_retry_goes_on_in_a_fork(watched: Watched, tiny_path: Path) -> None:
    loaded(watched, tiny_path)
    watched.send("hi")
    watched.engine.submit(Retry())
    finished = watched.until(TurnFinished, Failed)[-1]
    assert isinstance(finished, TurnFinished)
    watched.engine.submit(ListChats())
    listed = watched.until(ChatList)[-1]
    assert isinstance(listed, ChatList)
    assert len(listed.chats) == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", [Send("hi", 0.0), OpenChat("nothing"), LoadModel("no such model"), Retry()])
def test_errors_are_events_and_the_engine_goes_on(watched: Watched, tiny_path: Path, command: object) -> None:
    watched.engine.submit(command)  # type: ignore[arg-type]
    failed = watched.until(Failed)[-1]
    assert isinstance(failed, Failed)
    assert failed.text.endswith(".")
    assert "Traceback" not in failed.text
    loaded(watched, tiny_path)
    assert isinstance(watched.send("hi")[-2], TurnFinished)


@pytest.mark.slow
def test_a_bug_below_is_an_event_too(watched: Watched, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(watched, tiny_path)
    monkeypatch.setattr("mlxkv.inference.runner.ModelRunner.decode", lambda *a, **k: 1 / 0)
    failed = watched.send("hi")
    assert any(isinstance(e, Failed) and "ZeroDivisionError" in e.text for e in failed)
    monkeypatch.undo()
    assert isinstance(watched.send("hi")[-2], TurnFinished)


@pytest.mark.slow
def test_switching_models_goes_on_with_the_chat_and_says_what_is_read_again(
    watched: Watched, tiny_path: Path, tmp_path: Path
) -> None:
    loaded(watched, tiny_path)
    watched.send("hi")
    watched.engine.submit(LoadModel(str(tiny_folder(tmp_path / "other", seed=7))))
    events = watched.until(ModelReady)
    opened = next(e for e in events if isinstance(e, ChatOpened))
    assert opened.messages[0].text == "hi"
    (said,) = [e.text for e in events if isinstance(e, Notice)]
    assert re.fullmatch(r"other is loaded; your next message prefills \d+ tokens of this chat with it\.", said)


@pytest.mark.slow
def test_a_name_that_cannot_be_does_not_cost_the_model_that_is_there(watched: Watched, tiny_path: Path) -> None:
    loaded(watched, tiny_path)
    watched.send("hi")
    watched.engine.submit(LoadModel("no such model"))
    events = watched.until(Failed) + watched.until(SessionStatus)
    assert not any(isinstance(e, ChatOpened) for e in events)  # it was not even taken away


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_leaves_the_old_one(watched: Watched, tiny_path: Path, tmp_path: Path) -> None:
    loaded(watched, tiny_path)
    watched.send("hi")
    broken = tiny_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    watched.engine.submit(LoadModel(str(broken)))
    watched.until(Failed)
    finished = watched.send("still there?")[-2]
    assert isinstance(finished, TurnFinished)
    assert finished.stats.cached_tokens > 0


def test_close_ends_with_the_last_event_and_twice_is_fine(home: Path) -> None:
    engine = Engine(Folders.from_env(), SETTINGS)
    engine.start()
    engine.close()
    engine.close()
    assert engine.events[-1] == EngineStopped(None)


SCRIPT = """
import sys, time
from mlxkv.config import Folders, Settings
from mlxkv.engine import Engine
from mlxkv.protocol.commands import (LoadModel, Send)
from mlxkv.events import TextDelta
engine = Engine(Folders.from_env(), Settings(max_tokens=500, window=256))
engine.start()
engine.submit(LoadModel(sys.argv[1]))
engine.submit(Send("hi", time.perf_counter()))
while not any(isinstance(e, TextDelta) for e in list(engine.events)):
    time.sleep(0.001)
engine.close()
print("closed")
"""


@pytest.mark.slow
def test_the_process_ends_in_order_in_mid_reply(tiny_path: Path) -> None:
    """Streams of a thread that are not cleared abort the process at exit in most runs: three runs, no abort."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tiny_path)], capture_output=True, text=True, check=False, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


@pytest.mark.slow
def test_a_stop_before_a_reply_began_holds_and_stops_no_later_one(
    watched: Watched, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Esc right after Enter was lost: no chat was there yet to be stopped, or it forgot as it began."""
    engine = loaded(watched, tiny_path).engine
    gate, answer = threading.Event(), engine._dispatcher.handle
    monkeypatch.setattr(engine._dispatcher, "handle", lambda command: (gate.wait(), answer(command)))
    for command in (Send("hi", 0.0), Retry()):  # to a chat that is not made yet, and to one that is
        if isinstance(command, Retry):
            gate.set()
            watched.send("hi")
        gate.clear()
        engine.submit(command)
        engine.stop()
        gate.set()
        *events, last = watched.until(TurnFinished, Failed)
        assert isinstance(last, TurnFinished)
        assert (last.reason, last.text, last.unanswered) == ("stopped", "", True)
        assert not any(isinstance(e, TextDelta) for e in events)
        watched.until(SessionStatus)
    assert not any(isinstance(e, Failed) or getattr(e, "reason", "") == "stopped" for e in watched.send("on"))


@pytest.mark.slow
def test_a_panic_of_a_tokenizer_is_an_error_and_the_engine_goes_on(watched: Watched, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ROWS["regex bomb"])
    loaded(watched, folder)
    assert isinstance(watched.send("hi")[-2], TurnFinished)
    failed = next(e for e in watched.send(MANY) if isinstance(e, Failed))
    assert failed.text.startswith(f"The tokenizer of {folder} (tokenizer.json) cannot encode this text (")
    assert any(isinstance(e, TurnFinished) for e in watched.send("yes"))


@pytest.mark.slow
def test_a_chat_that_another_process_had_open_is_had_once_that_lets_go(
    watched: Watched, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed read-only for ever. The kernel lets go of a lock however the process ends."""
    monkeypatch.setattr("mlxkv.engine.unloading.CHECK_SECONDS", 0.01)
    loaded(watched, tiny_path)
    session_id = next(e.session_id for e in reversed(watched.send("hi")) if isinstance(e, SessionStatus))
    assert session_id is not None
    watched.engine.submit(NewChat())
    watched.until(ChatOpened)
    with SessionStore.open(Folders.from_env()) as other:
        with other.lock(session_id):
            watched.engine.submit(OpenChat(session_id))
            shown = watched.until(ChatOpened)[-1]
            assert isinstance(shown, ChatOpened)
            assert shown.read_only
            other.load(session_id)
            other.add_turn(session_id, TurnRecord("user", "from there"))
        assert watched.until(ChatReleased)[-1] == ChatReleased(session_id)
    watched.engine.submit(OpenChat(session_id))
    opened = watched.until(ChatOpened)[-1]
    assert isinstance(opened, ChatOpened)
    assert (opened.read_only, opened.messages[-1].text) == ("", "from there")
    assert isinstance(watched.send("and here")[-1], SessionStatus)


@pytest.mark.slow
def test_a_pause_saves_the_state_of_recurrent_layers(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxkv.engine.unloading.PAUSE_SECONDS", 0.01)
    loaded(watched, hybrid_folder(tmp_path / "hybrid", "granitemoehybrid", tiny_tokenizer()))
    for _ in range(2):
        watched.send("hi " * 50)
    with SessionStore.open(Folders.from_env()) as store:
        (chat,) = store.list()
        end = time.monotonic() + 60
        while not (states := states_on_disk(store, chat.id)):
            assert time.monotonic() < end
            threading.Event().wait(0.01)
        log = store.load(chat.id).log
    assert states == [len(log) - 1]


def states_on_disk(store: SessionStore, session: str) -> list[int]:
    """Positions of the recurrent states that a session refers to."""
    with store._database.reading() as db:
        query = (
            "SELECT DISTINCT b FROM chunk JOIN kv_ref ON chunk = chunk.digest"
            " JOIN kv_commit ON kv_commit.id = kv_commit WHERE session = ? AND grp = 'state' ORDER BY b"
        )
        return [row[0] for row in db.execute(query, (session,))]
