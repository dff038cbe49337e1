"""Sidebar, lists, panel and going back, in the window with a fake engine. Every wait is for a condition."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.text import Text
from textual.events import Key
from textual.geometry import Size
from textual.widget import Widget

from mlxkv.config import Folders, Settings
from mlxkv.events import TurnFinished
from mlxkv.protocol.branch_names import Departure
from mlxkv.protocol.commands import DeleteChat, Edit, ExportChat, ListChats, LoadModel, OpenChat, RenameChat, Rewind
from mlxkv.protocol.events import ChatOpened
from mlxkv.protocol.status import ChatSummary
from mlxkv.tui.state.lists.chat_list import group_text, listed_as, sidebar_entries
from mlxkv.tui.state.lists.choice_lists import chats_list
from mlxkv.tui.state.lists.choices import Listing, Row
from mlxkv.tui.widgets.picker import Picker
from mlxkv.tui.widgets.sidebar import KEYS, SEARCH_KEYS, Sidebar
from tests.tui.fake_engine import CHATS, STATS, FakeEngine
from tests.tui.window import window

DAY = 86_400.0
NOON = 1_700_049_600.0  # in Europe and America


@pytest.mark.slow
async def test_the_sidebar_lists_opens_renames_exports_and_deletes() -> None:
    async with window(size=(140, 40)) as w:
        await w.pilot.press("ctrl+b")
        await w.until(lambda: "Rust lifetimes" in w.screen() and w.app.query(Sidebar))
        await w.until(lambda: w.app.chat.sidebar and w.app.chat.sidebar.has_focus_within)
        assert "● instant resume ○ prefills" in w.screen()
        await w.pilot.press("x")
        await w.until(lambda: ExportChat(session_id="c1") in w.engine.commands)
        await w.pilot.press("down", "enter")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)
        await w.until(lambda: w.app.focused is w.app.prompt)
        await w.pilot.press("ctrl+b")
        await w.until(lambda: w.app.chat.sidebar and w.app.chat.sidebar.has_focus_within)
        await w.pilot.press("r")
        await w.until(lambda: w.app.prompt.text == "/rename Trip to Porto")
        await w.pilot.press("!", "enter")
        await w.until(lambda: RenameChat("Trip to Porto!", "c2") in w.engine.commands)
        await w.pilot.press("ctrl+b", "d")
        await w.until(lambda: "Delete “Trip to Porto" in w.screen())
        await w.pilot.press("down", "enter")
        await w.until(lambda: DeleteChat("c2") in w.engine.commands)


@pytest.mark.slow
async def test_the_sidebar_says_its_keys_and_passes_other_letters_on() -> None:
    """A question typed while nothing told that the list had the focus once renamed a chat: letters were commands."""
    async with window(size=(140, 40)) as w:
        await w.pilot.press("ctrl+b")
        await w.until(lambda: KEYS in w.bar("activity"))
        await w.pilot.press("slash", *"port", "ctrl+u", *"rust")
        await w.until(lambda: SEARCH_KEYS in w.bar("activity") and "Chats · rust▏" in w.screen())
        await w.pilot.press("escape")
        await w.until(lambda: KEYS in w.bar("activity"))
        await w.pilot.press(*"Count drafts")
        await w.until(lambda: w.app.prompt.text == "Count drafts")
        assert w.app.focused is w.app.prompt
        assert KEYS not in w.bar("activity")


@pytest.mark.slow
async def test_searching_in_the_sidebar_takes_letters_as_letters() -> None:
    async with window(size=(140, 40)) as w:
        await w.pilot.press("ctrl+b")
        await w.until(lambda: "Rust lifetimes" in w.screen())
        await w.until(lambda: w.app.chat.sidebar and w.app.chat.sidebar.has_focus_within)
        for key in ("slash", *"xdr"):  # faster than a key is handled
            w.app.post_message(Key(key, "/" if key == "slash" else key))
        await w.until(lambda: "Chats · xdr" in w.screen())
        assert "No title matches." in w.screen()
        await w.pilot.press("backspace", "backspace", "backspace", *"port")
        await w.until(lambda: "916M" not in w.screen())
        await w.pilot.press("enter")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)
        assert not w.sent(ExportChat)


@pytest.mark.slow
async def test_a_list_over_the_chat_leaves_its_lines_as_they_are() -> None:
    """They were wrapped to no width while hidden, and shown so for a moment when the list had closed."""
    async with window() as w:
        await w.ask("/resume rust")
        await w.until(lambda: "nothing to prefill" in w.said())
        width = w.app.transcript.lines.width
        await w.pilot.press("ctrl+k")
        await w.until(lambda: isinstance(w.app.focused, Picker) and not w.app.transcript.view.size)
        assert w.app.transcript.lines.width == width > 70


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["", "and a"])
async def test_a_word_typed_before_the_list_opens_is_searched_for(draft: str) -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.engine.say([ChatOpened(None, "")])
        w.app.prompt.clock = lambda: 0.0  # all within a moment
        w.app.prompt.put(draft or "/resume")
        for key in ("ctrl+k" if draft else "enter", *"rust"):  # faster than a key is handled
            w.app.post_message(Key(key, {"ctrl+k": "\x0b", "enter": "\r"}.get(key, key)))
        await w.until(lambda: w.app.chat.picker and w.app.chat.picker._words == "rust")
        assert w.app.chat.picker is not None
        assert [row.text for row in w.app.chat.picker._rows if row.choice] == ["● Rust lifetimes"]
        assert w.app.prompt.text == draft


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "later"), [("what is a ring", 0.0), ("ring", 9.0)])
async def test_a_draft_is_no_search_word(typed: str, later: float) -> None:
    async with window(FakeEngine(manual=True)) as w:
        prompt, now = w.app.prompt, 0.0
        prompt.clock = lambda: now
        prompt.put("/resume")
        prompt.action_send()
        prompt.put(typed)
        now = later
        assert prompt.take_word() == ""
        assert prompt.text == typed


@pytest.mark.slow
async def test_words_that_no_title_has_are_looked_for_in_all_chats() -> None:
    async with window() as w:
        await w.pilot.press("ctrl+k")
        await w.until(lambda: isinstance(w.app.focused, Picker))
        await w.pilot.press(*"train")
        await w.until(lambda: "searches the messages of all chats" in w.screen())
        await w.pilot.press("enter")
        await w.until(lambda: "“train” in all chats" in w.screen())
        assert "the train to Porto" in w.screen()
        line = w.app.query_one(Picker).get_option_at_index(0).prompt
        assert isinstance(line, Text)
        assert [line.plain[span.start : span.end] for span in line.spans] == ["train"]
        await w.until(lambda: isinstance(w.app.focused, Picker))  # the second one, a moment later
        await w.pilot.press("enter")
        await w.until(lambda: OpenChat("c2") in w.engine.commands)


def test_a_list_is_as_wide_as_the_chat_before_its_first_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow terminal showed its rows at 20 columns until then."""
    picker = Picker(Listing("Models", (Row("a model with a long name", None, ("its size",)),), ""))
    around = Widget()
    monkeypatch.setattr(Widget, "content_size", property(lambda self: Size(100 if self is around else 0, 9)))
    monkeypatch.setattr(Picker, "parent", around)
    assert picker._row_width == 96


