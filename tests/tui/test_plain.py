"""Line mode with a fake dispatcher: what is read, what is printed, and that nothing on the way is drawn."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from mlxkv.config import Folders, Settings
from mlxkv.events import Message, NoAnswer, Notice, TextDelta, ToolCall, TurnFinished
from mlxkv.protocol.commands import (
    ChangeSettings,
    CheckChat,
    Command,
    Compact,
    Edit,
    LoadModel,
    NewChat,
    OpenChat,
    Pull,
    Rewind,
    Send,
)
from mlxkv.protocol.events import (
    ChatOpened,
    ChatReleased,
    EngineEvent,
    MessageTooLong,
    PullProgress,
    PullState,
    TurnStarted,
)
from mlxkv.stats import Overflow, TurnStats
from mlxkv.text.clean import clean
from mlxkv.tui.line_mode import PlainChat
from mlxkv.tui.state.gauges import BARS
from mlxkv.tui.state.labels import SPINNER
from tests.tui.fake_engine import FakeEngine
from tests.tui.hostile_engine import NAMES, HostileEngine, bomb

Played = Mapping[type[Command], Sequence[EngineEvent]]  # what a command is answered with


class FakeDispatcher(FakeEngine):
    """A dispatcher that answers as the fake engine does, and one download."""

    def __init__(
        self, tell: Callable[[EngineEvent], None], engine: FakeEngine | None = None, played: Played | None = None
    ) -> None:
        super().__init__()
        self._played = played or {}
        self._tell, self._engine = tell, engine or FakeEngine()

    def handle(self, command: Command) -> None:  # type: ignore[override]
        self.commands.append(command)
        for event in self._played.get(type(command)) or self._engine.answer(command):
            self._tell(event)
            if isinstance(event, PullProgress) and event.state == "downloading":
                self._tell(PullProgress(event.name, PullState.DONE, event.total, event.total))

    def pause_download(self) -> None:
        self.stopped += 1


def talk(
    *lines: str,
    ask: str | None = None,
    start: tuple[Command, ...] = (),
    hostile: bool = False,
    played: Played | None = None,
) -> tuple[str, FakeDispatcher, int]:
    """The transcript of a session in which the user types `lines` and then Ctrl+D. `hostile`: no echo of them."""
    made: list[FakeDispatcher] = []
    out = io.StringIO()
    typed: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        out.write(prompt)
        line = next(typed, None)
        if line is None:
            raise EOFError
        if not hostile:
            out.write(f"{line}\n")
        return line

    def make(tell: Callable[[EngineEvent], None]) -> FakeDispatcher:
        made.append(FakeDispatcher(tell, HostileEngine() if hostile else None, played))
        return made[0]

    settings = Settings(model=bomb(), system=bomb(1)) if hostile else Settings()
    chat = PlainChat(Folders.from_env(), settings, make, out, read)
    code = chat.run(start or (LoadModel("org/Qwen3-8B-4bit"), NewChat()), ask)
    return out.getvalue(), made[0], code


def test_a_question_and_its_reply() -> None:
    said, dispatcher, code = talk("Why?")
    assert code == 0
    assert dispatcher.closed == 1
    assert "org/Qwen3-8B-4bit is ready.\nUser: Why?\nAssistant: The borrow of `map` lives" in said
    assert "(42.1 tok/s · KV 916 MB · TTFT 0.21s · 312 tok" in said
    assert not set(said) & set(SPINNER + BARS + "─│▰▱\x1b")


class Reasoning(list[EngineEvent]):
    """Ctrl+\\ comes while the model reasons."""

    def __iter__(self) -> Iterator[EngineEvent]:
        yield TurnStarted("q")
        yield TextDelta("hm", 1, thinking=True)
        signal.raise_signal(signal.SIGQUIT)
        yield TextDelta("Sky.", 2)
        yield TurnFinished("stop", "Sky.", TurnStats(), "hm")


def test_ctrl_backslash_ends_the_reasoning_and_the_answer_follows() -> None:
    before = signal.getsignal(signal.SIGQUIT)
    said, dispatcher, _ = talk("Why?", "/help", played={Send: Reasoning([ChatReleased("")])})
    assert dispatcher.answered == 1
    assert "Assistant: (thinking) Sky." in said
    assert "Ctrl+\\: answer now, while the model reasons" in said
    assert signal.getsignal(signal.SIGQUIT) is before


def test_a_reply_of_reasoning_alone_and_a_notice_stand_on_lines_of_their_own() -> None:
    stats = TurnStats(generated_tokens=40, finish_reason="length")
    told = NoAnswer("of the engine", 40, "length", True)
    thought = [TurnStarted("q"), Notice("Reused 300 tokens."), TextDelta("hm", 40, thinking=True), told,
               TurnFinished("length", "", stats, "hm")]  # fmt: skip
    said, _, _ = talk("q", "/resume x", played={Send: thought})
    assert (
        "User: q\nReused 300 tokens.\nAssistant: (thinking) \nThe reply was reasoning alone (40 tokens); raise" in said
    )
    assert said.count("reasoning alone") == 1
    opened = ChatOpened("c1", "t", (Message("user", "q"), Message("assistant", "", stats, "hm")))
    said, _, _ = talk(start=(OpenChat("c1"),), played={OpenChat: [opened]})
    assert "User: q\nAssistant: The reply was reasoning alone (40 tokens); raise max-tokens (/set), or" in said
    assert said.count("reasoning alone") == 1
    off = [*thought[:-1], TurnFinished("length", "", stats, "hm", can_be_quiet=False)]
    assert "raise max-tokens (/set).\n" in talk("q", played={Send: off})[0]


def test_calls_and_results_are_lines() -> None:
    stats, calls = TurnStats(generated_tokens=9, finish_reason="tool_calls"), (ToolCall("f", '{"a":\n1}\x1b'),)
    ended = TurnFinished("tool_calls", "", stats, tool_calls=calls)
    said, _, _ = talk("q", played={Send: [TurnStarted("q"), ended]})
    assert 'Assistant: \n→ f({"a": 1}' in said
    messages = (Message("user", "q"), Message("assistant", "", stats, tool_calls=calls), Message("tool", "2"))
    said, _, _ = talk(start=(OpenChat("c1"),), played={OpenChat: [ChatOpened("c1", "t", messages)]})
    assert 'User: q\nAssistant: → f({"a": 1}' in said
    assert "\nTool: 2\n" in said
    assert "\x1b" not in said


def test_compacting_asks_first_and_does_not_read_the_chat_out_again() -> None:
    said, dispatcher, code = talk("/resume rust", "/compact", "1", "/compact last")
    assert code == 0
    assert "1. A summary of 18 messages, and the last 4 messages" in said
    assert [c.summarise for c in dispatcher.commands if isinstance(c, Compact)] == [True, False]
    after = said[said.index("Number (Enter for none): 1") :]
    assert "compacted: a pinned summary and the last" in after
    assert "User: " not in after.replace("User: /compact last", "").removesuffix("User: \n")


@pytest.mark.parametrize(
    ("answers", "compacts", "sent"),
    [
        (["1"], 1, []),
        ([""], 0, []),
        (["/quit", "never"], 0, []),
        (["/stats", "Why?"], 0, ["Why?"]),
        (["Why?"], 0, ["Why?"]),
        (["two\\", "lines"], 0, ["two\nlines"]),
        (["0", "7", "99999999999999999999999", "01"], 1, []),
        (["½", "Why?"], 0, ["½", "Why?"]),
        (["1 or 2"], 0, ["1 or 2"]),
    ],
)
def test_what_is_no_answer_to_a_question_is_taken_next(answers: list[str], compacts: int, sent: list[str]) -> None:
    """A command that was typed at a question, or piped in, was swallowed."""
    said, dispatcher, code = talk("/resume rust", "/compact", *answers)
    assert code == 0
    assert len([c for c in dispatcher.commands if isinstance(c, Compact)]) == compacts
    assert [c.text for c in dispatcher.commands if isinstance(c, Send)] == sent
    assert said.count("Choose a number from 1 to") == (3 if compacts and len(answers) > 1 else 0)
    if "/quit" in answers:
        assert "never" not in said


def test_a_question_from_the_command_line_and_one_of_two_lines() -> None:
    said, dispatcher, _ = talk("one\\", "two", ask="first")
    assert [c.text for c in dispatcher.commands if isinstance(c, Send)] == ["first", "one\ntwo"]
    assert said.index("User: first") < said.index("Assistant:")


def test_a_list_is_numbered_and_a_number_chooses() -> None:
    said, dispatcher, _ = talk("/resume", "2")
    assert "Chats\n1. Rust lifetimes" in said
    assert OpenChat("c2") in dispatcher.commands
    assert "User: hello\nAssistant: The borrow" in said
    _, dispatcher, _ = talk("/resume", "", "/resume", "99")
    assert not any(isinstance(c, OpenChat) for c in dispatcher.commands)


def test_going_back_says_what_was_taken_back() -> None:
    said, dispatcher, _ = talk("hello", "/undo", "/edit", "better")
    assert Rewind() in dispatcher.commands
    assert "To edit: hello" in said
    assert not any(isinstance(c, Edit) for c in dispatcher.commands[:-1]) or dispatcher.commands[-1] is not None


def test_errors_settings_and_downloads_are_lines(home: Path) -> None:
    said, _, _ = talk(
        "/set temp hot",
        "/set temp 0.5",
        "/set top-k 40 --default",
        "/nonsense",
        "/theme",
        "/pull org/model",
        "/quit",
        "unheard",
    )
    assert "Error: /set temp is 'hot'; it must be a number from 0 to 100" in said
    assert "temperature is 0.5 for this chat, from the next reply on." in said
    assert (home / "config" / "config.toml").read_text() == "top_k = 40\n"
    assert "No command /nonsense." in said
    assert "/theme needs the window." in said
    assert "org/model is downloaded" in said
    assert "unheard" not in said


class Threads(io.StringIO):
    """Who wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[int] = set()

    def write(self, text: str) -> int:
        self.writers.add(threading.get_ident())
        return super().write(text)


