"""Talking and going back, through the public API: nothing is read twice, nothing that was said is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.errors import (
    ConfigError,
    PromptError,
    SessionLockedError,
)
from mlxkv.events import Notice, TextDelta, TurnFinished
from mlxkv.model import Model
from tests.chats import CONFIG, GREEDY, new, say
from tests.tokenizers import DEFAULTING, FORGETFUL, tiny_folder


def test_a_later_turn_reads_only_the_new_message(model: Model) -> None:
    chat = new(model, system="be good")
    first = say(chat, "hi")
    second = say(chat, "and you?")
    s = second.stats
    assert s.cached_tokens + s.prefill_tokens == s.prompt_tokens
    assert s.cached_tokens >= first.stats.prompt_tokens + first.stats.generated_tokens - 1
    assert s.prefill_tokens < 40
    assert s.reuse_stopped_at is None
    assert [m.role for m in chat.messages] == ["user", "assistant", "user", "assistant"]


def test_a_template_that_rewrites_history_stops_the_reuse_there_and_says_so(tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "forgetful", template=FORGETFUL)))
    chat = new(model)
    first = say(chat, "hi")
    second = say(chat, "and you?")
    assert second.stats.cached_tokens == first.stats.prompt_tokens
    assert second.stats.reuse_stopped_at == first.stats.prompt_tokens
    assert "differs" in (second.stats.reuse_stopped_why or "")


def test_the_system_prompt_is_pinned(model: Model) -> None:
    system = "be good. " * 5
    chat = new(model, system=system)
    geometry = chat.cache.plan.geometry
    assert geometry is not None
    assert geometry.sinks == model._runtime.prompts.num_system_tokens(system)


@pytest.mark.slow
def test_the_templates_own_system_prompt_stays_when_the_window_wraps(tmp_path: Path) -> None:
    """SmolLM2's template writes one where there is none: with 4 pinned tokens it rotated out."""
    model = mlxkv.load(str(tiny_folder(tmp_path / "defaulting", template=DEFAULTING)))
    front = tuple(model._runtime.prompts.encode("<s><|im_start|>system\nyou are tiny<|im_end|>\n<|im_start|>"))
    chat = model.chat(cache=CacheConfig(window=128, block=16), **GREEDY)
    for _ in range(6):
        say(chat, "hi you " * 6)
    assert chat.stats.evicted_tokens > len(front)
    assert all(group.held()[0] == (0, len(front)) for group in chat.cache.groups)
    assert tuple(chat.cache.tokens[: len(front)]) == front
    assert model.generate("hi", cache=CONFIG, max_tokens=2).stats.cache_window == 516  # raw text has no template
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, CONFIG], ids=["saved bounds", "the same bounds by settings"])
def test_a_chat_saved_with_fewer_pinned_tokens_resumes_with_those(tmp_path: Path, asked: CacheConfig | None) -> None:
    """Before the template's own system prompt was pinned, 4 tokens were."""
    model = mlxkv.load(str(tiny_folder(tmp_path / "defaulting", template=DEFAULTING)))
    chat = model.chat(cache=replace(CONFIG, sinks=4), autosave=True, **GREEDY)
    for _ in range(8):
        say(chat, "hi you " * 12)
    assert chat.stats.evicted_tokens
    session, held = str(chat.session_id), len(chat.log)
    chat.close()
    chat = model.resume(session, cache=asked)
    assert chat.cache.plan.resolved.sinks == 4
    stats = say(chat, "and?").stats
    assert stats.cached_tokens >= held - 1
    chat.close()
    other = model.resume(session, cache=replace(CONFIG, window=1024))
    assert other.cache.plan.resolved.sinks not in (4, "system")
    other.close()
    model.close()


def test_what_a_stop_string_cut_off_is_not_in_the_next_prompt(model: Model) -> None:
    varied = {"temperature": 1.5, "seed": 3}
    free = say(new(model), "hi", **varied).text
    chat = new(model)
    stop = free[4:6]
    finished = say(chat, "hi", stop=[stop], **varied)
    assert finished.text == free[: free.index(stop)] != ""
    say(chat, "and you?")
    prompt = model.tokenizer.decode(chat.cache.tokens)
    assert f"assistant\n{finished.text}<|im_end|>" in prompt


