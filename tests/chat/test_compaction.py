"""Compacting a chat with a real (random) model: what stays, what it costs, that nothing is lost, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlxkv.chat import compaction
from mlxkv.config import Settings
from mlxkv.errors import PromptError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import CompactPlan, ContextUsage
from mlxkv.stats import TurnStats
from tests.engine.test_engine_chats import Said

# Drawn with a seed: what a random model finds likeliest is a line feed, again and again.
SETTINGS = Settings(temperature=1.0, seed=3, max_tokens=12, window=256)
WORDS = ("what is a cache", "and a ring", "how are they kept", "tell me more of it")


def talked(tiny_path: Path, settings: Settings = SETTINGS, *, save: bool = True, rounds: int = 1) -> Said:
    said = Said(settings, save)
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    for n in range(rounds):
        for words in WORDS:
            said.one(cmd.Send(f"{words} {n}", 0.0), ev.TurnFinished)
    return said


@pytest.fixture(autouse=True)
def short_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this tokenizer each character is a token: the real request would fill the window."""
    monkeypatch.setattr(compaction, "request", lambda summary_tokens: "sum up")


@pytest.fixture
def said(home: Path, tiny_path: Path) -> Iterator[Said]:
    """Four questions and their replies, in a window that holds them."""
    said = talked(tiny_path)
    yield said
    said.context.close()


def spoken(opened: ev.ChatOpened) -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in opened.messages]


@pytest.mark.slow
def test_what_it_costs_is_said_before_and_is_what_it_costs(said: Said) -> None:
    chat = said.context.current_chat
    plan = said.one(cmd.PlanCompact(), CompactPlan)
    assert (plan.kept_tokens + plan.older_tokens, plan.kept_messages + plan.older_messages) == (len(chat.log), 8)
    assert (plan.kept_messages % 2, plan.evicted_tokens) == (0, 0)
    finished = said.one(cmd.Compact(), ev.TurnFinished)
    assert finished.stats.prefill_tokens == plan.ask_tokens < 60
    assert finished.stats.generated_tokens <= plan.summary_tokens
    short = said.context.current_chat
    assert short is not chat
    again = len(short.turns[1].ids) - finished.stats.generated_tokens  # its marks are written out: `<56>`
    assert len(short.log) <= plan.ask_tokens + plan.summary_tokens + plan.kept_tokens + again


@pytest.mark.slow
def test_the_branch_begins_with_the_summary_and_nothing_is_lost(said: Said) -> None:
    chat = said.context.current_chat
    before, session = chat.messages, chat.session_id
    events = said.ask(cmd.Compact())
    opened = [e for e in events if isinstance(e, ev.ChatOpened)][-1]
    finished = next(e for e in events if isinstance(e, ev.TurnFinished))
    kept = [(m.role, m.text) for m in before[-(len(opened.messages) - 2) :]]
    assert spoken(opened)[2:] == kept
    assert spoken(opened)[1] == ("assistant", compaction.summary_of(finished))
    assert opened.session_id != session
    assert isinstance(events[-2], ev.Compacted)
    branches = said.one(cmd.ShowTree(), ev.ChatTree).branches
    assert [(b.session_id, b.num_turns, b.is_current) for b in branches] == [
        (session, 8, False), (opened.session_id, len(opened.messages), True),
    ]  # fmt: skip
    versions = [e for e in events if isinstance(e, ev.Versions)][-1].messages
    assert [sibling.session_id for sibling in versions[0]] == [session, opened.session_id]  # `‹ 2/2 ›` leads back
    whole = said.one(cmd.OpenChat(str(session)), ev.ChatOpened)
    assert whole.messages == before
    assert said.one(cmd.Send("still there", 0.0), ev.TurnFinished).stats.prefill_tokens < 60


@pytest.mark.slow
def test_the_next_message_reads_only_itself_and_says_what_it_would_after_reading_everything(said: Said) -> None:
    said.ask(cmd.Compact())
    chat = said.context.current_chat
    at = len(chat.log)
    quick = said.one(cmd.Send("go on", 0.0), ev.TurnFinished)
    assert quick.stats.cached_tokens == at - 1
    said.ask(cmd.Rewind())
    assert len(said.context.current_chat.log) == at  # something had been said: undoing takes that back
    said.context.current_chat.detach()  # not from disk
    said.context.current_chat.forget()
    slow = said.one(cmd.Send("go on", 0.0), ev.TurnFinished)
    assert (slow.text, slow.stats.cached_tokens) == (quick.text, 0)


@pytest.mark.slow
def test_undoing_brings_the_whole_chat_back_without_reading_it(said: Said) -> None:
    chat = said.context.current_chat
    before, session = chat.messages, chat.session_id
    said.ask(cmd.Compact())
    opened = said.one(cmd.Rewind(), ev.ChatOpened)
    assert (opened.session_id, opened.messages) == (session, before)
    assert opened.restored_tokens > 0
    assert len(said.one(cmd.Rewind(), ev.ChatOpened).messages) == 6  # the second takes a turn back, as ever


