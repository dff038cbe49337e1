"""The list of settings in the window: full help of the selected line, D saves for all chats, presets are completed."""

from __future__ import annotations

from mlxkv.protocol.commands import ChangeSettings, SavePreset, TakePreset
from mlxkv.protocol.events import PresetCard, PresetExists, PresetList, PresetTaken
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.slash import complete
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.lists.setting_lists import delete_preset, settings_list
from tests.tui.fake_engine import FakeEngine
from tests.tui.window import window


async def test_the_selected_line_shows_its_help_and_d_saves_it_for_all_chats() -> None:
    async with window(FakeEngine()) as w:
        await w.ask("/set temp 0.3")
        await w.ask("/set")
        await w.until(lambda: w.app.chat.picker is not None)
        await w.until(lambda: "repetition-context-size none (20)" in w.screen())
        await w.pilot.press(*"likely")
        await w.until(lambda: "0 always takes the most likely token." in w.screen())
        screen = w.screen()
        assert "In force: 0.3 (this chat)." in screen
        await w.pilot.press("D")
        await w.until(lambda: len(w.sent(ChangeSettings)) == 2)
        assert w.sent(ChangeSettings)[-1] == ChangeSettings({"temperature": 0.3}, for_all=True)
        await w.until(lambda: "temperature is 0.3, saved for all chats, from the next reply on." in w.said())


def test_what_is_for_all_chats_and_what_hides_it() -> None:
    state = ChatState(lambda: 100.0)
    state.sources = state.sources.with_option({"seed": 7}).with_preset("warm", {"temperature": 1.0})
    for line in ("seed 8", "temp 0.5 --default", "seed default", "theme", "mouse off", "model none", "temp --default"):
        run(state, "set", line)
    said = [block.text for block in state.transcript.take_change().settled]
    assert said == [
        "seed is 8 for this chat, from the next reply on. In other chats the option --seed of this run stays in force.",
        "temperature is 0.5, saved for all chats, from the next reply on. Here the preset warm stays in force: 1.",
        "seed is no longer this chat's own: it is 7 (the option --seed of this run).",
        said[3],
        "mouse is off, saved, from the next start on.",
        "A chat needs its own model; /set model none --default is for all.",
        "/set temp --default needs a value, as in /set temp 0.7 --default.",
    ]
    assert said[3].startswith("theme is textual-dark. ")
    rows = {row.text.split()[0]: row for row in settings_list(state).rows}
    assert rows["temp"].facts == ("the preset warm",)
    assert "In force: 1 (the preset warm; all chats: 0.5)." in rows["temp"].detail
    assert rows["mouse"].other is None


def test_that_a_model_given_by_an_option_has_no_adapter_is_said_of_that_option() -> None:
    state = ChatState(lambda: 100.0, SettingSources(option={"model": "org/x"}, implied={"adapter": "none"}))
    rows = {row.text.split()[0]: row for row in settings_list(state).rows}
    assert rows["adapter"].text.split() == ["adapter", "none"]
    assert rows["adapter"].facts == rows["model"].facts == ("the option --model of this run",)


def test_presets_are_listed_completed_replaced_and_deleted_after_a_question() -> None:
    state = ChatState(lambda: 100.0)
    cards = (
        PresetCard("cold", "temp 0"),
        PresetCard("odd", "", "odd.toml, line 2, is wrong."),
        PresetCard("warm", "x"),
    )
    state.apply(PresetList(cards, "warm"))
    assert state.listing is not None
    assert [row.text for row in state.listing.rows] == [" cold", " odd", "▌warm"]
    assert state.listing.at == 2
    assert [isinstance(row.choice, TakePreset) for row in state.listing.rows] == [True, False, True]
    state.apply(PresetExists("warm"))
    assert [row.choice for row in state.listing.rows] == [None, SavePreset("warm", replace=True)]
    assert delete_preset("warm").rows[0].choice is None, "Enter alone deletes nothing"
    assert [entry.insert for entry in complete("/preset wa", ["cold", "warm"])] == ["/preset warm"]
    assert [entry.insert for entry in complete("/preset delete c", ["cold", "warm"])] == ["/preset delete cold"]
    assert {entry.label for entry in complete("/preset ", ["cold"])} == {"cold", "save", "rename", "delete"}
    state.apply(PresetTaken("warm", "This chat has the preset warm.", "org/x"))
    assert state.is_loading
    for wrong in ("save", "rename a", "a b"):
        run(state, "preset", wrong)
    said = [block.text for block in state.transcript.take_change().settled]
    assert said[-3:] == [
        "/preset save is not complete: /preset save NAME.",
        "/preset rename a is not complete: /preset rename OLD NEW.",
        "/preset a b is not complete: /preset NAME.",
    ]