@pytest.mark.slow
async def test_a_narrow_window_has_the_list_instead() -> None:
    async with window(size=(80, 24)) as w:
        await w.pilot.press("ctrl+b")
        await w.until(lambda: w.app.query(Picker))
        assert not w.app.query(Sidebar)
        await w.pilot.press("escape")
        await w.until(lambda: w.app.focused is w.app.prompt)


@pytest.mark.slow
async def test_the_sidebar_hides_where_there_is_no_room_and_comes_back() -> None:
    async with window(size=(140, 40)) as w:
        await w.pilot.press("ctrl+b")
        await w.until(lambda: "instant resume" in w.screen())
        await w.pilot.resize_terminal(90, 30)
        await w.until(lambda: "instant resume" not in w.screen())
        await w.pilot.resize_terminal(140, 40)
        await w.until(lambda: "instant resume" in w.screen())


@pytest.mark.slow
async def test_escape_twice_goes_back_to_a_message() -> None:
    async with window() as w:
        await w.ask("/resume rust")
        await w.until(lambda: "nothing to prefill" in w.said())
        await w.pilot.press("escape")
        await w.until(lambda: "esc again goes back" in w.bar("activity"))
        await w.pilot.press("escape")
        await w.until(lambda: "Rewind to" in w.screen())
        await w.pilot.press("enter")
        await w.until(lambda: Rewind(0) in w.engine.commands)
        await w.until(lambda: w.app.prompt.text == "hello")


@pytest.mark.slow
async def test_editing_a_message_and_leaving_it() -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("/resume rust")
        await w.until(lambda: "nothing to prefill" in w.said())
        await w.ask("/edit")
        await w.until(lambda: w.app.prompt.text == "hello")
        assert "editing question 1" in w.bar("activity")
        await w.pilot.press("escape")
        await w.until(lambda: not w.app.prompt.text and w.app.state.editing is None)
        await w.ask("/edit")
        await w.until(lambda: w.app.prompt.text == "hello")
        await w.pilot.press("!", "enter")
        await w.until(lambda: [c for c in w.sent(Edit) if isinstance(c, Edit) and c.text == "hello!"])
        w.engine.say([TurnFinished("stop", "hi", STATS)])
        await w.until(lambda: "❯ hello!" in w.said())


