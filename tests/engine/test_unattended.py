"""What the window is told the model no longer attends to: as the ring rotates, after going back, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.config import Settings
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import Unattended
from mlxkv.tokenizer.tokens import decode
from tests.engine.test_engine_chats import Said
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture
def said(home: Path, tiny_path: Path) -> Iterator[Said]:
    said = Said()
    assert said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    yield said
    said.context.close()


def last(said: Said) -> Unattended | None:
    return next(e.unattended for e in reversed(said.events) if isinstance(e, ev.SessionStatus))


@pytest.mark.parametrize("system", [None, "Be good, and brief."])
def test_it_is_exact_and_the_same_after_going_back_and_a_resume(
    said: Said, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said.ask(cmd.NewChat(system))
    found: list[Unattended | None] = []
    for i in range(9):
        said.one(cmd.Send(f"say more than before{' and more' * (i % 3)}.", 0.0), ev.TurnFinished)
        found.append(last(said))
        chat = said.context.current_chat
        if (now := found[-1]) is None:
            assert chat.cache.num_evicted == 0
            continue
        assert chat.cache.plan.geometry is not None
        assert (now.tokens, now.pinned) == (chat.cache.num_evicted, chat.cache.plan.geometry.sinks)
        assert (now.pins_system, now.pinned_messages, now.in_state) == (bool(system), 0, False)
        left = decode(said.context.ready_model.tokenizer, chat.log[now.pinned + now.tokens :])
        text = chat.messages[now.message].text
        assert now.chars is not None
        assert left.startswith(text[now.chars :]) if now.chars else text in left
        assert now.num_messages == now.message + (now.chars > 0)
    assert len({f.message for f in found if f}) > 2
    session = str(said.context.current_chat.session_id)
    said.ask(cmd.Rewind(14))
    assert last(said) == found[6]
    monkeypatch.setattr(type(said.context.current_chat.cache), "can_save", False)  # nothing is restored
    said.ask(cmd.OpenChat(session))
    assert last(said) == found[-1]
    said.ask(cmd.Rewind(0))
    assert last(said) is None


def test_it_follows_the_window_and_is_said_before_a_retry_begins(said: Said) -> None:
    for _ in range(9):
        said.one(cmd.Send("Say more, and then more.", 0.0), ev.TurnFinished)
    before = last(said)
    assert before
    events = said.ask(cmd.Retry())
    started = next(i for i, event in enumerate(events) if isinstance(event, ev.TurnStarted))
    assert any(isinstance(event, ev.SessionStatus) and event.unattended for event in events[:started])
    said.ask(cmd.ChangeSettings({"window": 1024}))
    assert last(said) is None
    said.ask(cmd.ChangeSettings({"window": 128}))
    now = last(said)
    assert now
    assert now.tokens > before.tokens


def test_it_begins_anew_after_a_hybrid_chat_was_compacted(home: Path, tmp_path: Path) -> None:
    said = Said(Settings(temperature=0.0, max_tokens=8, window=128))
    said.ask(cmd.LoadModel(str(hybrid_folder(tmp_path / "m", "lfm2", tiny_tokenizer()))))
    for _ in range(5):
        said.ask(cmd.Send("Say more, and then more.", 0.0))
    before = last(said)
    assert before
    said.ask(cmd.Compact(False))
    assert last(said) is None
    now, chat = None, said.context.current_chat
    for _ in range(9):
        said.ask(cmd.Send("Say more, and then more.", 0.0))
        if (now := last(said)) and now.chars is not None:  # not in a reply of control tokens, which have no text
            break
    assert now
    assert (now.tokens, now.in_state) == (chat.cache.num_evicted, True)
    left, text = decode(said.context.ready_model.tokenizer, chat.log[now.pinned + now.tokens :]), chat.messages
    assert now.chars is not None
    assert left.startswith(text[now.message].text[now.chars :]) if now.chars else text[now.message].text in left
    said.ask(cmd.Rewind(0))
    assert last(said) is None
    said.context.close()
