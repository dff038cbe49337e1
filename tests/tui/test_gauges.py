"""The ring, the sparkline and the figures of the panel, as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mlxkv.events import PrefillProgress, TextDelta, TurnFinished
from mlxkv.protocol.events import TurnStarted
from mlxkv.protocol.status import CacheView, ContextPart, ContextUsage, SessionStats, SessionStatus
from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.gauges import (
    EVICTED,
    FREE,
    LIVE,
    PINNED,
    SpeedMeter,
    bar,
    narrow_lines,
    ring_strip,
    sparkline,
    wide_lines,
)
from mlxkv.tui.state.reports.report import Report
from mlxkv.tui.state.reports.reports import context_line, context_rows, context_text, memory_lines, stats_lines
from tests.tui.fake_engine import CONTEXT, FIGURES, RING, STATS, STATUS

HALF = CacheView(10, 50, 80, 50, 20, 0, 1000, 500)


def test_the_ring_shows_each_row_once() -> None:
    cells, marks = ring_strip(HALF, 100)
    assert cells == PINNED * 10 + LIVE * 40 + FREE * 30 + EVICTED * 20
    assert marks.index("▲") == 50


@pytest.mark.parametrize("bits", [4, "8/4"])
def test_bits_are_told_in_80_columns(bits: int | str) -> None:
    """The last letters of `4-bit` were cut off."""
    ring = CacheView(4, 257, 4100, 257, 0, 0, 1, 1, bits=bits)
    for width in (78, 200):
        words = wide_lines(replace(STATUS, cache=ring), [0] * 60, 0.0, width)[2]
        assert words.endswith(f"rows, {bits}-bit")
        assert len(words) <= width


@pytest.mark.parametrize("width", [58, 67, 77, 100])
@pytest.mark.parametrize("bits", [None, "8/4"])
def test_the_panel_is_folded_where_it_is_narrow(width: int, bits: str | None) -> None:
    """Beside the sidebar its lines were cut off."""
    ring = CacheView(1_024, 131_072, 132_096, 90_000, 0, 1_250_000, int(12e9), int(11e9), bits=bits)
    status = replace(STATUS, cache=ring, kv_bytes=ring.live_bytes)
    lines = wide_lines(status, [0] * 59 + [42], 1812.0, width)
    text = " ".join(line.strip() for line in lines)
    assert not any("…" in line or cell_len(line) > width for line in lines)
    for words in (
        "pinned 1,024", "live 130,048", "evicted 1,250,000", "▲ next", "of 132,096 rows", bits or "", "weights 4.6 GB",
        "12 GB allocated, 11 GB live", "free 21 GB", "of 20 GB",
    ):  # fmt: skip
        assert words in text
    assert len(lines) == 6 or width < 78


@given(st.integers(0, 50), st.integers(0, 50_000), st.integers(2, 50_000), st.integers(0, 2000), st.integers(10, 200))
def test_any_ring_fills_its_width(pinned: int, live: int, capacity: int, undo: int, width: int) -> None:
    live = min(live, capacity)
    view = CacheView(min(pinned, live), live, capacity, min(live, capacity - 1), undo, 0, 0, 0)
    cells, marks = ring_strip(view, width)
    assert len(cells) == width
    assert marks.index("▲") < width
    assert (PINNED in cells) == (view.pinned > 0)
    order = [PINNED, LIVE, FREE, EVICTED]
    assert [order.index(c) for c in cells] == sorted(order.index(c) for c in cells)


def test_the_sparkline_scales_to_its_tallest() -> None:
    assert sparkline([0, 1, 4, 8], 4) == " ▁▄█"
    assert sparkline([1, 2, 3], 2) == "▆█"
    assert sparkline([0, 0], 5) == "  "


def test_a_bar_shows_the_smallest_share() -> None:
    assert bar(0.0, 4) == "▱▱▱▱"
    assert bar(0.01, 4) == "▰▱▱▱"
    assert bar(2.0, 4) == "▰▰▰▰"


def test_the_panel_says_everything_in_words_too() -> None:
    text = "\n".join(wide_lines(STATUS, [0] * 59 + [42], 812.0, 100))
    for words in (
        "pinned 38", "live 6,262", "evicted 0", "of 32,000 rows, full precision", "42 tok/s", "812 tok/s", "free 21 GB",
        "weights 4.6 GB", "4.8 GB allocated, 936 MB live", "KV on disk in all: 5.9 GB of 20 GB",
    ):  # fmt: skip
        assert words in text
    assert "4-bit" in "\n".join(wide_lines(replace(STATUS, cache=replace(RING, bits=4)), [], 0.0, 100))
    assert "Ring    empty" in wide_lines(SessionStatus(), [], 0.0, 80)[0]
    own = wide_lines(SessionStatus(kv_bytes=6_000), [], 0.0, 80)  # Mamba has no ring
    assert own[0] == "Ring    none: the layers have caches of their own"
    assert "KV 6.0 kB live" in own[4]
    assert " KV       6.0 kB" in narrow_lines(SessionStatus(kv_bytes=6_000), [], 0.0, 27)
    assert all(len(line) <= 27 for line in narrow_lines(STATUS, [0] * 59 + [420], 1812.0, 27))


def test_the_meter_counts_tokens_by_the_second() -> None:
    meter = SpeedMeter()
    meter.record(TurnStarted("q"), 0.0)
    meter.record(PrefillProgress(1, 2, 0, 300.0), 0.5)
    for i in range(30):
        meter.record(TextDelta("x", i + 1), 1.0 + i / 10)
    assert meter.rates(4.0)[-3:] == [10, 10, 10]
    assert meter.prefill_tps == 300.0
    meter.record(TurnFinished("stop", "", STATS), 4.0)
    meter.record(TextDelta("x", 5), 4.5)  # a new reply counts from the beginning
    assert meter.rates(5.0)[-1] == 5
    meter.record(TurnStarted("after one that failed"), 5.5)
    meter.record(TextDelta("x", 2), 5.6)
    assert meter.rates(6.0)[-1] == 2
    assert sum(meter.rates(100.0)) == 0
    assert len(meter.rates(100.0)) == 60


def test_context_says_what_is_evicted() -> None:
    assert context_text(CONTEXT) == "Context: 100 tok of 128 (78%) · 12 pinned · 32 evicted"
    rows = [context_line(line, 80) for line in context_rows(CONTEXT)]
    assert "system" in rows[0]
    assert rows[1].endswith("· 8 left")
    assert rows[2].endswith(f"     80 tok {'█' * 15}")
    assert len({row.index(" tok") for row in rows}) == 1
    gone = ContextUsage((ContextPart("user", "日本語 " * 30, 12_345, 0), ContextPart("user", "a\tb", 1, 1)), 64, 0)
    assert context_line(context_rows(gone)[0], 60).endswith("…  12,345 tok  · evicted")


def test_context_says_what_is_left_to_prefill() -> None:
    use = ContextUsage((ContextPart("system", "", 9, 9), ContextPart("user", "hi", 40, 10, 30)), 64, 9)
    assert context_text(use) == "Context: 19 tok of 64 (29%) · 9 pinned · 0 evicted · 30 to prefill"
    rows = [context_line(line, 80) for line in context_rows(use)]
    assert "the chat template's own" in rows[0]
    assert rows[1].endswith("· 30 to prefill")


@pytest.mark.parametrize("width", [20, 28, 31, 40, 45, 56, 60, 80, 120])
def test_context_takes_one_line_per_message_at_any_width(width: int) -> None:
    """Below 60 columns each message took two or three lines, its figures torn from its text."""
    use = ContextUsage((*CONTEXT.parts, ContextPart("user", "日本語 and more " * 9, 12_345, 45)), 20_000, 12)
    blocks = Report("context", tuple(context_rows(use))).blocks()
    rows = [Renderer(Colours()).strips(block, width) for block in blocks]
    assert [len(lines) for lines in rows] == [1] * 4
    assert all(cell_len(lines[0].text) <= width for lines in rows)
    assert all(f" {part.tokens:,} tok" in lines[0].text for part, lines in zip(use.parts, rows, strict=True))
    assert ("45 left" in rows[-1][0].text) is (width >= 28)
    assert ("hello" in rows[1][0].text) is (width != 20)


def test_stats_and_memory() -> None:
    text = "\n".join(line.text for line in stats_lines(FIGURES))
    for words in (
        "2 turns (4 messages) · 42.1 tok/s decode · 812 tok/s prefill",
        "99% reused",
        "1.1 GB of 20 GB",
    ):
        assert words in text
    assert "prompt caches" not in text
    assert "tok/step" not in text
    drafted = stats_lines(replace(FIGURES, tokens_per_step=2.34))[0].text
    assert "42.1 tok/s decode · 2.3 tok/step · 812 tok/s prefill" in drafted
    wrapped = stats_lines(SessionStats(prefill_tokens=23, cached_tokens=690, cached_evicted_tokens=200))
    assert wrapped[1].right == "0 generated · prompt 23 + 490 cached + 200 evicted (68% reused)"
    some = stats_lines(replace(FIGURES, named_disk_bytes=300_000_000))[-1].text
    assert "KV on disk in all: 1.1 GB of 20 GB, 300 MB of it named prompt caches · " in some
    assert memory_lines(STATUS)[0].text == "Memory: 5.6 GB of 27 GB usable"
