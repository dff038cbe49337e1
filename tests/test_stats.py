"""How figures are worded: the same in the window, in print mode and in JSON."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from mlxkv.stats import TurnStats, bytes_text, fit, rate_text, seconds_text, stat_line, stat_parts, tokens_text
from mlxkv.tui.state.figures import figures_line

DONE = TurnStats(
    prompt_tokens=5898, cached_tokens=5871, prefill_tokens=27, generated_tokens=312, ttft_s=0.21, decode_tps=42.1,
    total_s=7.62, finish_reason="stop", cache_live_bytes=916_000_000,
)  # fmt: skip


def test_the_fields_are_a_contract() -> None:
    """Scripts read these; renaming one breaks them."""
    assert [f.name for f in fields(TurnStats)] == [
        "prompt_tokens", "cached_tokens", "prefill_tokens", "generated_tokens", "decode_steps",
        "drafted_tokens", "accepted_tokens", "evicted_tokens", "cached_evicted_tokens",
        "ttft_s", "prefill_tps", "decode_tps", "total_s", "finish_reason", "cache_tokens",
        "cache_window", "cache_bytes", "cache_live_bytes", "cache_bits", "disk_bytes", "disk_written_bytes",
        "peak_memory_bytes", "reuse_stopped_at", "reuse_stopped_why", "batched", "not_batched_why",
        "continued", "reasoning_cut_at",
    ]  # fmt: skip


def test_drafting_shows_the_tokens_of_a_step() -> None:
    drafted = replace(DONE, decode_steps=136, drafted_tokens=200, accepted_tokens=176)
    assert stat_line(drafted) == f"{stat_line(DONE)} · 2.3 tok/step"
    assert "tok/step" not in stat_line(replace(DONE, decode_steps=312, drafted_tokens=16))


def test_a_reply() -> None:
    assert stat_line(DONE) == "42.1 tok/s · KV 916 MB · TTFT 0.21s · 312 tok · prompt 27 + 5,871 cached · 7.6s"


def test_what_had_rotated_out_does_not_count_as_cached() -> None:
    """In a window of 516 a reply to 713 tokens was said to have 690 cached, 200 of which it could not see."""
    wrapped = replace(DONE, prefill_tokens=23, cached_tokens=690, prompt_tokens=713, cached_evicted_tokens=200)
    assert " · prompt 23 + 490 cached + 200 evicted · " in stat_line(wrapped)


def test_growth_has_its_own_unit() -> None:
    """`KV 1.2 GB (+50)` would read as 50 GB."""
    assert stat_parts(replace(DONE, cache_live_bytes=1_200_000_000), 50_000_000)["kv"] == "KV 1.2 GB (+50 MB)"


@pytest.mark.parametrize("reason", ["stopped", "stop", "length"])
@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_that_was_decoded_has_no_rate(tokens: int, reason: str) -> None:
    """`0.0 tok/s` stood under a message that was cancelled, as if the model were slow."""
    stats = replace(DONE, finish_reason=reason, decode_tps=0.0, generated_tokens=tokens)
    for line in (stat_line(stats), "".join(figures_line(stats, 80)), "".join(figures_line(stats, 40))):
        assert line.startswith("KV 916 MB · ")
        assert "tok/s" not in line
    assert f"{tokens} tok" in stat_line(stats)
    assert ("TTFT" in stat_line(stats)) is bool(tokens)


@pytest.mark.parametrize(
    ("reason", "flag"), [("stopped", "■ stopped"), ("length", "▲ cut at max-tokens"), ("stop", "")]
)
def test_a_reply_that_ended_early_says_so_after_its_figures(reason: str, flag: str) -> None:
    assert stat_line(replace(DONE, finish_reason=reason)) == stat_line(DONE) + (f" · {flag}" if flag else "")


def test_fit_keeps_one_segment_and_takes_none() -> None:
    assert fit(["long enough"], 3) == "long enough"
    assert fit([], 10) == ""


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_949, "9.9 kB"), (9_960, "10 kB"), (42_000, "42 kB"),
        (999_400, "999 kB"), (999_600, "1.0 MB"), (936e6, "936 MB"), (999.6e6, "1.0 GB"), (1.7e9, "1.7 GB"),
        (9.96e9, "10 GB"), (22.6e9, "23 GB"), (2e12, "2000 GB"),
    ],
)  # fmt: skip
def test_bytes(n: float, text: str) -> None:
    assert bytes_text(n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (830, "830"), (999, "999"), (1000, "1k"), (6_300, "6.3k"), (9_949, "9.9k"), (9_990, "9.9k"),
     (32_000, "32k")],
)  # fmt: skip
def test_tokens(n: int, text: str) -> None:
    assert tokens_text(n) == text


@pytest.mark.parametrize(
    ("tps", "text"), [(0.0, "0.0"), (42.123, "42.1"), (99.94, "99.9"), (99.96, "100"), (812.4, "812")]
)
def test_rates_have_one_decimal_below_100(tps: float, text: str) -> None:
    assert rate_text(tps) == text


@pytest.mark.parametrize(
    ("s", "text"),
    [(0.0, "0.00s"), (0.208, "0.21s"), (0.994, "0.99s"), (0.996, "1.0s"), (7.62, "7.6s"), (59.9, "59.9s"),
     (59.96, "1m00s"), (125.4, "2m05s"), (119.6, "2m00s"), (3600, "60m00s")],
)  # fmt: skip
def test_seconds(s: float, text: str) -> None:
    assert seconds_text(s) == text