def test_what_a_download_says_on_its_thread_is_written_by_ours() -> None:
    out, lines = Threads(), iter(["/pull org/model"])

    class Downloading(FakeDispatcher):
        def handle(self, command: Command) -> None:
            if not isinstance(command, Pull):
                super().handle(command)
                return
            states = (PullState.ASKING, PullState.DOWNLOADING, PullState.DONE)
            events = [PullProgress(command.name, state, 1, 2) for state in states]
            thread = threading.Thread(target=lambda: [self._tell(event) for event in events])
            thread.start()
            thread.join()

    def read(_: str) -> str:
        if line := next(lines, None):
            return line
        raise EOFError

    assert PlainChat(Folders.from_env(), Settings(), Downloading, out, read).run([NewChat()]) == 0
    assert "org/model is downloaded" in out.getvalue()
    assert out.writers == {threading.get_ident()}


def test_without_a_model_nothing_waits_for_ever() -> None:
    said, dispatcher, _ = talk("hello", start=(NewChat(),))
    assert "No model is loaded; /model lists them." in said
    assert not any(isinstance(c, Send) for c in dispatcher.commands)


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    said, _, _ = talk("/rename \x1b]0;gotcha\x07")
    assert "\x1b" not in said.replace("/rename \x1b]0;gotcha\x07", "")