@pytest.mark.slow
def test_the_last_messages_alone(said: Said) -> None:
    plan = said.one(cmd.PlanCompact(), CompactPlan)
    before = said.context.current_chat.messages
    events = said.ask(cmd.Compact(summarise=False))
    assert not any(isinstance(e, ev.TextDelta | ev.TurnStarted) for e in events)
    opened = next(e for e in events if isinstance(e, ev.ChatOpened))
    assert opened.messages == before[plan.older_messages :]
    # The first of them no longer ends the reply before it: <|im_end|> and a line feed.
    assert len(said.context.current_chat.log) == plan.kept_tokens - 2


@pytest.mark.slow
def test_stopping_the_summary_leaves_everything_as_it_was(said: Said) -> None:
    chat = said.context.current_chat
    before, session = chat.messages, chat.session_id

    def tell(event: ev.EngineEvent) -> None:
        said.events.append(event)
        if isinstance(event, ev.TextDelta):
            said.dispatcher.stop()

    said.dispatcher._emit = said.context.emit = tell
    events = said.ask(cmd.Compact())
    assert isinstance(events[-1], ev.Failed)
    assert events[-1].kind == "stopped"
    assert [e for e in events if isinstance(e, ev.ChatOpened)][-1].messages == before
    assert said.context.current_chat.session_id == session
    assert len(said.one(cmd.ListChats(), ev.ChatList).chats) == 1
    said.dispatcher._emit = said.context.emit = said.events.append
    assert said.one(cmd.Send("go on", 0.0), ev.TurnFinished).stats.prefill_tokens < 60


@pytest.mark.slow
def test_a_summary_stays_when_the_window_is_full_and_after_a_restart(home: Path, tiny_path: Path) -> None:
    """A window that was full when compacting began, and is again afterwards: it rotates, the summary does not."""
    settings = replace(SETTINGS, window=512)
    said = talked(tiny_path, settings, rounds=4)
    try:
        assert said.context.current_chat.cache.num_evicted > 0
        assert said.one(cmd.PlanCompact(), CompactPlan).evicted_tokens > 0
        said.ask(cmd.Compact())
        assert said.context.current_chat.cache.num_evicted == 0
        short = said.context.current_chat.session_id
        summary = said.context.current_chat.messages[1].text
        for n in range(12):
            said.one(cmd.Send(f"and once more {n}", 0.0), ev.TurnFinished)
        for again in (said, Said(settings)):
            if again is not said:
                said.context.close()
                again.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
                opened = [e for e in again.ask(cmd.OpenChat(str(short))) if isinstance(e, ev.ChatOpened)][-1]
                assert opened.restored_tokens > 0
                said = again
            use = again.one(cmd.ShowContext(), ContextUsage)
            assert use.parts[1].text == summary[:80]
            assert [p.live == p.tokens for p in use.parts[:3]] == [True, True, False]
    finally:
        said.context.close()


@pytest.mark.slow
def test_a_chat_that_is_not_saved_can_be_taken_back_too(home: Path, tiny_path: Path) -> None:
    said = talked(tiny_path, save=False)
    before = said.context.current_chat.messages
    said.ask(cmd.Compact())
    assert len(said.context.current_chat.messages) < len(before)
    assert said.one(cmd.Rewind(), ev.ChatOpened).messages == before
    assert said.one(cmd.Send("go on", 0.0), ev.TurnFinished).text
    assert said.one(cmd.ListChats(), ev.ChatList).chats == ()
    said.context.close()


@pytest.mark.slow
def test_a_model_that_cannot_summarise_is_not_asked_to(said: Said) -> None:
    said.context.ready_model.name = "tutor"
    assert said.one(cmd.PlanCompact(), CompactPlan).summary_tokens == 0
    assert "tutor cannot summarise; /compact last" in said.one(cmd.Compact(), ev.Failed).text
    assert said.one(cmd.Compact(summarise=False), ev.Compacted)


@pytest.mark.slow
def test_what_cannot_be_compacted_says_why(home: Path, tiny_path: Path) -> None:
    said = Said(SETTINGS)
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    assert "nothing to compact yet" in said.one(cmd.PlanCompact(), ev.Failed).text
    said.one(cmd.Send("long " * 50, 0.0, anyway=True), ev.TurnFinished)
    assert "/set ctx" in said.one(cmd.Compact(), ev.Failed).text
    with pytest.raises(PromptError):
        compaction.plan(said.context.current_chat, "m", True)
    said.context.close()


def test_a_summary_that_was_cut_ends_with_a_sentence() -> None:
    cut = ev.TurnFinished("length", "We spoke of rings. They rotate! Then we", TurnStats())
    assert compaction.summary_of(cut) == "We spoke of rings. They rotate!"
    assert compaction.summary_of(replace(cut, reason="stop")) == cut.text
    assert compaction.summary_of(replace(cut, text="no end at all")) == "no end at all"