@pytest.mark.slow
def test_cancel_keeps_what_was_said(model: Model) -> None:
    chat = new(model, max_tokens=400)
    text = ""
    for event in chat.send("hi"):
        if isinstance(event, TextDelta):
            text += event.text
            chat.cancel()
    assert chat.stats.finish_reason == "stopped"
    assert chat.messages[-1].text == text != ""
    assert say(chat, "on").stats.reuse_stopped_at is None


def test_walking_away_keeps_what_was_said(model: Model) -> None:
    chat = new(model, max_tokens=400)
    chat.save()
    first = next(e.text for e in chat.send("hi") if isinstance(e, TextDelta))
    assert chat.messages[-1].text == first
    chat.close()
    record = model.store.load(str(chat.session_id))
    assert [(t.role, t.state) for t in record.turns] == [("user", "done"), ("assistant", "stopped")]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused_and_changes_nothing(model: Model, text: str) -> None:
    chat = new(model)
    with pytest.raises(PromptError, match="empty"):
        chat.send(text)
    assert chat.messages == ()


# -- going back ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_undo_forks_and_the_next_turn_is_as_if_it_had_never_been(model: Model) -> None:
    chat, straight = new(model), new(model)
    say(chat, "hi")
    say(straight, "hi")
    chat.save()
    before = chat.session_id
    say(chat, "to be forgotten")
    assert chat.undo() == "to be forgotten"
    assert chat.session_id != before
    chat.close()
    assert say(chat, "and you?").text == say(straight, "and you?").text
    assert len(model.store.load(str(before)).turns) == 4  # nothing was destroyed


def test_retry_keeps_the_old_reply_in_the_parent(model: Model) -> None:
    chat = new(model)
    chat.save()
    say(chat, "hi", seed=1, temperature=1.5)
    old = chat.session_id
    *_, last = chat.retry(seed=2, temperature=1.5)
    assert isinstance(last, TurnFinished)
    assert last.stats.prefill_tokens == 1  # the prompt is cached; its last token gives the logits
    assert [m.text for m in chat.messages] == ["hi", last.text]
    chat.close()
    assert model.store.load(str(old)).turns[1].text != last.text


@pytest.mark.slow
@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("again", ["retry", "edit"])
def test_nothing_is_taken_back_before_the_first_event(model: Model, again: str, is_saved: bool) -> None:
    chat = new(model)
    if is_saved:
        chat.save()
    say(chat, "hi")
    turns, session = chat.turns, chat.session_id
    events = chat.retry() if again == "retry" else chat.edit(0, "hello")
    assert (chat.turns, chat.session_id) == (turns, session)
    del events
    assert (chat.turns, chat.session_id, len(model.store.list())) == (turns, session, int(is_saved))
    assert say(chat, "and you?").text  # the chat continues where it was
    events = chat.retry() if again == "retry" else chat.edit(2, "hello")
    list(chat.edit(2, "something else"))
    with pytest.raises(ConfigError, match="The chat has changed since"):
        next(events)
    assert chat.messages[-1].role == "assistant"


def test_an_edit_that_the_template_refuses_takes_nothing_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = new(model)
    say(chat, "hi")
    turns = chat.turns

    def refuse(num_tokens: int) -> None:
        raise PromptError("too long")

    monkeypatch.setattr(chat.cache, "check_length", refuse)
    with pytest.raises(PromptError, match="too long"):
        list(chat.edit(0, "far too much"))
    assert chat.turns == turns


def test_edit_goes_on_from_an_earlier_message(model: Model) -> None:
    chat = new(model)
    for text in ("one", "two", "three"):
        say(chat, text)
    list(chat.edit(2, "zwei"))
    assert [m.text for m in chat.messages if m.role == "user"] == ["one", "zwei"]
    with pytest.raises(ConfigError, match="Message 1 is not one of yours"):
        chat.edit(1, "x")


