"""The chat without a window: which events lead to which blocks, commands and words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.events import Message, NoAnswer, Notice, PrefillProgress, TextDelta, ToolCall, TurnFinished
from mlxkv.protocol.commands import Command, Compact, ListChats, LoadModel, NewChat, OpenChat, Send
from mlxkv.protocol.events import (
    ChatList,
    ChatOpened,
    EngineEvent,
    EngineStopped,
    Failed,
    FailureKind,
    LoadPhase,
    ModelLoading,
    ModelReady,
    SettingsApplied,
    TurnStarted,
)
from mlxkv.protocol.status import SessionStats, SessionStatus
from mlxkv.stats import TurnStats
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands import slash_actions as slash
from mlxkv.tui.state.transcript.blocks import Kind
from tests.tui.fake_engine import CHATS, STATS

READY = ModelReady("org/Model-4bit", 1, 0.1, True)
OPENED = ChatOpened("s1", "")


class Clock:
    """Time that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> ChatState:
    """With a model and an empty chat."""
    state = ChatState(clock)
    state.submit(LoadModel("m"))
    state.submit(NewChat())
    feed(state, READY, OPENED)
    state.outbox.clear()
    state.transcript.take_change()
    return state


def feed(state: ChatState, *events: EngineEvent) -> None:
    for event in events:
        state.apply(event)


def shown(state: ChatState) -> list[tuple[str, str]]:
    change = state.transcript.take_change()
    return [(b.kind.value, b.text) for b in (*change.settled, *change.tail)]


def sent(state: ChatState) -> list[Command]:
    out = list(state.outbox)
    state.outbox.clear()
    return out


def test_a_turn(state: ChatState) -> None:
    state.prompt("why?")
    assert sent(state) == [Send("why?", 100.0)]
    feed(state, TurnStarted("why?"), TextDelta("Because\n\nof ", 1), TextDelta("it", 2))
    assert shown(state) == [("user", "why?"), ("markdown", "Because"), ("markdown", "of it")]
    feed(state, TurnFinished("stop", "Because\n\nof it", STATS))
    assert shown(state) == [("markdown", "of it"), ("stats", "")]
    assert state.transcript.reply is None
    assert state.transcript.title == "why?"


def test_prompts_wait_for_the_model_and_for_the_reply(clock: Clock) -> None:
    state = ChatState(clock)
    state.submit(LoadModel("m"))
    state.submit(NewChat())
    state.prompt("one")
    state.prompt("two")
    assert sent(state) == [LoadModel("m"), NewChat()]
    feed(state, READY)
    assert sent(state) == []  # the chat is not open yet
    feed(state, OPENED)
    assert [c.text for c in sent(state) if isinstance(c, Send)] == ["one"]
    assert list(state.queue) == ["two"]
    assert state.unqueue() == "two"
    state.prompt("two, edited")
    feed(state, TurnFinished("stop", "x", STATS))
    assert [c.text for c in sent(state) if isinstance(c, Send)] == ["two, edited"]


def test_a_prompt_waits_for_a_chat_that_is_being_opened(state: ChatState) -> None:
    state.submit(OpenChat("c1"))
    state.prompt("hi")
    assert sent(state) == [OpenChat("c1")]
    feed(state, ChatOpened("c1", "Old"))
    assert [type(c) for c in sent(state)] == [Send]


def test_a_failed_turn_keeps_what_was_said_and_goes_on(state: ChatState) -> None:
    state.prompt("why?")
    state.prompt("next")
    feed(state, TurnStarted("why?"), TextDelta("Becau", 1), Failed("out of memory"))
    assert shown(state) == [("user", "why?"), ("markdown", "Becau"), ("error", "out of memory"), ("user", "next")]
    assert [c.text for c in sent(state) if isinstance(c, Send)] == ["why?", "next"]


def test_a_summary_that_fails_is_over(state: ChatState) -> None:
    """Whatever ended it: the line above the prompt said "stopping" for ever."""
    state.submit(Compact())
    feed(state, ChatOpened("c1", ""), TurnStarted("sum up"), TextDelta("We sp", 1))
    state.stop()
    feed(state, Failed("The disk is gone."))
    assert state.activity(80) == ("", "")
    state.prompt("hi")
    assert [type(c) for c in sent(state)] == [Compact, Send]