def test_nothing_hostile_reaches_the_terminal_whatever_the_engine_says() -> None:
    said, _, code = talk(
        "hello", "/resume", "1", "/tree", "", "/rewind", "", "/model", "", "/model x", "/context", "/stats", "/memory",
        "/set", "", "/set model", "/set nothing\x1b[31337m", "/system", "/edit", "/pull x", "/export md x", "/rename x",
        hostile=True,
    )  # fmt: skip
    assert code == 0
    assert all(name in said for name in NAMES)
    assert clean(said) == said
    assert "␛" in said


class _Each(list[EngineEvent]):
    """Other events each time."""

    def __init__(self, answers: Iterator[Sequence[EngineEvent]]) -> None:
        super().__init__([ChatReleased("")])
        self._answers = answers

    def __iter__(self) -> Iterator[EngineEvent]:
        return iter(next(self._answers))


def test_a_chat_that_was_open_elsewhere_is_looked_at_again_before_a_message_is_refused() -> None:
    locked = ChatOpened("c1", "Numbers", read_only="Session c1 is open in process 7.")
    said, dispatcher, _ = talk("hello", start=(LoadModel("m"), OpenChat("c1")), played={OpenChat: [locked]})
    assert "open in another mlxkv" in said
    assert not any(isinstance(command, Send) for command in dispatcher.commands)

    answers = iter(((locked,), (ChatOpened("c1", "Numbers"),)))
    released = {CheckChat: [ChatReleased("c1")], OpenChat: _Each(answers)}
    said, dispatcher, _ = talk("hello", start=(LoadModel("m"), OpenChat("c1")), played=released)
    assert "The other mlxkv has closed this chat" in said
    assert isinstance(dispatcher.commands[-1], Send)


def test_reasoning_that_was_taken_for_text_is_called_so() -> None:
    events = [TurnStarted("q"), TextDelta("so be it", 3), TextDelta("so be it", 4, thinking=True, restarts=True),
              TextDelta("yes", 5), TurnFinished("stop", "yes", TurnStats(), "so be it")]  # fmt: skip
    assert (
        "Assistant: so be it\nAssistant: (all of the above was thinking) yes\n" in talk("q", played={Send: events})[0]
    )


TOO_LONG = MessageTooLong("much", Overflow(5_102, 1_028, 3_976, 0, 8_192, 96_000_000))


@pytest.mark.parametrize(
    ("answer", "sent"),
    [("", [False]), ("9", [False]), ("x", [False, False]), ("1", [False, False]), ("2", [False, True])],
)
def test_a_message_that_is_too_long_is_asked_about(answer: str, sent: list[bool]) -> None:
    said, dispatcher, _ = talk("much", answer, played={Send: [TurnStarted("much"), TOO_LONG]})
    assert "Not sent: 5,102 tok, but the window holds 1,028" in said
    sends = [c.anyway for c in dispatcher.commands if isinstance(c, Send)]
    assert sends == sent
    assert ("To edit: much" in said) is (answer in ("", "x"))
    if answer == "1":
        assert [c.values for c in dispatcher.commands if isinstance(c, ChangeSettings)] == [{"window": 8_192}]


@pytest.mark.slow
def test_a_message_stopped_before_its_reply_can_be_typed_again() -> None:
    stats = TurnStats(prompt_tokens=512, finish_reason="stopped")
    end = TurnFinished("stopped", "", stats, unanswered=True, returned="q")
    said, _, _ = talk("q", played={Send: [TurnStarted("q"), end]})
    assert "Stopped before the reply began; the chat is unchanged.\nTo edit: q\n" in said
    assert "tok/s" not in said
    assert "Assistant:" not in said