@pytest.mark.slow
def test_going_back_further_than_the_cache_can_reads_rows_from_disk(model: Model) -> None:
    """The window has long wrapped: only the session's chunks still hold the old rows."""
    small = mlxkv.CacheConfig(window=128, block=16, slack=16, sinks=4)
    chat, straight = (model.chat(cache=small, **GREEDY) for _ in range(2))
    chat.save()
    say(chat, "one " * 10)
    say(straight, "one " * 10)
    for _ in range(4):
        say(chat, "more and more " * 6)
    assert chat.cache.num_evicted > 0
    list(chat.edit(2, "two"))
    chat.close()
    assert chat.stats.cached_tokens > 40
    assert chat.messages[-1].text == say(straight, "two").text


def test_a_fork_shares_the_past_and_not_the_future(model: Model) -> None:
    chat = new(model)
    say(chat, "hi")
    chat.save()
    twin = chat.fork()
    a, b = say(chat, "left"), say(twin, "right")
    assert a.stats.cached_tokens == b.stats.cached_tokens > 0
    assert chat.session_id != twin.session_id
    assert chat.messages[:2] == twin.messages[:2]
    assert chat.messages[2].text != twin.messages[2].text
    for c in (chat, twin):
        c.close()


def test_what_the_user_should_know_of_the_cache_is_said_once(model: Model) -> None:
    chat = model.chat(cache=mlxkv.CacheConfig(window=100, block=16), **GREEDY)
    notices = [e.text for turn in ("hi", "and?") for e in chat.send(turn) if isinstance(e, Notice)]
    assert notices == ["The window of 100 is rounded up to 112, whole blocks of 16."]


def test_a_long_prompt_goes_through_the_ring_with_one_notice(model: Model) -> None:
    chat = model.chat(cache=mlxkv.CacheConfig(window=64, block=16), **GREEDY)
    events = list(chat.send("much " * 60))
    assert len([e for e in events if isinstance(e, Notice)]) == 1
    assert chat.stats.evicted_tokens > 0


# -- forks and versions ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reply_that_was_cut_goes_on_in_place_as_if_it_had_never_been(model: Model) -> None:
    chat, straight = new(model), new(model, max_tokens=36)
    session = chat.save()
    say(chat, "hi")
    whole = last = say(straight, "hi")
    for _ in range(2):
        *deltas, last = chat.continue_reply()
        assert isinstance(last, TurnFinished)
        assert (last.stats.prefill_tokens, last.stats.generated_tokens) == (1, 12)
        assert chat.messages[-1].text == last.text
        assert last.text.endswith("".join(e.text for e in deltas if isinstance(e, TextDelta)))
    assert last.text == whole.text
    record = model.store.load(session)
    assert [(t.role, len(t.ids)) for t in record.turns][1:] == [("assistant", 36)]
    assert say(chat, "on").text == say(straight, "on", max_tokens=12).text
    chat.close()


@pytest.mark.slow
def test_a_stopped_reply_goes_on_after_a_restart(model: Model) -> None:
    chat, straight = (new(model, max_tokens=40) for _ in range(2))
    session = chat.save()
    whole = say(straight, "hi")
    for event in chat.send("hi"):
        if isinstance(event, TextDelta) and event.num_tokens == 9:
            chat.cancel()
    chat.close()
    resumed = model.resume(session)
    *_, last = resumed.continue_reply(max_tokens=31)
    assert isinstance(last, TurnFinished)
    assert (last.text, last.stats.prefill_tokens) == (whole.text, 1)
    resumed.close()


def test_only_a_cut_reply_can_be_continued(model: Model) -> None:
    chat = new(model)
    with pytest.raises(PromptError, match="no reply"):
        chat.continue_reply()
    say(chat, "hi", stop=[say(new(model), "hi").text[4:6]])
    with pytest.raises(PromptError, match="is complete"):
        chat.continue_reply()