def test_a_failed_open_leaves_the_chat_as_it_was(state: ChatState) -> None:
    state.submit(OpenChat("gone"))
    feed(state, Failed("No session is called gone."))
    state.prompt("hi")
    assert [type(c) for c in sent(state)] == [OpenChat, Send]


def test_where_the_first_chat_cannot_be_opened_a_new_one_is(clock: Clock) -> None:
    """Else messages would wait for a chat for ever, and the reason must survive its opening."""
    state = ChatState(clock)
    state.begin([LoadModel("m"), OpenChat("gone")])
    feed(state, READY, Failed("The disk is full."))
    state.prompt("hi")
    feed(state, OPENED)
    assert [type(c) for c in sent(state)] == [LoadModel, OpenChat, NewChat, Send]
    assert ("error", "The disk is full.") in shown(state)


def test_a_load_can_be_stopped(clock: Clock) -> None:
    state = ChatState(clock)
    assert not state.stop()
    state.submit(LoadModel("org/Big-4bit"))
    state.submit(NewChat())
    feed(state, ModelLoading("org/Big-4bit", LoadPhase.LOADING, 2_100_000_000, 4_600_000_000))
    assert state.activity(80) == ("⠋ loading Big-4bit 2.1/4.6 GB · you can type ahead", "esc to stop")
    assert state.stop()
    feed(state, Failed("Loading org/Big-4bit was stopped.", FailureKind.STOPPED), Failed("No model is loaded."))
    assert shown(state) == [("meta", "Loading org/Big-4bit was stopped.")]
    assert not state.stop()


def test_a_model_that_cannot_be_loaded(clock: Clock) -> None:
    """The reason must survive the opening of the first chat, and the second model opens one."""
    state = ChatState(clock)
    state.submit(LoadModel("missing"))
    state.submit(NewChat())
    feed(state, Failed("There is no model missing."), Failed("No model is loaded."))
    assert shown(state) == [("error", "There is no model missing.")]
    state.submit(LoadModel("m"))
    feed(state, READY)
    assert [type(c) for c in sent(state)][-1] is NewChat
    feed(state, OPENED)
    change = state.transcript.take_change()
    assert change.cleared
    assert [b.text for b in change.settled] == ["There is no model missing."]


def test_opening_a_chat_shows_its_messages(state: ChatState) -> None:
    messages = (Message("user", "q"), Message("assistant", "a\n\nb", STATS))
    feed(state, ChatOpened("c1", "Ru\x1bst", messages, 12_288, 1_800_000_000, 0.4), Notice("mind the gap"))
    change = state.transcript.take_change()
    assert change.cleared
    assert [(b.kind.value, b.text) for b in change.settled] == [
        ("user", "q"),
        ("reply", "a\n\nb"),
        ("stats", ""),
        ("meta", "✓ restored 12,288 tok (1.8 GB) in 0.4s · nothing to prefill"),
        ("meta", "mind the gap"),
    ]
    assert state.transcript.title == "Ru␛st"
    feed(state, ChatOpened("c1", "Rust", messages, 1_200, 1_800_000, 0.4, left_tokens=1_040))
    settled = state.transcript.take_change().settled
    assert settled[-1].text == "✓ restored 1,200 tok (1.8 MB) in 0.4s · 1,040 tok to prefill"


