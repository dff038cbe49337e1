"""What the terminal is told: its title, and once something long has ended while it had no focus."""

from __future__ import annotations

import pytest
from textual.events import AppBlur

from mlxkv.events import PrefillProgress, TextDelta
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.tui.state.attention import LONG, Attention, title
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.terminal_signals import attention, first_title, own_title, set_title
from tests.tui.fake_engine import FakeEngine, reply_events
from tests.tui.window import window


def test_the_title_says_what_runs_and_then_which_chat_it_is() -> None:
    state = ChatState(lambda: 0.0)
    assert title(state) == "mlxkv"
    state.submit(cmd.LoadModel("m"))
    state.apply(ev.ModelLoading("m", ev.LoadPhase.LOADING))
    assert title(state) == "mlxkv: loading"
    state.apply(ev.ModelLoading("m", ev.LoadPhase.LOADING, 63, 100))
    assert title(state) == "mlxkv: 63 %"
    state.apply(ev.ModelReady("m", 10, 0.1, True))
    state.apply(ev.ChatOpened("c", "Rust\x1b]0;x\alifetimes"))
    assert title(state) == "mlxkv: Rust␛]0;x␇lifetimes"
    state.submit(cmd.Send("q", 0.0))
    state.apply(ev.TurnStarted("q"))
    assert title(state) == "mlxkv: replying"
    state.apply(PrefillProgress(30, 40, 0, 1.0))
    assert title(state) == "mlxkv: 75 %"
    state.apply(TextDelta("a", 1))
    assert title(state) == "mlxkv: replying"
    state.apply(ev.Failed("It stopped."))
    state.apply(ev.PullProgress("org/m", ev.PullState.DOWNLOADING, 1, 4))
    assert title(state) == "mlxkv: 25 %"


@pytest.mark.parametrize(("seconds", "said"), [(LONG, "The reply has ended: Trip"), (LONG - 0.1, "")])
def test_only_what_took_long_is_told_once(seconds: float, said: str) -> None:
    state, mind = ChatState(lambda: 0.0), Attention()
    state.apply(ev.ChatOpened("c", "Trip"))
    state.submit(cmd.Send("q", 0.0))
    state.apply(ev.TurnStarted("q"))
    assert mind.ended(state, 5.0) == ""
    state.apply(ev.Failed("It stopped."))
    assert mind.ended(state, 5.0 + seconds) == said
    assert mind.ended(state, 99.0) == ""


@pytest.mark.parametrize(
    ("end", "said"),
    [(ev.PullState.DONE, "The download has ended: m"), (ev.PullState.FAILED, "The download has stopped: m")],
)
def test_a_download_that_failed_is_told_as_one(end: ev.PullState, said: str) -> None:
    state, mind = ChatState(lambda: 0.0), Attention()
    state.apply(ev.PullProgress("org/m", ev.PullState.DOWNLOADING, 1, 4))
    mind.ended(state, 0.0)
    state.apply(ev.PullProgress("org/m", end, 4, 4))
    assert mind.ended(state, LONG) == said


@pytest.mark.parametrize(
    ("env", "sequence"),
    [
        ({"TERM": "xterm-256color"}, "\a"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "\a"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "\x1b]9;a␛;b\x1b\\"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "\x1b]9;a␛;b\x1b\\"),
        ({"TERM": "xterm-kitty"}, "\x1b]9;a␛;b\x1b\\"),
        ({"TERM": "foot"}, "\x1b]777;notify;mlxkv;a␛,b\x1b\\"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, "\a"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "\a"),
    ],
)
def test_terminals_get_what_they_are_known_to_have(env: dict[str, str], sequence: str) -> None:
    assert attention("a\x1b;b", env) == sequence


def test_a_title_is_kept_and_given_back() -> None:
    assert first_title("a\x07\n b") == "\x1b[22;0t\x1b]0;a␇ b\x1b\\"
    assert own_title() == set_title("") + "\x1b[23;0t"


@pytest.mark.slow
async def test_the_window_calls_only_without_focus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxkv.tui.state.attention.LONG", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TMUX", raising=False)
    written: list[str] = []
    async with window(FakeEngine(manual=True)) as w:
        assert w.app._driver is not None
        monkeypatch.setattr(w.app._driver, "write", written.append)
        for blurred in (False, True):
            if blurred:
                w.app.post_message(AppBlur())
                await w.until(lambda: not w.app.app_focus)
            w.app.state.prompt("hi")
            w.app.chat.sync()
            await w.until(lambda: w.app._attention._since)
            w.engine.say(reply_events())
            await w.until(lambda: not w.app._attention._since)
            assert ("\a" in written) is blurred