@pytest.mark.slow
def test_versions_of_a_message_and_the_tree_of_chats(model: Model) -> None:
    chat = new(model, temperature=1.5)
    chat.save(title="sky")
    first = str(chat.session_id)
    say(chat, "hi")
    say(chat, "and you?")
    list(chat.retry())
    list(chat.retry(1))
    versions = [[s.text for s in chat.siblings(i)] for i in range(3)]
    assert versions[0] == ["hi"]
    assert len(versions[1]) == 2
    assert versions[2] == []
    assert [s.is_current for s in chat.siblings(1)] == [False, True]
    old = chat.siblings(1)[0].session_id
    chat.close()
    other = model.resume(old)
    assert [m.text for m in other.messages][2:3] == ["and you?"]
    assert [len(other.siblings(i)) for i in range(4)] == [1, 2, 1, 2]
    assert [(b.title, b.num_turns, b.forked_at) for b in other.tree()] == [
        ("sky", 4, None),
        ("sky", 4, 2),
        ("sky", 2, 0),
    ]
    assert [b.is_version for b in other.tree()] == [False, True, True]
    assert [b.parent for b in other.tree()] == [None, first, other.tree()[1].session_id]
    other.close()


@pytest.mark.slow
def test_a_fork_at_a_message_ends_before_mine_and_after_a_reply(model: Model) -> None:
    chat, straight = new(model), new(model)
    chat.save()
    for text in ("one", "two", "three"):
        say(chat, text)
    say(straight, "one")
    a, b = chat.fork(2), chat.fork(1)
    assert [m.text for m in a.messages] == [m.text for m in b.messages] == [m.text for m in straight.messages]
    expected = say(straight, "zwei")
    for twin in (a, b):
        got = say(twin, "zwei")
        assert got.text == expected.text
        assert got.stats.cached_tokens >= expected.stats.cached_tokens  # "two" began alike
    assert len(chat.messages) == 6
    with pytest.raises(ConfigError, match="There is no message 6"):
        chat.fork(6)
    for c in (chat, a, b):
        c.close()


@pytest.mark.slow
def test_going_back_twice_leaves_no_empty_fork_behind(model: Model) -> None:
    chat = new(model)
    chat.save(title="sky")
    for text in ("one", "two", "three"):
        say(chat, text)
    assert [chat.undo(), chat.undo(), chat.rewind(0)] == ["three", "two", "one"]
    assert [(b.num_turns, b.forked_at) for b in chat.tree()] == [(6, None), (0, 0)]
    chat.close()


@pytest.mark.slow
def test_a_chat_that_is_open_elsewhere_is_read_only_and_can_be_forked(model: Model, tiny_path: Path) -> None:
    chat, straight = new(model), new(model)
    chat.save(title="mine")
    say(chat, "hi")
    say(straight, "hi")
    other = mlxkv.load(str(tiny_path))
    reader = other.resume("mine")
    assert reader.messages == chat.messages
    assert "is open in process" in (reader.read_only or "")
    for refused in (lambda: reader.send("x"), reader.continue_reply):
        with pytest.raises(SessionLockedError, match="is open in process"):
            refused()
    fork = reader.fork()
    assert fork.read_only is None
    got, expected = say(fork, "and you?"), say(straight, "and you?")
    assert (got.text, got.stats.cached_tokens) == (expected.text, expected.stats.cached_tokens)
    assert reader.undo() == "hi"  # goes on in a fork, so it is ours
    assert reader.read_only is None
    say(chat, "still mine")
    for c in (chat, reader, fork):
        c.close()
    other.close()


@pytest.mark.slow
def test_ids_of_another_model_are_never_taken_for_this_ones(model: Model, tmp_path: Path) -> None:
    chat = new(model)
    chat.save(title="moved")
    for text in ("hi", "and you?"):
        say(chat, text)
    chat.close()
    other = mlxkv.load(str(tiny_folder(tmp_path / "other", seed=7, reverse=True)))
    other.resume("moved").close()  # it is the other model's from now on, though nothing was said
    resumed = other.resume("moved")
    say(resumed, "so?")
    resumed.rewind(2)  # back among the first one's replies
    with pytest.raises(PromptError, match="another model"):
        resumed.continue_reply()
    say(resumed, "well?")
    prompt = other.tokenizer.decode(resumed.cache.tokens)
    assert "<|im_start|>user\nhi<|im_end|>" in prompt
    assert "<|im_start|>user\nwell?<|im_end|>" in prompt
    resumed.close()
    other.close()