def test_a_reply_of_reasoning_alone_says_so_under_its_reasoning(state: ChatState) -> None:
    """It was an empty reply with figures. When it is made, and when its chat is opened again."""
    cut = TurnStats(generated_tokens=40, finish_reason="length")
    feed(state, TurnStarted("q"), TextDelta("hm", 40, thinking=True), NoAnswer("of the engine", 40, "length", True))
    feed(state, TurnFinished("length", "", cut, "hm"))
    said = "The reply was reasoning alone (40 tokens); "
    said += "raise max-tokens (/set), or ask for an answer without reasoning (/think off)."
    found = [(b.kind, b.text) for b in state.transcript.take_change().settled]
    assert [kind for kind, _ in found] == [Kind.USER, Kind.THOUGHT, Kind.META, Kind.STATS]
    assert found[2][1] == said
    feed(state, ChatOpened("c1", "t", (Message("user", "q"), Message("assistant", "", cut, "hm"))))
    found = [(b.kind, b.text) for b in state.transcript.take_change().settled]
    assert [kind for kind, _ in found] == [Kind.USER, Kind.THOUGHT, Kind.REPLY, Kind.META, Kind.STATS]
    assert found[3][1] == said
    off = "The reply was reasoning alone (40 tokens); raise max-tokens (/set)."  # not "/think off" where it is off
    feed(state, TurnFinished("length", "", cut, "hm", can_be_quiet=False))
    assert off in [b.text for b in state.transcript.take_change().settled]
    feed(state, ChatOpened("c1", "t", (Message("assistant", "", cut, "hm", can_be_quiet=False),)))
    assert off in [b.text for b in state.transcript.take_change().settled]
    feed(state, TurnFinished("stop", "", TurnStats(generated_tokens=1, finish_reason="stop")))
    assert [b.text for b in state.transcript.take_change().settled if b.kind is Kind.META] == [
        "The reply is empty (1 token); ask in other words."
    ]
    feed(state, TurnFinished("stopped", "", TurnStats(finish_reason="stopped"), "hm"))
    assert not [b for b in state.transcript.take_change().settled if b.kind is Kind.META]


def test_kv_added_since_the_turn_before(state: ChatState) -> None:
    added: list[int] = []
    for live in (900, 950, 940):
        feed(state, TurnFinished("stop", "x", TurnStats(cache_live_bytes=live)))
        added += [b.kv_added for b in state.transcript.take_change().settled if b.kind is Kind.STATS]
    assert added == [0, 50, 0]  # the first has nothing to compare with; a ring may shrink


def test_engine_stopped(state: ChatState) -> None:
    state.prompt("why?")
    feed(state, TextDelta("Be", 1), EngineStopped("Metal ran out of memory"))
    assert shown(state)[-1] == ("error", "The engine stopped: Metal ran out of memory · chat saved – mlxkv -c")
    assert state.failed
    state.outbox.clear()
    state.submit(NewChat())
    assert sent(state) == []


def test_resume_by_title_or_from_a_list(state: ChatState) -> None:
    state.resume("porto")
    feed(state, ChatList(CHATS))
    assert sent(state) == [ListChats(), OpenChat("c2")]
    feed(state, ChatOpened("c2", "Trip to Porto"))
    state.resume("nothing like it")
    feed(state, ChatList(CHATS))
    assert shown(state)[-1] == ("meta", "No chat is called “nothing like it”. /resume lists them.")
    state.resume("")
    feed(state, ChatList(CHATS))
    assert state.listing is not None
    assert [row.choice for row in state.listing.rows] == [OpenChat("c1"), OpenChat("c2")]


def test_thinking_is_folded(state: ChatState, clock: Clock) -> None:
    state.prompt("why?")
    state.transcript.take_change()
    feed(state, TextDelta("hm", 1, thinking=True))
    clock.now += 12
    feed(state, TextDelta(" hm", 318, thinking=True))
    assert state.activity(80)[0].endswith("thinking 12s · 318 tok · 26 tok/s")
    feed(state, TextDelta("So", 319))
    assert shown(state) == [("thought", "thought 12s · 318 tok"), ("markdown", "So")]


def test_activity(clock: Clock) -> None:
    state = ChatState(clock)
    assert state.activity(80) == ("", "")
    state.submit(LoadModel("org/Qwen3-8B-4bit"))
    feed(state, ModelLoading("org/Qwen3-8B-4bit", LoadPhase.LOADING, 2_100_000_000, 4_600_000_000))
    assert state.activity(80)[0] == "⠋ loading Qwen3-8B-4bit 2.1/4.6 GB · you can type ahead"
    feed(state, READY, OPENED)
    state.prompt("x")
    assert state.activity(80) == ("", "")  # a short prefill says nothing
    clock.now += 0.6
    feed(state, PrefillProgress(4096, 12_288, 0, 812.0))
    assert state.activity(80) == ("⠦ prefill 4,096/12,288 · 812 tok/s · ~10s left", "esc to cancel")
    feed(state, TextDelta("a", 1))
    clock.now += 3
    feed(state, TextDelta("b", 127))
    assert state.activity(80) == ("⠦ 42.0 tok/s · 127 tok · 3.0s", "esc to stop")


