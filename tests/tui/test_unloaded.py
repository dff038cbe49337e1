"""A window whose model is unloaded: what it says, and that the next message shows the load and can be stopped."""

from __future__ import annotations

import pytest

from mlxkv.events import Message
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import SaveState
from mlxkv.settings.schema import Settings
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.labels import footer_text, gauge_text

UNLOADED = ev.SessionStatus(memory_used=14, memory_limit=20_000_000_000, saved=SaveState.SAVED, unloaded=True)


@pytest.fixture
def state() -> ChatState:
    state = ChatState(lambda: 0.0, Settings(unload_after=30))
    state.begin([cmd.LoadModel("org/Qwen3-4B"), cmd.NewChat()])
    state.apply(ev.ModelReady("org/Qwen3-4B", 7, 0.1, True))
    state.apply(ev.ChatOpened("c1", "Sky", (Message("user", "Why?"), Message("assistant", "So."))))
    state.outbox.clear()
    state.transcript.take_change()
    return state


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            ev.ModelUnloaded("org/Qwen3-4B", 5_300_000_000),
            "Qwen3-4B is unloaded: 5.3 GB given back. Your next message loads it again; nothing is prefilled again.",
        ),
        (
            ev.ModelUnloaded("/my models/Q", 7_000_000, again=1234, is_idle=True),
            "Q is unloaded after 30 min without a command: 7.0 MB given back. Your next message loads it again and "
            "prefills the 1,234 tok of this chat, which is not saved.",
        ),
    ],
)
def test_it_says_what_was_given_back_and_what_the_next_message_costs(
    state: ChatState, event: ev.ModelUnloaded, text: str
) -> None:
    run(state, "unload", "")
    assert list(state.outbox) == [cmd.Unload()]
    state.apply(event)
    assert [block.text for block in state.transcript.take_change().settled] == [text]
    assert not state.is_busy


def test_the_header_and_the_footer_say_so() -> None:
    assert gauge_text(UNLOADED, 80) == ("unloaded", "")
    assert gauge_text(UNLOADED, 120) == ("unloaded – your next message loads it again", "")
    assert footer_text(UNLOADED, 80) == "mem 14 B/20 GB · saved ✓"


def test_the_next_message_shows_the_load_and_comes_back_if_that_is_stopped(state: ChatState) -> None:
    state.apply(UNLOADED)
    state.prompt("And now?")
    assert [type(command) for command in state.outbox] == [cmd.Send]
    state.apply(ev.ModelLoading("org/Qwen3-4B", ev.LoadPhase.LOADING, 1_000_000, 2_000_000))
    assert state.activity(80) == ("⠋ loading Qwen3-4B 1.0/2.0 MB · you can type ahead", "esc to stop")
    assert state.stop()
    state.apply(ev.Failed("Loading was stopped.", ev.FailureKind.STOPPED, "And now?"))
    assert (state.returned, state.is_loading_now, len(state.transcript.messages)) == ("And now?", False, 2)
    state.prompt("And now?")
    state.apply(ev.ModelLoading("org/Qwen3-4B"))
    state.apply(ev.ModelReady("org/Qwen3-4B", 7, 0.1, True))
    assert state.activity(80) == ("", "")  # the prefill has just begun
    assert cmd.NewChat() not in state.outbox
