"""What slash commands do to the state, without a window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlxkv.events import Message, Sibling, TextDelta, TurnFinished
from mlxkv.protocol import commands as cmd
from mlxkv.protocol.events import (
    CacheCollected,
    CacheList,
    ChatDeleted,
    ChatOpened,
    ChatRenamed,
    Failed,
    FailureKind,
    ModelCard,
    ModelList,
    ModelMissing,
    ModelReady,
    PullProgress,
    PullState,
    TurnStarted,
    Versions,
)
from mlxkv.protocol.status import (
    CompactPlan,
    ContextPart,
    ContextUsage,
    ModelTooLarge,
    SessionStatus,
    StateUsage,
    Unattended,
)
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.slash import COMMANDS
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.commands.ui_request import UiRequest
from mlxkv.tui.state.lists.choices import PutPrompt, RunSlash
from mlxkv.tui.state.lists.setting_lists import settings_list
from mlxkv.tui.state.reports.report import Line
from mlxkv.tui.state.reports.reports import context_line, context_rows
from mlxkv.tui.state.transcript.blocks import Kind
from tests.tui.fake_engine import CHATS, STATS

CHAT = (
    Message("user", "one"),
    Message("assistant", "1", STATS),
    Message("user", "two"),
    Message("assistant", "2", STATS),
)


@pytest.fixture
def state() -> ChatState:
    """A chat of two questions."""
    state = ChatState(lambda: 100.0)
    state.submit(cmd.LoadModel("m"))
    state.submit(cmd.OpenChat("c1"))
    state.apply(ModelReady("m", 1, 0.1, True))
    state.apply(ChatOpened("c1", "Numbers", CHAT))
    state.outbox.clear()
    state.transcript.take_change()
    return state


def sent(state: ChatState) -> list[cmd.Command]:
    out = list(state.outbox)
    state.outbox.clear()
    return out


def lines(state: ChatState) -> list[str]:
    return [block.text for block in state.transcript.take_change().settled]


def sentences(state: ChatState) -> list[str]:
    """Those of the report, without its rows of messages."""
    return [row.text for row in state.report.rows if isinstance(row, Line)] if state.report else []


def test_every_command_of_the_table_does_something(state: ChatState) -> None:
    for command in COMMANDS:
        fresh = ChatState(lambda: 100.0)
        wish = run(fresh, command.name, "")
        shown = fresh.listing or fresh.report or fresh.put is not None or fresh.transcript.take_change().settled
        assert wish or fresh.outbox or shown, command.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("new", cmd.NewChat()), ("fork", cmd.Fork()), ("fork 2", cmd.Fork(2)), ("rewind 1", cmd.Rewind(0)),
        ("undo", cmd.Rewind()), ("retry", cmd.Retry()), ("continue", cmd.Continue()), ("tree", cmd.ShowTree()),
        ("rename A b", cmd.RenameChat("A b")), ("export", cmd.ExportChat()), ("export json", cmd.ExportChat("json")),
        ("export md a b.md", cmd.ExportChat("md", "a b.md")), ("export x.json", cmd.ExportChat("json", "x.json")),
        ("export x.mlxkv", cmd.ExportChat("mlxkv", "x.mlxkv")), ("export mlxkv x y", cmd.ExportChat("mlxkv", "x y")),
        ("export a/X.JSON", cmd.ExportChat("json", "a/X.JSON")), ("export x.md", cmd.ExportChat("md", "x.md")),
        ("export md x.json", cmd.ExportChat("md", "x.json")), ("export mlxkv", cmd.ExportChat("mlxkv")),
        ("model", cmd.ListModels()), ("model org/x", cmd.LoadModel("org/x")), ("pull org/x", cmd.Pull("org/x")),
        ("system Be terse.", cmd.ChangeSettings({"system": "Be terse."})),
        ("system off", cmd.ChangeSettings({"system": None})), ("preset", cmd.ListPresets()),
        ("preset terse", cmd.TakePreset("terse")), ("preset save a", cmd.SavePreset("a")),
        ("preset rename a b", cmd.RenamePreset("a", "b")), ("set model org/x", cmd.LoadModel("org/x")),
        ("context", cmd.ShowContext()), ("stats", cmd.ShowStats()), ("resume", cmd.ListChats()),
    ],
)  # fmt: skip
def test_commands_for_the_engine(state: ChatState, line: str, command: cmd.Command) -> None:
    name, _, argument = line.partition(" ")
    assert run(state, name, argument) is None
    assert sent(state) == [command]


def test_a_lone_word_is_a_format_or_nothing(state: ChatState) -> None:
    """`/export pdf` once wrote Markdown into a file called pdf."""
    run(state, "export", "pdf")
    run(state, "export", "chat.pdf")
    run(state, "export", "my-chat")
    assert sent(state) == []
    pdf, suffix, _ = lines(state)
    assert pdf == "pdf is not an export format; it must be md, json or mlxkv, as in /export md chat.md."
    assert suffix == "chat.pdf ends in .pdf, which names no format; end it in .md, .markdown, .json or .mlxkv."
    for path in ("pdf.md", "./pdf", "~/pdf", "two words"):
        run(state, "export", path)
    assert sent(state) == [cmd.ExportChat("md", path) for path in ("pdf.md", "./pdf", "~/pdf", "two words")]


@pytest.mark.parametrize("line", ["fork 3", "rewind 0", "edit x"])
def test_a_question_that_is_not_there(state: ChatState, line: str) -> None:
    name, _, argument = line.partition(" ")
    run(state, name, argument)
    assert sent(state) == []
    assert "they are 1 to 2" in lines(state)[0]


def test_what_there_is_only_one_of_is_said_so(state: ChatState) -> None:
    state.transcript.messages = state.transcript.messages[:2]
    run(state, "fork", "²")  # a digit to str.isdigit, no number to int
    run(state, "rewind", "2")
    assert lines(state) == ["There is no question ²: there is only 1.", "There is no question 2: there is only 1."]


def test_numbers_on_the_screen_are_those_that_commands_take(state: ChatState) -> None:
    """`/context` counted messages from 0, `/fork` questions from 1."""
    parts = [ContextPart("system", "s", 1, 1), *(ContextPart(m.role, m.text, 1, 1) for m in CHAT)]
    shown = [context_line(line, 40).split()[:2] for line in context_rows(ContextUsage(tuple(parts), 64, 1))]
    assert shown == [["system", "s"], ["1", "you"], ["1", "reply"], ["2", "you"], ["2", "reply"]]
    run(state, "edit", "2")
    assert state.activity(80)[0].startswith("editing question 2:")


def test_switches_are_on_and_off_in_every_sentence(state: ChatState) -> None:
    for argument in ("think", "think on", "think", "think maybe", "mouse"):
        run(state, "set", argument)
    none, _, now, wrong, mouse = lines(state)
    assert none.startswith("think is none (the default of the model's template). ")
    assert now.startswith("think is on (this chat). ")
    assert now.endswith(' It must be on or off, or "none".')
    assert wrong == "/set think is 'maybe'; it must be on or off, or \"none\"."
    assert mouse.startswith("mouse is on. ")
    rows = {row.text.split()[0]: row.text.split()[1] for row in settings_list(state).rows}
    assert (rows["think"], rows["mouse"], rows["plain"]) == ("on", "on", "off")


def test_editing_replaces_the_next_prompt(state: ChatState) -> None:
    run(state, "edit", "1")
    assert (state.put, state.editing) == ("one", 0)
    state.prompt("uno")
    assert sent(state) == [cmd.Edit(0, "uno", 100.0)]
    state.prompt("tres")
    state.apply(ChatOpened("c2", "Numbers (2)"))
    assert sent(state) == []  # the edit is not answered yet
    state.apply(TurnStarted("uno"))
    assert state.transcript.messages == [Message("user", "uno")]
    state.apply(TurnFinished("stop", "1", STATS))
    assert [type(c) for c in sent(state)] == [cmd.Send]


def test_what_is_opened_belongs_to_the_command_in_front(state: ChatState) -> None:
    """A retry shows its chat anew; that once counted as the answer to the chat which was waiting behind it."""
    state.submit(cmd.Retry())
    state.submit(cmd.OpenChat("c9"))
    state.apply(ChatOpened("c2", "Numbers (2)", CHAT[:2]))
    state.apply(TurnStarted("two"))
    state.apply(TurnFinished("stop", "2", STATS))
    sent(state)
    state.prompt("three")
    assert sent(state) == []
    state.apply(ChatOpened("c9", "Other"))
    assert [type(c) for c in sent(state)] == [cmd.Send]


def test_rewinding_offers_ones_own_messages_and_puts_the_text_back(state: ChatState) -> None:
    run(state, "rewind", "")
    assert state.listing is not None
    assert [row.choice for row in state.listing.rows] == [cmd.Rewind(0), cmd.Rewind(2)]
    assert state.listing.at == 1
    state.submit(cmd.Rewind(2))
    state.apply(ChatOpened("c2", "Numbers (2)", CHAT[:2], prompt="two"))
    assert state.put == "two"


def test_a_fork_says_that_it_is_one(state: ChatState) -> None:
    run(state, "fork", "")
    state.apply(ChatOpened("c2", "Numbers (2)", CHAT))
    left = "The original is unchanged, and /tree leads back to it."
    assert lines(state)[-1] == f"A copy of “Numbers” was made and is open now. {left}"
    run(state, "fork", "2")
    state.apply(ChatOpened("c3", "Numbers (3)", CHAT[:2], prompt="two"))
    assert lines(state)[-1] == f"A copy of the beginning of “Numbers (2)” was made and is open now. {left}"
    run(state, "fork", "")
    state.apply(ChatOpened(None, "", CHAT[:2]))
    assert lines(state)[-1].endswith("The original was not saved, so it is gone.")


def versions_of(*current: bool) -> tuple[Sibling, ...]:
    return tuple(Sibling(f"c{i}", "text", float(i), here) for i, here in enumerate(current))


def test_versions_are_counted_under_the_reply_and_can_be_stepped_through(state: ChatState) -> None:
    state.apply(
        Versions((versions_of(True), versions_of(True, False), versions_of(False, False, True), versions_of(True)))
    )
    state.submit(cmd.OpenChat("c0"))
    state.apply(ChatOpened("c0", "Numbers", CHAT))
    sent(state)
    figures = [block for block in state.transcript.take_change().settled if block.kind is Kind.STATS]
    assert [(block.version, block.asked) for block in figures] == [((1, 2), (1, 1)), ((1, 1), (3, 3))]
    assert state.open_version(1, 1)
    assert state.open_version(3, -1)
    assert sent(state) == [cmd.OpenChat("c1"), cmd.OpenChat("c1")]
    assert not state.open_version(1, -1)
    assert not state.open_version(0, 1)
    assert not state.open_version(2, 1)  # the reply before a question has other versions, which are not its own


def test_past_the_last_reply_to_a_question_the_next_question_follows(state: ChatState) -> None:
    state.apply(Versions((versions_of(True, False), versions_of(False, True))))
    state.apply(ChatOpened("c1", "Numbers", CHAT[:2]))
    sent(state)
    assert state.open_version(1, 1)
    assert state.open_version(1, -1)
    assert sent(state) == [cmd.OpenChat("c1"), cmd.OpenChat("c0")]


def test_a_reply_that_goes_on_has_no_new_question(state: ChatState) -> None:
    state.submit(cmd.Continue())
    state.apply(ChatOpened("c1", "Numbers", CHAT[:3]))
    state.apply(TurnStarted(""))
    state.apply(TextDelta("2", 0))
    state.apply(TextDelta(", 3", 2))
    state.transcript.take_change()
    state.apply(TurnFinished("stop", "2, 3", STATS))
    assert [m.text for m in state.transcript.messages] == ["one", "1", "two", "2, 3"]
    assert [(b.kind, b.text) for b in state.transcript.take_change().settled][:1] == [(Kind.MARKDOWN, "2, 3")]


def test_set_checks_changes_and_saves(state: ChatState) -> None:
    assert run(state, "set", "temp 0.3") is None
    assert sent(state) == [cmd.ChangeSettings({"temperature": 0.3})]
    assert run(state, "set", "temp 0.5 --default") == UiRequest("save", "temperature")
    assert sent(state) == [cmd.ChangeSettings({"temperature": 0.5}, for_all=True)]
    assert (state.sources.config["temperature"], state.settings.temperature) == (0.5, 0.5)
    run(state, "set", "temp 0.3")
    assert sent(state)
    assert run(state, "set", "ctx 0") is None
    assert "must be a whole number from 1" in lines(state)[-1]
    run(state, "set", "nothing 1")
    assert "There is no setting nothing" in lines(state)[-1]
    run(state, "set", "temp")
    assert lines(state)[-1].startswith("temperature is 0.3 (this chat; all chats: 0.5). ")
    assert run(state, "set", "theme nord") == UiRequest("theme", "nord")


def test_a_chat_whose_settings_bound_nothing_keeps_the_window_it_began_with(state: ChatState) -> None:
    state.status = replace(state.status, cache_window=260)
    rows = {row.more_words.split()[0]: row for row in settings_list(state).rows}
    assert rows["window"].text.endswith("none (this chat began with 260 tok)")
    run(state, "set", "window none")
    assert lines(state)[-1] == "window is none (what this chat began with) for this chat, from now on."
    state.apply(ChatOpened(None, ""))
    assert "none (what fits, at most 32,768)" in next(r.text for r in settings_list(state).rows if "ctx" in r.text)


def test_the_list_of_settings_puts_the_command_into_the_prompt(state: ChatState) -> None:
    rows = {row.more_words.split()[0]: row for row in settings_list(state).rows}
    assert rows["temperature"].choice == PutPrompt("/set temp ")
    assert rows["mouse"].choice == PutPrompt("/set mouse off")
    assert "none (the model's own)" in rows["top_p"].text
    assert (rows["mouse"].other, rows["temperature"].other) == (None, RunSlash("set", "temp none --default"))
    columns = {len(row.text) - len(row.text.split(maxsplit=1)[1]) for row in rows.values()}
    assert columns == {len("repetition-context-size") + 1}, "long names keep their column"


def test_a_system_prompt_from_a_file(state: ChatState, tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "s").write_text("Be kind.", encoding=encoding)
        run(state, "system", f"@{tmp_path}/s")
        assert sent(state) == [cmd.ChangeSettings({"system": "Be kind."})]
    run(state, "system", f"@{tmp_path}/none")
    assert sent(state) == []
    assert "cannot be read" in lines(state)[-1]


def test_deleting_asks_first(state: ChatState) -> None:
    run(state, "delete", "")
    assert state.listing is not None
    assert [row.choice for row in state.listing.rows] == [None, cmd.DeleteChat("c1")]
    state.submit(cmd.DeleteChat("c1"))
    state.apply(ChatDeleted("c1", "Numbers"))
    state.apply(ChatOpened(None, ""))
    assert lines(state) == ["Deleted “Numbers”."]


def test_renaming_another_chat_from_the_sidebar(state: ChatState) -> None:
    state.renaming = "c9"
    run(state, "rename", "New")
    assert sent(state) == [cmd.RenameChat("New", "c9")]
    state.apply(ChatRenamed("c9", "New"))
    assert state.transcript.title == "Numbers"
    run(state, "rename", "Mine")
    assert sent(state) == [cmd.RenameChat("Mine", None)]
    state.apply(ChatRenamed("c1", "Mine"))
    assert state.transcript.title == "Mine"


# -- states ----------------------------------------------------------------------------------------------------------


def test_a_chat_open_elsewhere_can_only_be_forked(state: ChatState) -> None:
    state.submit(cmd.OpenChat("c1"))
    state.apply(ChatOpened("c1", "Numbers", CHAT, read_only="Session c1 is open in process 7."))
    said = "This chat is open in another mlxkv. Read-only until it is closed there; /fork continues in a copy."
    assert lines(state)[-1] == said
    assert "/fork" in state.refusal()
    sent(state)
    state.prompt("three")
    assert sent(state) == []


@pytest.mark.parametrize(
    ("kind", "advice"),
    [(FailureKind.MEMORY, "/set kv-bits 8/4"), (FailureKind.DISK, "free some space"), (FailureKind.OTHER, "")],
)
def test_a_failure_says_what_to_do(state: ChatState, kind: FailureKind, advice: str) -> None:
    state.submit(cmd.Send("x", 0.0))
    state.apply(Failed("It failed.", kind))
    assert lines(state)[-1].startswith("It failed.")
    state.apply(Failed("It failed.", kind))
    assert advice in lines(state)[-1]


def rotating(state: ChatState) -> int:
    return sum("the oldest tokens make room" in text for text in lines(state))


def test_that_the_window_rotates_is_said_once_per_chat(state: ChatState) -> None:
    for evicted, told in ((0, 0), (512, 1), (512, 0), (768, 0)):
        state.submit(cmd.Send("x", 0.0))
        state.apply(TurnFinished("stop", "y", replace(STATS, evicted_tokens=evicted)))
        assert rotating(state) == told


@pytest.mark.parametrize("evicted", [96, 0])
def test_after_a_resume_it_is_not_said_again(state: ChatState, evicted: int) -> None:
    """`evicted` 0: nothing was restored, and the status says what the next prefill will evict."""
    state.apply(ChatOpened("c", "t", (Message("user", "x"), Message("assistant", "y", STATS)), evicted_tokens=evicted))
    state.apply(SessionStatus(unattended=Unattended(96, 1, 1)))
    state.submit(cmd.Send("x", 0.0))
    state.apply(TurnFinished("stop", "y", replace(STATS, evicted_tokens=144)))
    assert rotating(state) == 0


def test_a_download_goes_on_beside_and_is_loaded_when_it_was_wanted(state: ChatState) -> None:
    state.submit(cmd.LoadModel("org/m"))
    state.apply(PullProgress("org/m", PullState.ASKING, then_load=True))
    state.apply(PullProgress("org/m", PullState.DOWNLOADING, 2_100_000_000, 4_600_000_000, 25e6, then_load=True))
    assert state.activity(100) == (state.activity(100)[0][:1] + " downloading m 2.1/4.6 GB · 25 MB/s · ~1m40s left",
                                   "esc to pause")  # fmt: skip
    sent(state)
    state.prompt("meanwhile")
    assert [type(c) for c in sent(state)] == [cmd.Send]  # the chat stays usable
    state.submit(cmd.PausePull())
    assert sent(state) == [cmd.PausePull()]
    state.apply(PullProgress("org/m", PullState.PAUSED))
    assert not state.is_pulling
    state.apply(TurnFinished("stop", "y", STATS))
    sent(state)
    state.apply(PullProgress("org/m", PullState.DONE, then_load=True))
    assert sent(state) == [cmd.LoadModel("org/m")]


def test_a_model_that_is_gone_is_not_downloaded_unasked(state: ChatState) -> None:
    state.submit(cmd.LoadModel("org/m", ask=True))
    state.apply(ModelMissing("org/m", 4_600_000_000))
    assert state.listing is not None
    assert state.listing.rows[0].text == "Download 4.6 GB again"
    assert state.listing.rows[0].choice == cmd.LoadModel("org/m")


def test_compacting_says_what_it_costs_before_it_does_anything(state: ChatState) -> None:
    run(state, "compact", "")
    assert sent(state) == [cmd.PlanCompact()]
    state.apply(CompactPlan("Qwen", 32_768, 4, 1_900, 18, 29_300, 500, 71, 1024))
    assert state.listing is not None
    assert "500 evicted tok are in no summary" in state.listing.title
    rows = [(row.choice, row.facts) for row in state.listing.rows]
    assert rows == [
        (cmd.Compact(True), ("generates ≤ 1,024 tok", "prefills ≤ 2,995")),
        (cmd.Compact(False), ("prefills 1,900 tok",)),
        (None, ()),
    ]  # fmt: skip
    state.submit(cmd.PlanCompact())
    state.apply(CompactPlan("tutor", 32_768, 4, 1_900, 18, 29_300))
    assert [row.choice for row in state.listing.rows] == [cmd.Compact(False), None]
    assert state.listing.rows[0].text == "Only the last 4 messages"
    assert "tutor cannot summarise" in state.listing.title


def test_a_summary_that_is_stopped_leaves_nothing_waiting(state: ChatState) -> None:
    run(state, "compact", "summary")
    state.apply(ChatOpened("c1", "Numbers"))
    state.apply(TurnStarted("Sum up"))
    assert state.is_compacting
    assert state.stop()
    state.apply(TurnFinished("stopped", "1", STATS))
    state.apply(ChatOpened("c1", "Numbers", CHAT))
    state.apply(Failed("Compacting was stopped: the chat is as it was.", FailureKind.STOPPED))
    assert lines(state)[-1] == "Compacting was stopped: the chat is as it was."
    assert state.transcript.messages == list(CHAT)
    sent(state)
    state.prompt("three")
    assert [type(c) for c in sent(state)] == [cmd.Send]


def test_that_the_window_will_be_full_is_said_once_before_it_is(state: ChatState) -> None:
    for tokens, told in ((800, False), (930, True), (960, False), (700, False), (950, True)):
        state.submit(cmd.Send("x", 0.0))
        state.apply(TurnFinished("stop", "y", replace(STATS, cache_tokens=tokens, cache_window=1000)))
        assert any("will be evicted soon · /compact" in text for text in lines(state)) is told, tokens


TOO_LARGE = ModelTooLarge("org/Large-4bit", 19_200_000_000, 17_500_000_000, 24_000_000_000, "8/4")


def test_a_download_that_would_not_fit_is_asked_about(state: ChatState) -> None:
    state.submit(cmd.LoadModel("org/Large-4bit"))
    state.apply(PullProgress("org/Large-4bit", PullState.ASKING, then_load=True))
    state.apply(PullProgress("org/Large-4bit", PullState.TOO_LARGE, then_load=True, too_large=TOO_LARGE))
    assert not state.is_pulling
    assert state.listing is not None
    assert [row.choice for row in state.listing.rows] == [
        cmd.ListModels(fitting=True),
        cmd.LoadModel(TOO_LARGE.name, kv_bits="8/4"),
        cmd.LoadModel(TOO_LARGE.name, anyway=True),
    ]  # fmt: skip


def test_a_model_that_does_not_fit_is_asked_about(state: ChatState) -> None:
    state.submit(cmd.LoadModel("org/Large-4bit"))
    state.apply(TOO_LARGE)
    assert state.listing is not None
    assert state.listing.title == "Large-4bit needs ~19.2 GB, 17.5 GB usable (of 24)"
    assert [row.choice for row in state.listing.rows] == [
        cmd.ListModels(fitting=True),
        cmd.LoadModel("org/Large-4bit", kv_bits="8/4"),
        cmd.LoadModel("org/Large-4bit", anyway=True),
    ]
    sent(state)
    state.submit(cmd.LoadModel("org/Large-4bit", kv_bits="8/4"))
    assert state.settings.kv_bits == "8/4"  # a later /set goes on from there
    state.apply(Failed("It could not be read."))
    assert state.settings.kv_bits is None
    state.submit(cmd.ListModels(fitting=True))
    state.apply(ModelList((ModelCard("tutor", 7, fits=True, is_local=True),), only_fitting=True))
    assert state.listing.title == "Models that fit here"


def test_a_chat_that_was_to_be_resumed_opens_once_a_model_was_chosen() -> None:
    state = ChatState(lambda: 100.0)
    state.begin([cmd.LoadModel("org/Large-4bit"), cmd.OpenChat("c1")])
    state.apply(TOO_LARGE)
    state.apply(Failed("No model is loaded."))
    assert "opens once a model is loaded" in lines(state)[-1]
    sent(state)
    state.submit(cmd.LoadModel("tutor"))
    state.apply(ModelReady("tutor", 1, 0.1, True))
    assert sent(state) == [cmd.LoadModel("tutor"), cmd.OpenChat("c1")]


def test_the_cache_on_disk(state: ChatState) -> None:
    for line, command in (
        ("ls", cmd.ListCache()),
        ("", cmd.ListCache()),
        ("gc", cmd.CollectCache()),
        ("pin", cmd.PinChat()),
    ):
        run(state, "cache", line)
        assert sent(state) == [command]
    state.apply(
        CacheList((*CHATS, replace(CHATS[0], id="c3", kv_bytes=10**9, pinned=True)), (("book", 52_000_000),), 10, 0)
    )
    assert state.listing is not None
    rows = [(row.text, row.choice, row.facts[2:]) for row in state.listing.rows]
    assert rows == [
        ("● Rust lifetimes", cmd.OpenChat("c3"), ("1.0 GB, pinned",)),
        ("● Rust lifetimes", cmd.OpenChat("c1"), ("916 MB",)),
        ("Prompt caches, for `mlxkv -p --cache NAME`", None, ()),
        ("  book · 52 MB", None, ()),
    ]
    assert state.listing.title == "KV on disk in all: 10 B"
    state.apply(CacheList(CHATS, (), 5_900_000_000, 20_000_000_000, 1_300_000_000))
    assert state.listing.title == "KV on disk in all: 5.9 GB of 20 GB, 1.3 GB of it recurrent states"
    state.apply(CacheCollected(1_200_000, 5_900_000_000))
    assert lines(state)[-1] == "Freed 1.2 MB; KV on disk in all: 5.9 GB."
    state.apply(CacheCollected(0, 5_900_000_000))
    assert lines(state)[-1] == "Nothing to remove; KV on disk in all: 5.9 GB."
    run(state, "cache", "all")
    assert "ls, gc or pin" in lines(state)[-1]


def test_an_empty_window_says_so(state: ChatState) -> None:
    state.submit(cmd.ShowContext())
    state.apply(ContextUsage((), 0, 0))
    assert sentences(state) == ["The window is empty: this chat has no messages yet."]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, []),
        (StateUsage(51_500_000, 0, 309_000_000), ["Recurrent state 52 MB · checkpoints 0 B of 309 MB"]),
        (
            StateUsage(51_500_000, 154_500_000, 309_000_000, (580, 1_204, 1_560), 12_300_000, 103_000_000),
            [
                "Recurrent state 52 MB · checkpoints 154 MB of 309 MB (at 580, 1,204, 1,560 tok)",
                "On disk: rows 12 MB · states 103 MB",
            ],
        ),
        (
            StateUsage(6_000, 48_000, 48_000, tuple(range(1, 9)), 0, 0),
            ["Recurrent state 6.0 kB · checkpoints 48 kB of 48 kB (at 1 … 4, 5, 6, 7, 8 tok)", "On disk: no state yet"],
        ),
    ],
)
def test_context_counts_states_apart_from_rows(state: ChatState, usage: StateUsage | None, expected: list[str]) -> None:
    state.submit(cmd.ShowContext())
    state.apply(ContextUsage((ContextPart("user", "hi", 9, 9),), 64, 1, recurrent=usage))
    assert sentences(state)[1:] == expected


def test_context_ends_with_the_reasoning_that_the_template_removed(state: ChatState) -> None:
    state.submit(cmd.ShowContext())
    state.apply(ContextUsage((ContextPart("user", "hi", 9, 9),), 64, 1, removed=1_200, again=34))
    assert sentences(state)[-1] == (
        "The chat template left 1,200 tok of reasoning out of the reply before the last question; 34 tok after it were "
        "prefilled again."
    )


def test_an_adapter_is_loaded_with_the_model_and_removed(state: ChatState) -> None:
    for argument, adapter in (("none", None), ("", None), ("poems", "poems"), ("/a/poems", "/a/poems")):
        run(state, "adapter", argument)
        assert sent(state) == ([cmd.LoadModel("m", adapter=adapter)] if adapter else [])
    assert lines(state)[-1].startswith("The model has no adapter; /adapter and a folder")
    state.apply(ChatOpened("c1", "Numbers", CHAT))
    state.apply(ModelReady("m", 1, 0.1, True, "/a/poems"))
    assert lines(state)[-1] == (
        "m is loaded with the adapter /a/poems; your next message prefills this chat again."
    )  # fmt: skip
    run(state, "adapter", "")
    assert lines(state)[-1] == "The adapter is /a/poems; /adapter none removes it."
    run(state, "adapter", "none")
    assert sent(state) == [cmd.LoadModel("m")]
    state.apply(ModelReady("m", 1, 0.1, True))
    assert lines(state)[-1].startswith("m is loaded without an adapter;")
    for refused in (TOO_LARGE, ModelMissing(TOO_LARGE.name)):  # what is chosen then keeps the adapter
        state.submit(cmd.LoadModel(TOO_LARGE.name, adapter="org/poems"))
        state.apply(refused)
        assert state.listing is not None
        loads = [row.choice for row in state.listing.rows if isinstance(row.choice, cmd.LoadModel)]
        assert loads
        assert {load.adapter for load in loads} == {"org/poems"}