def test_live_rate_is_that_of_the_last_two_seconds(state: ChatState, clock: Clock) -> None:
    state.prompt("x")
    for step in range(1, 101):  # ten seconds at ten tokens/s, and then two at fifty
        clock.now += 0.1
        feed(state, TextDelta("a", step))
    for step in range(1, 101):
        clock.now += 0.02
        feed(state, TextDelta("a", 100 + step))
    assert state.transcript.reply is not None
    assert state.transcript.reply.rate(clock.now) == pytest.approx(50, rel=0.05)


def test_stop(state: ChatState) -> None:
    assert not state.stop()
    state.prompt("x")
    assert state.stop()
    feed(state, TurnFinished("stopped", "", STATS))
    assert state.transcript.reply is None


ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
EVENTS = st.one_of(
    st.builds(TextDelta, ANY, st.integers(0, 99), st.booleans()),
    st.builds(Notice, ANY),
    st.builds(Failed, ANY),
    st.builds(TurnStarted, ANY),
    st.builds(TurnFinished, st.sampled_from(["stop", "length", "stopped"]), ANY, st.just(STATS)),
    st.builds(ChatOpened, st.just("s"), ANY, st.just((Message("user", "q"), Message("assistant", "a")))),
    st.builds(ModelReady, ANY, st.just(1), st.just(0.1), st.booleans()),
    st.builds(SessionStatus, st.integers(0, 10**9), st.integers(0, 100), st.integers(0, 100)),
    st.builds(EngineStopped, st.one_of(st.none(), ANY)),
    st.just(ChatList(CHATS)),
    st.builds(PrefillProgress, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.floats(0, 9)),
)


@given(st.lists(st.one_of(EVENTS, st.sampled_from(["prompt", "stop", "new", "unqueue", "resume"])), max_size=30))
def test_no_order_of_events_breaks_it(script: list[EngineEvent | str]) -> None:
    """And no hostile character reaches a block, the title or the activity line."""
    clock = Clock()
    state = ChatState(clock)
    for step in script:
        clock.now += 0.3
        match step:
            case "prompt":
                state.prompt("p\x1b")
            case "stop":
                state.stop()
            case "new":
                state.submit(NewChat())
            case "unqueue":
                state.unqueue()
            case "resume":
                state.resume("rust")
            case str():
                pass
            case event:
                state.apply(event)
        change = state.transcript.take_change()
        words = "".join(b.text for b in (*change.settled, *change.tail)) + state.transcript.title + state.model
        assert "\x1b" not in words + "".join(state.activity(80))


def test_the_model_reads_what_was_typed_and_the_screen_shows_it_clean(state: ChatState) -> None:
    state.outbox.clear()
    state.prompt("👩\u200d💻 \x1b[31m")
    sent = state.outbox[-1]
    assert isinstance(sent, Send)
    assert sent.text == "👩\u200d💻 \x1b[31m"
    shown = [block.text for block in state.transcript.take_change().settled if block.kind is Kind.USER]
    assert shown == ["👩\u200d💻 ␛[31m"]  # drawn without the joiner, copied with it


def test_joiners_that_a_script_needs_survive_a_stream(state: ChatState) -> None:
    state.prompt("salam")
    state.apply(TurnStarted("salam"))
    for n, piece in enumerate(("می", "\u200c", "خواهم"), 1):
        state.apply(TextDelta(piece, n))
    assert [block.text for block in state.transcript.take_change().tail] == ["می\u200cخواهم"]


