"""Footer, gauge, commands, keys and the list of chats: small decisions, each in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from mlxkv.protocol.chat_names import chats_called
from mlxkv.protocol.commands import OpenChat
from mlxkv.protocol.status import SaveState, SessionStatus
from mlxkv.tui.state.key_presses import Act, Presses, Situation
from mlxkv.tui.state.labels import footer_text, gauge_text, pair_text
from mlxkv.tui.state.lists.chat_list import when_text
from mlxkv.tui.state.lists.choice_lists import chat_row, chats_list
from mlxkv.tui.state.lists.choices import Row, row_line
from tests.tui.fake_engine import CHATS, RING, STATUS


def test_footer() -> None:
    assert footer_text(STATUS, 80) == "KV 936 MB · 6.3k/32k tok · mem 5.6/27 GB · saved ✓"
    assert footer_text(STATUS, 36) == "KV 936 MB · 6.3k/32k tok"
    assert footer_text(STATUS, 40, narrow=True) == "19% ctx"
    assert footer_text(STATUS, 80, saving=41) == "KV 936 MB · 6.3k/32k tok · mem 5.6/27 GB · saving KV 41%"
    full = replace(STATUS, saved=SaveState.NOT_SAVED, save_problem="disk full")
    assert "saving" not in footer_text(full, 80, saving=41)
    assert footer_text(SessionStatus(), 80) == ""
    assert footer_text(full, 30).startswith("▲ not saved: disk full")
    assert footer_text(replace(STATUS, memory_limit=0, saved=SaveState.OFF), 80).endswith(
        "mem 5.6 GB · not saving this chat"
    )


@pytest.mark.parametrize(
    ("tokens", "text", "level"),
    [
        (0, "ctx ▱▱▱▱▱▱▱▱ 0%", ""),
        (1, "ctx ▰▱▱▱▱▱▱▱ 1%", ""),
        (19, "ctx ▰▱▱▱▱▱▱▱ 19%", ""),
        (75, "ctx ▰▰▰▰▰▰▱▱ 75%", "warning"),
        (92, "ctx ▰▰▰▰▰▰▰▱ 92% – nearly full", "error"),
        (100, "ctx ▰▰▰▰▰▰▰▰ 100% – full", "error"),
    ],
)
def test_gauge(tokens: int, text: str, level: str) -> None:
    assert gauge_text(SessionStatus(cache_tokens=tokens, cache_window=100), 80) == (text, level)


def test_a_ring_that_rotates_is_no_alarm() -> None:
    """Its share of live rows goes up and down with each block, and the gauge was red for the rest of the chat."""
    status = replace(STATUS, cache_tokens=31_000, cache=replace(RING, evicted=256))
    assert gauge_text(status, 80) == ("ctx ▰▰▰▰▰▰▰▰ rotating", "")
    assert footer_text(status, 40, narrow=True) == "ctx rotating"


def test_no_window_no_gauge() -> None:
    assert gauge_text(SessionStatus(), 80) == ("", "")


def test_sizes_share_their_unit() -> None:
    assert pair_text(2.1e9, 4.6e9) == "2.1/4.6 GB"
    assert pair_text(920e6, 4.6e9) == "920 MB/4.6 GB"
    assert pair_text(5e6, 0) == "5.0 MB"


def test_escape() -> None:
    presses = Presses()
    typing = Situation(text=True)
    assert presses.escape(Situation(generating=True, text=True), 0.0) is Act.STOP
    assert presses.escape(typing, 0.1) is Act.ARM  # the press that stopped is not the first of two
    assert presses.escape(typing, 0.9) is Act.CLEAR
    assert presses.escape(typing, 1.0) is Act.ARM
    assert presses.escape(typing, 2.5) is Act.ARM  # too late for the second
    assert presses.escape(Situation(overlay=True, text=True), 3.0) is Act.CLOSE
    assert presses.escape(Situation(generating=True, pane=True), 3.0) is Act.CLOSE  # what was opened last
    assert presses.escape(Situation(), 4.0) is Act.NOTHING
    assert presses.escape(Situation(has_messages=True), 4.5) is Act.REWIND  # the press before was the first of two
    assert presses.escape(Situation(has_messages=True), 5.0) is Act.ARM
    assert presses.escape(Situation(has_messages=True), 6.5) is Act.ARM  # too late
    assert presses.escape(Situation(editing=True, text=True, has_messages=True), 7.0) is Act.STOP_EDITING
    assert presses.escape(Situation(pulling=True), 8.0) is Act.PAUSE


def test_interrupt() -> None:
    presses = Presses()
    assert presses.interrupt(Situation(generating=True, text=True, selection=True), 0.0) is Act.COPY
    assert presses.interrupt(Situation(generating=True, overlay=True, text=True), 0.1) is Act.CLOSE
    assert presses.interrupt(Situation(generating=True, text=True), 0.1) is Act.CLEAR
    assert presses.interrupt(Situation(generating=True), 0.2) is Act.STOP
    assert presses.interrupt(Situation(pane=True), 0.25) is Act.CLOSE
    assert presses.interrupt(Situation(), 0.3) is Act.ARM
    assert presses.interrupt(Situation(), 1.2) is Act.QUIT
    presses = Presses()
    assert presses.interrupt(Situation(), 0.0) is Act.ARM
    assert presses.interrupt(Situation(), 1.5) is Act.ARM


def test_finding_a_chat() -> None:
    older = replace(CHATS[0], id="zz", title="Rust", updated=1.0)
    chats = (*CHATS, older)
    assert chats_called(chats, "c2") == [CHATS[1]]
    assert chats_called(chats, "rust") == [older]  # the whole title before the start of another
    assert chats_called(chats, "rus") == [CHATS[0], older]
    assert [row.choice for row in chats_list(chats, 0.0).matching("to trip")] == [OpenChat("c2")]


def test_chat_line() -> None:
    now = CHATS[0].updated
    assert row_line(chat_row(replace(CHATS[0], title="R\x1b\n x"), now), 60).startswith("● R␛ x ")
    assert cell_len(row_line(chat_row(replace(CHATS[0], title="界" * 200), now), 60)) == 60
    assert when_text(now, now + 86_400) == "yesterday"


def test_facts_are_whole_where_there_is_room() -> None:
    """Beside a short name the last facts, which matter most, were cut although the line had room."""
    row = Row("n", facts=("a note of some length", "a licence of some length", "fits", "10 B"))
    assert row_line(row, 70).endswith(" a note of some length · a licence of some length · fits · 10 B")
    assert row_line(row, 60).endswith("  a licence of some length · fits · 10 B")
    assert row_line(Row("n" * 90, facts=row.facts), 60).endswith("… 10 B")
    for n in range(90):
        assert {cell_len(row_line(Row("n" * n, facts=row.facts), width)) - width for width in (60, 80)} == {0}