@pytest.mark.slow
async def test_the_panel_draws_the_cache() -> None:
    async with window(size=(100, 30)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.status.cache)
        await w.pilot.press("f2")
        await w.until(lambda: "pinned 38" in w.screen())
        assert "KV on disk in all: 5.9 GB of 20 GB" in w.screen()
        await w.pilot.press("f2")
        await w.until(lambda: "pinned 38" not in w.screen())


@pytest.mark.slow
async def test_choosing_a_model_and_a_setting() -> None:
    async with window(model=None, size=(100, 30)) as w:
        await w.pilot.press("enter")  # nothing typed, no model: the models there are
        await w.until(lambda: "On this machine" in w.screen())
        await w.until(lambda: "too large" in w.screen())
        await w.pilot.press("enter")
        await w.until(lambda: LoadModel("tutor") in w.engine.commands)
        await w.ask("/set")
        await w.until(lambda: "Settings" in w.screen())
        await w.pilot.press(*"seed", "enter")
        await w.until(lambda: w.app.prompt.text == "/set seed ")


@pytest.mark.slow
async def test_a_setting_changed_in_the_window_is_written_down(home: object) -> None:
    folders = Folders.from_env()
    async with window(folders=folders) as w:
        await w.ask("/set top-k 40 --default")
        await w.until(lambda: (folders.config / "config.toml").is_file())
        assert (folders.config / "config.toml").read_text() == "top_k = 40\n"
        await w.ask("/theme nord")
        await w.until(lambda: 'theme = "nord"' in (folders.config / "config.toml").read_text())
        assert w.app.theme == "nord"


@pytest.mark.slow
async def test_keys_from_the_settings() -> None:
    async with window(settings=Settings(keys=(("app.panel", "f7,f9"),)), size=(100, 30)) as w:
        await w.ask("why")
        await w.until(lambda: w.app.state.status.cache)
        await w.pilot.press("f7")
        await w.until(lambda: "pinned 38" in w.screen())


@pytest.mark.slow
async def test_the_list_is_asked_for_again_when_a_chat_has_changed() -> None:
    async with window(size=(140, 40)) as w:
        await w.until(lambda: len(w.sent(ListChats)) == 1)  # for the welcome
        await w.pilot.press("ctrl+b")
        await w.until(lambda: len(w.sent(ListChats)) == 2)
        await w.pilot.press("escape")
        await w.until(lambda: w.app.focused is w.app.prompt)
        await w.ask("why")
        await w.until(lambda: len(w.sent(ListChats)) == 3)
        assert not w.app.query(Picker)


# -- entries of the sidebar ------------------------------------------------------------------------------------------


def chat(id: str, age_days: float, parent: str | None = None, **more: object) -> ChatSummary:
    made = ChatSummary(id, f"Chat {id}", NOON - age_days * DAY, 2, 0, "m", parent)
    return replace(made, **more)  # type: ignore[arg-type]


def test_chats_stand_under_their_dates_and_forks_under_their_chat() -> None:
    fork = chat("d", 0, "a", kv_bytes=1_700_000_000, departure=Departure("Why sinks?", "What?"))
    chats = [chat("a", 40), chat("b", 1), chat("c", 0.1, versions=("c2",)), fork, chat("e", 2, "d")]
    text = [entry.text.rstrip() for entry in sidebar_entries(chats, "", "c", NOON, 27)]
    assert text == [
        "Today",
        " Chat a              ○",
        " ├ Why sinks?        ● 1.7G",
        " └ Chat e            ○",
        "▌Chat c              ○",
        "Yesterday",
        " Chat b              ○",
    ]
    assert [e.session_id for e in sidebar_entries(chats, "sinks", None, NOON, 27)] == ["d"]
    assert (listed_as(chats, "c2"), listed_as(chats, "c"), listed_as(chats, None)) == ("c", "c", None)
    rows = chats_list(chats, NOON, "c2")
    assert rows.rows[rows.at].text == "○ Chat c"
    assert "● ↳ Why sinks? · after “What?”" in [row.text for row in rows.rows]


def test_forks_whose_chat_is_gone_stand_alone_and_a_ring_of_parents_ends() -> None:
    chats = [chat("a", 0, "gone"), chat("x", 0, "y"), chat("y", 0, "x")]
    entries = sidebar_entries(chats, "", None, NOON, 27)
    assert {entry.session_id for entry in entries if entry.session_id} == {"a", "x", "y"}


@pytest.mark.parametrize(
    ("days", "name"), [(0, "Today"), (-1, "Today"), (1, "Yesterday"), (40, "October"), (400, "October 2022")]
)
def test_dates(days: float, name: str) -> None:
    assert group_text(NOON - days * DAY, NOON) == name


def test_chats_of_the_fake() -> None:
    assert len(sidebar_entries(CHATS, "rust life", None, NOON, 27)) == 1