def test_what_was_told_since_the_last_reply_is_not_told_again(state: ChatState) -> None:
    trained = "The window is larger than this model was trained for."
    state.transcript.add_line(f"window is 9,000 from now on. {trained}")
    for _ in range(2):  # the first message of a chat, stopped before its reply and sent again
        state.prompt("q")
        feed(state, TurnStarted("q"), Notice(trained), Notice("This home is read-only."))
        feed(state, TurnFinished("stopped", "", STATS, unanswered=True, returned="q"))
    told = [text for kind, text in shown(state) if kind == "meta"]
    assert told == [f"window is 9,000 from now on. {trained}", "This home is read-only."]
    state.prompt("q")
    feed(state, TurnStarted("q"), TextDelta("a", 1), TurnFinished("stop", "a", STATS), Notice(trained))
    assert ("meta", trained) in shown(state)


@pytest.mark.parametrize("messages", [(), (Message("user", "q"), Message("assistant", "a", STATS))])
def test_other_bounds_of_the_chat_leave_what_was_answered(state: ChatState, messages: tuple[Message, ...]) -> None:
    feed(state, ChatOpened("s1", "t", messages))
    state.transcript.add_error("/set sinks is 'abc'")
    slash.run(state, "set", "ctx 8")
    feed(state, ChatOpened("s1", "t", messages), SettingsApplied("The KV cache has its new bounds."))
    change = state.transcript.take_change()
    assert change.cleared
    *said, wrong, remark, applied = (b.text for b in change.settled)
    assert len(said) == (3 if messages else 0)
    assert wrong == "/set sinks is 'abc'"
    assert remark.startswith("window is 8")
    assert "attends only to the last 8 tokens" in remark
    assert applied == "The KV cache has its new bounds."


def test_what_was_answered_during_the_last_reply_stays_below_it(state: ChatState) -> None:
    """A change of the cache, or another model, draws the chat anew; what stood above the question is not repeated."""
    state.transcript.add_line("before")
    state.prompt("q")
    feed(state, TurnStarted("q"), TextDelta("a", 1))
    state.transcript.add_line("during")
    feed(state, TurnFinished("stop", "a", STATS))
    state.transcript.add_line("after")
    state.submit(LoadModel("other"))
    state.transcript.take_change()
    feed(state, ChatOpened("s1", "t", (Message("user", "q"), Message("assistant", "a", STATS))))
    *_, figures, during, after = state.transcript.take_change().settled
    assert (figures.kind, during.text, after.text) == (Kind.STATS, "during", "after")
    assert (during.tight, after.tight) == (False, False)


def test_calls_and_results_are_dim_lines(state: ChatState) -> None:
    stats, calls = TurnStats(finish_reason="tool_calls"), (ToolCall("f", '{"a":\n1}\x1b'),)
    reply = Message("assistant", "so", stats, tool_calls=calls)
    feed(state, ChatOpened("c1", "t", (Message("user", "q"), reply, Message("tool", "2"))))
    blocks = shown(state)
    assert [kind for kind, _ in blocks] == ["user", "reply", "meta", "stats", "meta"]
    assert (blocks[2][1], blocks[4][1]) == ('→ f({"a": 1}␛)', "← 2")
    state.submit(Send("and?", 0.0))
    feed(state, TurnStarted("and?"), TurnFinished("tool_calls", "", stats, tool_calls=calls))
    assert [text for kind, text in shown(state) if kind == "meta"] == ['→ f({"a": 1}␛)']
    assert state.transcript.messages[-1].tool_calls == calls


def test_what_only_reads_does_not_wait_for_the_reply(state: ChatState) -> None:
    state.prompt("why?")
    slash.run(state, "stats", "")
    slash.run(state, "context", "")
    feed(state, TurnStarted("why?"), TextDelta("Becau", 1), SessionStats(num_turns=1))
    assert state.report is not None
    assert state.report.command == "stats"
    feed(state, Failed("It cannot be read.", is_read=True), TextDelta("se", 2))
    assert state.transcript.reply is not None
    assert ("error", "It cannot be read.") in shown(state)
    state.prompt("and then?")
    feed(state, TurnFinished("stop", "Because", STATS))
    assert [c.text for c in sent(state) if isinstance(c, Send)] == ["why?", "and then?"]
